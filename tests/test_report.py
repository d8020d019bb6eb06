"""The web page of runs: what it says, and how it looks in headless Chromium."""

import base64
import dataclasses
import html
import io
import json
import os
import re
import select
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

import jaxcnn
from conftest import CACHED, Tiny
from jaxcnn.config import get_default_config
from jaxcnn.data import Dataset
from jaxcnn.errors import ConfigError
from jaxcnn.report import charts, write_report
from jaxcnn.report import page as page_module
from jaxcnn.report.collect import (
    Mistake,
    Run,
    collect,
    data_note,
    describe_environment,
    describe_results,
    name_runs,
)
from jaxcnn.report.layers import find_convolutions
from jaxcnn.report.page import render
from jaxcnn.scores import evaluate_logits
from jaxcnn.train.record.workdir import read_run

pytestmark = CACHED
pytest.importorskip("jinja2")
pytest.importorskip("vl_convert")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def run(tmp_path_factory, compile_cache) -> Path:
    """The folder of a run of two short epochs."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    jaxcnn.fit(
        "lenet_modern",
        "fashion_mnist_sample",
        epochs=2,
        batch_size=32,
        max_train_examples=128,
        max_test_examples=96,
        num_devices=1,
        workdir=folder,
    )
    return folder


@pytest.fixture(scope="module")
def trained(run):
    return jaxcnn.load(run)


@pytest.fixture(scope="module")
def other_run(run) -> Path:
    """The same run with another seed and another name, which need not be trained."""
    folder = run.with_name("<b>&second")
    shutil.copytree(run, folder)
    change_record(folder, lambda record: record["config"].update(seed=1))
    return folder


@pytest.fixture(scope="module")
def both(run, other_run) -> Path:
    """The page of both runs."""
    return write_report([run, other_run], run.with_name("both.html"))


def change_record(folder, change):
    path = folder / "run.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


class Page(HTMLParser):
    """The elements and the text of a page; what is in scripts and styles is no text."""

    def __init__(self, content):
        super().__init__()
        self.tags, self.sources, self._words, self._inside = [], [], [], ""
        self.feed(content)
        self.text = " ".join(self._words)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._inside = tag
        self.sources += [value for name, value in attrs if name == "src"]

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside not in ("script", "style"):
            self._words += data.split()


def read_specs(content):
    return json.loads(re.search(r'id="specs">(.*?)</script>', content, re.DOTALL)[1])


def make_run(name="run", **changes):
    """Return a run without a folder."""
    record = {"config": get_default_config().to_dict(), "data": {"test": "0"}, "starts": []}
    record["config"]["num_epochs"] = 1
    row = {
        "epoch": 1,
        "step": 2,
        "train_loss": 1.5,
        "train_accuracy": 0.5,
        "images_per_second": 10.0,
        "train_seconds": 2.0,
    }
    return Run(**{"name": name, "record": record, "rows": [row], "notes": [], **changes})


def evaluate(names, count=50, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(names), count).astype(np.int32)
    logits = rng.normal(size=(count, len(names))) + 2 * np.eye(len(names))[labels]
    return evaluate_logits(logits, labels, tuple(names))


# --- What it says ---


def test_figures_are_those_of_evaluate(both, trained):
    evaluation = trained.evaluate()
    content = both.read_text()
    text = Page(content).text
    assert f"{evaluation}" in text
    low, high = evaluation.interval
    assert f"Best: 95 % interval{2 * f' {low:.4f} to {high:.4f}'} " in text
    best = max(trained.history, key=lambda row: row["test_accuracy"])
    assert best["test_accuracy"] == evaluation.accuracy
    figures = f" {evaluation.accuracy:.4f} in epoch {best['epoch']}"
    assert f"Best test accuracy{2 * figures} " in text
    table = zip(evaluation.class_names, evaluation.confusion.sum(axis=1), strict=True)
    for i, (name, count) in enumerate(table):
        scores = (evaluation.precision[i], evaluation.recall[i], evaluation.f1[i])
        shown = " ".join("-" if np.isnan(x) else f"{x:.4f}" for x in scores)
        assert f" {name} {count} {shown} " in text
    specs = read_specs(content)
    cells = np.zeros_like(evaluation.confusion)
    for cell in specs["confusion-1"]["data"]["values"]:
        cells[cell["i"], cell["j"]] = cell["images"]
    np.testing.assert_array_equal(cells, evaluation.confusion)
    losses = [x["loss"] for x in specs["loss"]["data"]["values"] if x["split"] == "test"]
    logged = [row["test_loss"] for row in trained.history]
    np.testing.assert_allclose(losses, 2 * logged, rtol=1e-4)


def test_a_run_that_chooses_by_validation(tmp_path):
    """Before it has chosen, it is evaluated on the validation set; then on the test set."""
    folder = tmp_path / "validated"
    jaxcnn.fit(
        "lenet_modern",
        "fashion_mnist_sample",
        epochs=1,
        batch_size=32,
        max_train_examples=128,
        max_test_examples=96,
        validation_examples=64,
        num_devices=1,
        workdir=folder,
    )
    tested, [row] = read_run(folder)["result"]["test"], jaxcnn.load(folder).history
    runs = [collect(folder, "chosen", read_run(folder), "best", None)]
    change_record(folder, lambda record: record.pop("result"))
    runs.append(collect(folder, "unfinished", read_run(folder), "best", None))
    assert [(run.evaluated_on, run.evaluation.count) for run in runs] == [
        ("test", 96),
        ("validation", 64),
    ]
    chosen, unfinished = map(describe_results, runs)
    accuracy = f"{row['validation_accuracy']:.4f} in epoch 1"
    assert chosen["Best validation accuracy"] == unfinished["Best validation accuracy"] == accuracy
    assert chosen["Chosen test accuracy"] == f"{tested['test_accuracy']:.4f} in epoch 1"
    assert "Chosen: 95 % interval" in chosen
    assert "Best: 95 % interval" in unfinished
    content = render(runs, vega="")
    text = Page(content).text
    assert "On its test images: " in text
    assert "On its validation images: " in text
    assert "solid: validation, dashed: training" in text
    assert "chosen on the test set" not in text
    splits = {point["split"] for point in read_specs(content)["loss"]["data"]["values"]}
    assert splits == {"training", "validation"}


def test_the_mistakes_are_the_images_and_come_in_order(both, trained):
    test = jaxcnn.data.load_dataset("fashion_mnist_sample", "test").first(96)
    evaluation = trained.evaluate(test)
    expected = evaluation.mistakes()[:24]
    content = both.read_text()
    start = content.index("<h3>The most confident mistakes")
    sources = Page(content[start:]).sources[: len(expected)]
    for source, i in zip(sources, expected, strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))))
        np.testing.assert_array_equal(pixels, test.images[i, :, :, 0])
    captions = re.findall(r"<figcaption><b>(.*?)</b> ([\d.]+)<br>true: (.*?) [\d.]+<", content)
    i = expected[0]
    predicted = evaluation.probabilities[i].argmax()
    assert captions[0] == (
        html.escape(evaluation.class_names[predicted]),
        f"{evaluation.probabilities[i, predicted]:.3f}",
        html.escape(evaluation.class_names[evaluation.labels[i]]),
    )


def test_only_what_differs_is_compared(both):
    text = Page(both.read_text()).text
    settings = text[text.index("Settings ") : text.index("Settings that all runs share")]
    assert settings.split() == ["Settings", "first", "<b>&second", "seed", "0", "1"]


def test_nothing_is_fetched(both):
    content = both.read_text()
    page = Page(content)
    assert "link" in page.tags
    assert "default-src 'none'" in content
    assert all(source.startswith("data:") for source in page.sources)
    assert set(re.findall(r'href="([^#"][^"]*)"', content)) == {"data:,"}
    assert both.stat().st_size < 1.5e6


NAMES = ('</script><script>alert("1")</script>', "<b>cat</b> & co", "same", "same")


@pytest.mark.parametrize("count", [2, 4, 100])
def test_any_names_and_numbers_of_classes(count):
    names = [*NAMES, *(f"class {i}" for i in range(96))][:count]
    images = np.random.default_rng(0).integers(0, 256, (2, 300, 200, 3), np.uint8)
    mistake = Mistake(images[0], (names[0], 0.75), (names[1], 0.125))
    run = make_run(
        NAMES[0],
        notes=[f"{NAMES[1]} is missing"],
        checkpoint="step 2",
        evaluation=evaluate(names),
        mistakes=[mistake],
        image=images[1],
    )
    content = render([run], vega="", title="Title <b>with a tag")
    assert content.count("Title &lt;b&gt;with a tag") == 2
    page = Page(content)
    assert page.tags.count("script") == 3
    assert "<b>cat" not in content
    assert page.text.count(NAMES[0]) >= 4
    assert f"{NAMES[1]} is missing" in page.text
    specs = read_specs(content)
    assert specs["confusion-1"]["params"][0]["value"] == names
    assert specs["confusion-1"]["encoding"]["x"]["scale"]["domain"] == list(range(count))
    [picture] = page.sources
    assert Image.open(io.BytesIO(base64.b64decode(picture.split(",")[1]))).size == (75, 112)


def test_many_and_long_runs():
    rows = [make_run().rows[0] | {"epoch": i + 1} for i in range(1003)]
    runs = [make_run(f"run {i}", rows=rows) for i in range(12)]
    spec = charts.curves(runs, "accuracy")
    points = [x["epoch"] for x in spec["data"]["values"] if x["run"] == "run 3"]
    assert len(points) <= 250
    assert points == sorted(points)
    assert points[-1] == 1003
    assert len(set(spec["encoding"]["color"]["scale"]["range"])) == 12


def test_runs_of_the_same_name_and_of_several_starts():
    folders = [Path("/x/a/run"), Path("/x/b/run"), Path("/x/b/other")]
    assert name_runs(folders) == ["a/run", "b/run", "b/other"]
    starts = [
        {"date": "2026-01-02T03:04:05+00:00", "commit": None, "versions": {"jax": "1"}},
        {
            "date": "2026-01-02T03:04:59+00:00",
            "devices": 2 * ["cpu: cpu"],
            "versions": {"jax": "2"},
        },
    ]
    described = describe_environment(make_run(record={"starts": starts}))
    assert described["jax"] == "1, then 2"
    assert described["started (UTC)"] == "2026-01-02 03:04"
    assert described["commit"] == "-"
    assert described["devices"] == "2 x cpu: cpu"


def test_time_and_speed_are_of_the_whole_run():
    rows = [make_run().rows[0] | {"compile_seconds": 5.0, "test_seconds": 1.0}, make_run().rows[0]]
    rows[1] |= {"train_seconds": 200.0, "images_per_second": 20.0}
    results = describe_results(make_run(rows=rows))
    assert results["Time"] == "0:03:28"
    assert results["Time: compiling"] == "5.0 s"
    assert results["Images per second"] == "20 in training"
    rows[0] = rows[0] | {"validation_seconds": 10.0}
    assert describe_results(make_run(rows=rows))["Time"] == "0:03:38"
    run = make_run(rows=rows)
    run.record["result"] = {"test": {"test_accuracy": 0.5, "test_seconds": 60.0, "epoch": 1}}
    assert describe_results(run)["Time"] == "0:04:38"


def test_it_is_said_if_figures_do_not_compare():
    one, other = make_run(), make_run()
    assert data_note([one, other]) == ""
    other.record["data"] = {"test": "1"}
    assert "so their figures and curves do not compare" in data_note([one, other])
    assert "The curves are of different test images" in data_note([one, other], are_alike=True)
    for run, size in ((one, 32), (other, 64)):
        run.record["config"].update(dataset="folder:pictures", image_size=size)
    assert "were made squares in different ways" in data_note([one, other])
    for run, digest in ((one, "0"), (other, "1")):
        run.record["data"] = {"test": "0", "validation": digest}
    assert "different validation images" in data_note([one, other])


# --- Odd runs ---


def without_checkpoints(folder):
    shutil.rmtree(folder / "checkpoints")


def just_begun(folder):
    without_checkpoints(folder)
    (folder / "metrics.jsonl").unlink()


def stopped(folder):
    path = folder / "metrics.jsonl"
    path.write_text(path.read_text().splitlines(keepends=True)[0])


def out_of_patience(folder):
    path = folder / "metrics.jsonl"
    first, second = map(json.loads, path.read_text().splitlines())
    accuracy = first["test_accuracy"] - 0.1
    path.write_text(f"{json.dumps(first)}\n{json.dumps(second | {'test_accuracy': accuracy})}\n")
    change_record(folder, lambda record: record["config"].update(num_epochs=9, patience=1))


def of_an_object(folder):
    change_record(folder, lambda record: record["config"].update(dataset="object Mine"))


def of_other_data(folder):
    change_record(folder, lambda record: record["data"].update(test="0"))


def without_test_set(folder):
    change_record(folder, lambda record: record["data"].pop("test"))


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (without_checkpoints, "has not saved a checkpoint yet"),
        (just_begun, "There are no curves"),
        (stopped, "1 of 2 epochs are finished"),
        (out_of_patience, "The run ended after 2 of 9 epochs: no better for 1 (patience)."),
        (of_an_object, "object Mine, are not in jaxcnn.data.DATASETS"),
        (of_other_data, "is not the one of the run any more"),
        (without_test_set, "The model cannot be evaluated: the run has no test set."),
    ],
)
def test_what_cannot_be_shown_is_said(change, note, run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    change(folder)
    content = write_report(folder, tmp_path / "report.html").read_text()
    assert note in Page(content).text
    assert ("Kernels of the first convolution" in content) == (folder / "checkpoints").is_dir()
    assert ("<h3>Confusion matrix" in content) == (change in (stopped, out_of_patience))


def test_another_data_set_takes_the_place_of_one_that_is_not_there(run, trained, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    of_an_object(folder)
    test = jaxcnn.data.load_fashion_mnist_sample("test")
    content = write_report(folder, tmp_path / "same.html", data=test.first(96)).read_text()
    assert f"On its test images: {trained.evaluate()}" in content
    change_record(folder, lambda record: record["data"].update(validation=record["data"]["test"]))
    change_record(folder, lambda record: record["data"].pop("test"))
    content = write_report(folder, tmp_path / "held_out.html", data=test.first(96)).read_text()
    assert "On its validation images" in content
    change_record(folder, lambda record: record["data"].update(test=test.first(96).digest()))
    content = write_report(folder, tmp_path / "again.html", data=test.first(96)).read_text()
    assert "Best: 95 % interval" in content
    content = write_report(folder, tmp_path / "other.html", data=test.first(32)).read_text()
    assert f"On the given images: {trained.evaluate(test.first(32))}" in content
    assert "Best: 95 % interval" not in content  # of how many images is not known


def test_a_model_without_convolutions(trained):
    image = np.zeros((1, 28, 28, 1), np.float32)
    variables = jax.eval_shape(Tiny().init, jax.random.key(0), image)
    tiny = dataclasses.replace(trained, model=Tiny(), variables=variables)
    assert find_convolutions(tiny, None) == []
    assert "The model has no convolution" in render([make_run(checkpoint="step 2")], vega="")


def test_convolutions_are_those_of_the_computation(trained):
    image = jaxcnn.data.load_fashion_mnist_sample("test").images[0]
    first, second = find_convolutions(trained, image)
    assert (first.name, second.name) == ("conv1", "conv2")
    params = trained.variables["params"]["conv1"]
    x = np.float32(image[None] / 255)
    expected = nn.relu(jaxcnn.conv2d(x, params["kernel"], params["bias"], padding=2))
    np.testing.assert_allclose(first.maps, expected[0], atol=1e-5)
    kernels = first.kernel_pictures()
    values = np.stack([kernel[..., 0] for kernel in kernels], axis=-1)
    extreme = np.abs(params["kernel"]).argmax()
    assert np.ravel(values)[extreme] in (0, 255)
    assert [picture.shape for picture in second.map_pictures()] == 16 * [(10, 10, 1)]
    assert all(picture.max() in (0, 255) for picture in first.map_pictures())


def test_convolutions_come_in_the_order_of_the_calls(trained):
    class Mixed(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = nn.Conv(3, (3, 3), name="z")(x)
            x = nn.Conv(200, (28, 28), padding="VALID", name="y")(x)
            return nn.Dense(10)(nn.Conv(4, (1, 1), name="a")(x)[:, 0, 0])

    image = np.zeros((1, 28, 28, 1), np.float32)
    shapes = jax.eval_shape(Mixed().init, jax.random.key(0), image)
    variables = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
    mixed = dataclasses.replace(trained, model=Mixed(), variables=variables)
    found = find_convolutions(mixed, None)
    assert [layer.name for layer in found] == ["z", "y", "a"]
    assert [len(layer.kernel_pictures()) for layer in found] == [3, 64, 4]
    assert found[1].kernel_pictures()[0].shape == (28, 28, 3)
    maps = find_convolutions(mixed, np.full((28, 28, 1), 255, np.uint8))
    assert [len(layer.map_pictures()) for layer in maps] == [3, 0, 0]


# --- What is refused, before any work ---


@pytest.mark.parametrize(
    ("folders", "path", "words"),
    [
        ([], "report.html", "no run to report"),
        (["run", "./run"], "report.html", "is given twice"),
        (["none"], "report.html", "is no folder; give the folder of a run"),
        (["run"], "report.pdf", "must end in .html"),
        (["run"], "none/report.html", "(No such file or directory)"),
        (["run"], "there.html", "exists; give another name"),
        (["run"], "folder.html", "is a folder"),
        (["run"], f"{'x' * 300}.html", "cannot write"),
    ],
)
def test_wrong_calls_are_refused_at_once(folders, path, words, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").symlink_to(run)
    (tmp_path / "there.html").write_text("old")
    (tmp_path / "folder.html").mkdir()
    monkeypatch.setattr(page_module, "collect", pytest.fail)
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        write_report(folders, path)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "there.html").read_text() == "old"


def test_a_wrong_checkpoint_or_data_set_is_refused(run, tmp_path):
    with pytest.raises(ConfigError, match="which is 'bset'; it must be 'best'"):
        write_report(run, tmp_path / "report.html", which="bset")
    data = Dataset(np.zeros((2, 2)), np.arange(2), ("a", "b"))
    with pytest.raises(ConfigError, match=r"data\.images is float64"):
        write_report(run, tmp_path / "report.html", data=data)


@pytest.mark.parametrize("package", ["jinja2", "vl_convert"])
def test_a_missing_package_is_named(package, run, tmp_path, monkeypatch):
    page_module._vega.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"{package}.*pip install 'jaxcnn\[report\]'"):
        write_report(run, tmp_path / "report.html")


def test_force_replaces_and_a_failure_leaves_the_old_page(run, tmp_path, monkeypatch):
    monkeypatch.setattr(page_module, "_vega", str)
    monkeypatch.setattr(page_module, "collect", lambda *_: make_run())
    path = tmp_path / "report.html"
    path.write_text("old")
    fail = OSError(28, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(fail))
        with pytest.raises(ConfigError, match=r"cannot write .* \(No space left on device\)"):
            write_report(run, path, force=True)
    assert path.read_text() == "old"
    assert write_report(run, path, force=True) == path
    assert path.read_text().startswith("<!doctype html>")
    assert list(tmp_path.iterdir()) == [path]


# --- In a browser ---


class Browser:
    """Headless Chromium, driven by its DevTools protocol: JSON through two pipes."""

    def __init__(self, profile):
        (self._answers, theirs), (reads, self._calls) = os.pipe(), os.pipe()
        self._process = subprocess.Popen(
            [
                *("bash", "-c", f'exec "$@" 3<&{reads} 4>&{theirs}', "bash"),
                *(CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"),
                *("--disable-dev-shm-usage", "--remote-debugging-pipe"),
                *(f"--user-data-dir={profile}", "about:blank"),
            ],
            pass_fds=(reads, theirs),
            stderr=subprocess.DEVNULL,
        )
        os.close(reads)
        os.close(theirs)
        self._received, self._count, self._session = b"", 0, {}
        self.events = []
        target = self.call("Target.createTarget", url="about:blank")
        attached = self.call("Target.attachToTarget", flatten=True, **target)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self):
        self._session = {}
        self.call("Browser.close")
        self._process.wait(30)
        os.close(self._calls)
        os.close(self._answers)

    def call(self, method, **params):
        self._count += 1
        message = {"id": self._count, "method": method, "params": params, **self._session}
        os.write(self._calls, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._count:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _receive(self):
        while b"\0" not in self._received:
            assert select.select([self._answers], [], [], 60)[0], "no answer"
            data = os.read(self._answers, 1 << 20)
            assert data, "Chromium has ended"
            self._received += data
        message, self._received = self._received.split(b"\0", 1)
        return json.loads(message)

    def evaluate(self, script):
        answer = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def resize(self, width):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def open(self, path, width, theme):
        """Open a page, and wait for its charts."""
        self.events.clear()
        self.resize(width)
        scheme = {"name": "prefers-color-scheme", "value": theme}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=path.as_uri())
        self.wait(
            "document.readyState == 'complete' && "
            "[...document.querySelectorAll('.chart')].every(chart => chart.querySelector('svg'))"
        )

    def wait(self, condition):
        """Wait until an expression in JavaScript is true, for at most 30 seconds."""
        script = (
            "new Promise(done => { const end = Date.now() + 30000; const look = () =>"
            f" ({condition}) ? done(true) : Date.now() > end ? done(false) : setTimeout(look, 20);"
            " look(); })"
        )
        assert self.evaluate(script), condition

    def style(self, selector, name):
        return self.evaluate(f"getComputedStyle(document.querySelector({selector!r})).{name}")

    def point_at(self, selector):
        """Move the mouse to the middle of an element."""
        x, y = self.evaluate(
            f"(e => {{ e.scrollIntoView({{block: 'center'}}); const r = e.getBoundingClientRect();"
            f" return [r.x + r.width / 2, r.y + r.height / 2]; }})"
            f"(document.querySelector({selector!r}))"
        )
        for step in (3, 0):
            self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x - step, y=y)
        return x, y

    def complaints(self):
        """Return what the console has, and what the page has asked of the network."""
        kinds = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        found = [event for event in self.events if event["method"] in kinds]
        sent = (event["params"] for event in self.events if "requestWillBeSent" in event["method"])
        urls = [each["request"]["url"] for each in sent if "request" in each]
        return found + [url for url in urls if not url.startswith(("file:", "data:"))]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("needs Debian's package chromium")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_in_a_browser(theme, both, browser):
    browser.open(both, 1600, theme)
    dark = browser.style("body", "backgroundColor") == "rgb(20, 23, 26)"
    assert dark == (theme == "dark")
    assert browser.evaluate("document.querySelectorAll('.chart svg').length") == 4
    assert browser.evaluate("document.querySelectorAll('article table.figures').length") == 2
    assert browser.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    for width in (1600, 800, 360):
        browser.resize(width)
        browser.wait(
            "[...document.querySelectorAll('.chart')].every(chart => Math.abs("
            "chart.querySelector('svg').getBoundingClientRect().width - chart.clientWidth) < 2)"
        )
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        places = browser.evaluate(
            "['loss', 'accuracy'].map(id => document.getElementById(id).getBoundingClientRect().x)"
        )
        assert (places[0] == places[1]) == (width < 1600)  # one below the other
    assert browser.complaints() == []


@pytest.mark.slow
def test_the_charts_follow_the_chosen_theme(both, browser):
    browser.open(both, 800, "light")
    line = "#loss .mark-line path"
    before = browser.style(line, "stroke"), browser.style("body", "backgroundColor")
    browser.evaluate("document.getElementById('dark').click()")
    after = browser.style(line, "stroke"), browser.style("body", "backgroundColor")
    assert before[0] != after[0]
    assert (before[1], after[1]) == ("rgb(255, 255, 255)", "rgb(20, 23, 26)")
    assert browser.complaints() == []


@pytest.mark.slow
def test_hovering_shows_the_values(both, browser, trained):
    tooltip = "#vg-tooltip-element"
    shown = f"document.querySelector('{tooltip}.visible')"
    browser.open(both, 1600, "light")
    browser.point_at("#accuracy .mark-symbol path")
    browser.wait(shown)
    text = browser.evaluate(f"{shown}.innerText").split()
    assert (text[::2], text[1]) == (["run", "split", "epoch", "accuracy"], "first")
    split, epoch, accuracy = text[3], int(text[5]), float(text[7])
    key = {"training": "train_accuracy", "test": "test_accuracy"}[split]
    assert accuracy == pytest.approx(trained.history[epoch - 1][key], rel=1e-4)
    browser.point_at("#confusion-1 .mark-rect path")
    browser.wait(f"{shown} && {shown}.innerText.includes('predicted')")
    text = browser.evaluate(f"{shown}.innerText").split("\n")
    confusion = trained.evaluate().confusion
    i, j = np.argwhere(confusion)[0]
    cells = [re.split(r"\s{2,}|\t", line)[-1] for line in text]
    assert trained.class_names[i] in text[0]
    assert trained.class_names[j] in text[1]
    assert cells[2:] == [f"{confusion[i, j]}", f"{confusion[i, j] / confusion[i].sum():.1%}"]
    assert browser.complaints() == []
