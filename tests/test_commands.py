"""The commands: what each prints and writes, and what becomes of wrong calls and bad input."""

import io
import json
import os
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jaxcnn
from conftest import CACHED, small_config
from jaxcnn import trained as trained_module
from jaxcnn.cli import data, evaluate, predict
from jaxcnn.cli.main import COMMANDS, main
from jaxcnn.data import Dataset, load_fashion_mnist_sample
from jaxcnn.scores import evaluate_logits

pytestmark = CACHED

NAMES = [module.__name__.rpartition(".")[2] for module in COMMANDS]
TEST = load_fashion_mnist_sample("test").first(100)


@pytest.fixture(autouse=True)
def terminal_of_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture(scope="module")
def run(tmp_path_factory, compile_cache):
    """The folder of a run of one epoch."""
    folder = tmp_path_factory.mktemp("runs") / "modern"
    config = small_config(
        model="lenet_modern", num_epochs=1, max_train_examples=64, max_test_examples=100
    )
    jaxcnn.train.train_and_evaluate(config, folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of the first five test images, and of one that is larger and in colour."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, image in enumerate(TEST.images[:5, ..., 0]):
        Image.fromarray(image).save(folder / f"{number}.png")
    large = Image.fromarray(TEST.images[5, ..., 0]).resize((45, 60)).convert("RGB")
    large.save(folder / "large.bmp")
    return folder


@pytest.fixture
def call(capsys):
    """Call a command; give its exit status and the lines of standard output and error."""

    def call(*argv):
        capsys.readouterr()  # of what came before
        status = main([str(each) for each in argv])
        printed = capsys.readouterr()
        return status, printed.out.splitlines(), printed.err.splitlines()

    return call


@pytest.fixture
def results(call):
    """Call a command that succeeds; give the lines, which fit the terminal unless they are JSON."""

    def results(*argv):
        status, out, err = call(*argv)
        assert (status, err) == (0, [])
        for line in out if "--json" not in argv else []:
            for path in argv:  # which may be as long as it is
                line = line.replace(f"{path}", "path") if isinstance(path, Path) else line
            assert len(line) <= int(os.environ["COLUMNS"]), line
        return out

    return results


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# evaluate


def test_evaluate_prints_scores_and_confusions(run, results):
    expected = jaxcnn.load(run).evaluate()
    low, high = expected.interval
    out = results("evaluate", run)
    assert out[0] == f"run       {run}"
    assert out[1] == "model     lenet_modern on fashion_mnist_sample, step 2 (epoch 1)"
    assert out[2] == "data      100 images of the test set"
    accuracy = f"{expected.accuracy:.4f} (95 % interval {low:.4f} to {high:.4f})"
    assert out[3] == f"accuracy  {accuracy}"
    assert out[4] == f"loss      {expected.loss:.4f}"
    assert out[6:17] == expected.table().splitlines()
    confusion = np.array([line.split()[-10:] for line in out[20:]], int)
    np.testing.assert_array_equal(confusion, expected.confusion)


def test_evaluate_says_of_the_best_what_chose_it(run, results, tmp_path):
    two = shutil.copytree(run, tmp_path / "two")
    rows = rows_of(run)
    text = "".join(f"{json.dumps(row)}\n" for row in [*rows, rows[0] | {"epoch": 2}])
    (two / "metrics.jsonl").write_text(text)
    for folder, options, is_told in ((two, (), True), (two, ("--which", "last"), False)):
        out = results("evaluate", folder, *options)
        assert any(line.startswith("note      the best of several") for line in out) == is_told
    assert not any(line.startswith("note") for line in results("evaluate", run))


def test_evaluate_as_json(run, results):
    [line] = results("evaluate", run, "--json", "--which", "last")
    found, [row] = json.loads(line), rows_of(run)
    assert found["accuracy"] == row["test_accuracy"]
    assert found["loss"] == pytest.approx(row["test_loss"], rel=1e-5)
    assert (found["step"], found["split"], found["count"]) == (2, "test", 100)
    assert np.sum(found["confusion"]) == 100
    names = [entry["name"] for entry in found["classes"]]
    assert names == list(TEST.class_names)
    assert all(entry["precision"] is None or entry["precision"] <= 1 for entry in found["classes"])
    [line] = results("evaluate", run, "--json", "--split", "train")
    assert json.loads(line)["count"] == 64


def test_a_confusion_matrix_that_is_too_wide_gives_way_to_the_mistakes():
    names = tuple(f"a class with a rather long name, number {i}" for i in range(100))
    labels = np.repeat(np.arange(100), 3)
    logits = np.eye(100)[np.where(labels == 7, 8, labels)]
    out = list(evaluate._confusion(evaluate_logits(logits, labels, names)))
    assert out[1].split() == ["true", "class", "predicted", "images"]
    [row] = out[2:]
    shown = "a class with a rather long name, n…"
    assert row == f"{shown}  {shown}       3"
    assert max(map(len, out)) <= 80


def test_most_frequent_mistakes_come_first_and_what_never_happens_not_at_all():
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2])
    predicted = np.array([1, 1, 0, 0, 1, 2, 0, 0])
    evaluation = evaluate_logits(np.eye(60)[predicted], labels, tuple(f"c{i}" for i in range(60)))
    rows = [line.split() for line in list(evaluate._confusion(evaluation))[2:]]
    assert rows == [["c0", "c1", "2"], ["c2", "c0", "2"], ["c1", "c0", "1"]]


# predict


def test_predict_shows_the_three_best_of_a_picture(run, pictures, results):
    [best] = jaxcnn.load(run).predict(TEST.images[0]).top(3)
    out = results("predict", run, pictures / "0.png")
    assert out[0] == f"{pictures / '0.png'}"
    assert [line.rsplit(maxsplit=1) for line in out[1:]] == [
        [f"  {name}".rstrip(), f"{probability:.4f}"] for name, probability in best
    ]


def test_predict_shows_a_folder_as_a_table(run, pictures, results):
    expected = jaxcnn.load(run).predict([pictures])
    out = results("predict", run, pictures)
    assert out[0] == f"{pictures}:"
    assert out[1].split() == ["picture", "class", "2nd", "3rd"]
    for line, path, top in zip(out[2:], expected.paths, expected.top(), strict=True):
        words = [part for name, p in top for part in (*name.split(), f"{p:.4f}")]
        assert line.split() == [path.name, *words]
    narrow = results("predict", run, pictures, "--top", 10)
    assert narrow[1] == "0.png"
    assert narrow[2].startswith(f"  {expected.top()[0][0][0]} 0.")


def test_predict_as_json_in_the_order_given(run, pictures, results):
    paths = [pictures / "4.png", pictures]
    expected = jaxcnn.load(run).predict(paths)
    for extra in ([], ["--batch-size", 2]):
        found = [json.loads(line) for line in results("predict", run, *paths, "--json", *extra)]
        assert [each["path"] for each in found] == [f"{path}" for path in expected.paths]
        assert [each["class"] for each in found] == expected.names
        for each, top in zip(found, expected.top(), strict=True):
            assert each["probability"] == each["top"][0]["probability"]
            assert [entry["class"] for entry in each["top"]] == [name for name, _ in top]
            probabilities = [entry["probability"] for entry in each["top"]]
            np.testing.assert_allclose(probabilities, [p for _, p in top], rtol=1e-5)


def test_predict_inverts_drawings(run, pictures, results, tmp_path):
    Image.fromarray(255 - TEST.images[0, ..., 0]).save(tmp_path / "0.png")
    light = results("predict", run, pictures / "0.png")
    dark = results("predict", run, tmp_path / "0.png", "--invert")
    assert dark[1:] == light[1:]
    assert results("predict", run, tmp_path / "0.png")[1:] != light[1:]


def test_pictures_are_read_a_batch_at_a_time(monkeypatch):
    sizes = [1, 1, 1, 4, 4, 1]
    read = ((Path(f"{i}"), np.zeros((size, 1, 1), np.uint8)) for i, size in enumerate(sizes))
    monkeypatch.setattr(predict, "_MAX_BYTES", 6)
    batches = [[len(image) for _, image in batch] for batch in predict._batches(read, 3)]
    assert batches == [[1, 1, 1], [4, 4], [1]]


def test_predict_goes_on_past_bad_files(run, pictures, call, tmp_path):
    shutil.copy(pictures / "0.png", tmp_path / "good.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("no picture")
    status, out, err = call("predict", run, tmp_path, "none.png", pictures / "1.png", "--json")
    assert status == 1
    paths = [json.loads(line)["path"] for line in out]
    assert paths == [f"{tmp_path / 'good.png'}", f"{pictures / '1.png'}"]
    assert err == [
        "jaxcnn predict: there is no file or folder 'none.png'",
        f"jaxcnn predict: '{tmp_path / 'empty.png'}' is empty",
        f"jaxcnn predict: '{tmp_path / 'text.jpg'}' is no picture that can be read",
    ]
    status, out, err = call("predict", run, tmp_path / "empty.png")
    assert (status, out) == (2, [])
    assert err == [f"jaxcnn predict: '{tmp_path / 'empty.png'}' is empty"]


# export, report


def test_export_writes_a_file_once(run, call, results, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path("modern.safetensors")
    [line] = results("export", run, path)
    content = path.read_bytes()
    assert line == f"{path}: {len(content):,} bytes, step 2 of {run}"
    with monkeypatch.context() as patch:
        patch.setattr(trained_module, "load", pytest.fail)  # it is refused before any work
        status, _, err = call("export", run, path)
    assert status == 2
    assert err == [
        f"jaxcnn export: {str(path)!r} exists; give another name, or --force to replace it"
    ]
    path.write_text("older")
    results("export", run, path, "--force", "--names", "d2l")
    assert path.stat().st_size == len(content)
    assert list(Path().iterdir()) == [path]


def test_report_writes_a_page(run, call, results, tmp_path, monkeypatch):
    def write_report(folders, path, which, *, title, force):
        path.write_text(f"{folders} {which} {title} {force}")
        return path

    monkeypatch.setattr("jaxcnn.report.write_report", write_report)
    path = tmp_path / "page.html"
    assert results("report", run, run, "-o", path, "--which", "last") == [f"{path}"]
    assert path.read_text() == f"{[str(run)] * 2} last None False"
    status, _, err = call("report", run, "-o", path)
    assert (status, len(err)) == (2, 1)
    results("report", run, "-o", path, "--force", "--title", "mine")
    assert path.read_text() == f"{[str(run)]} best mine True"


# compare


def edited(run, folder, rows=None, **settings):
    """A copy of a run's records, with other settings and rows."""
    folder.mkdir()
    record = json.loads((run / "run.json").read_text())
    record["config"] |= settings
    (folder / "run.json").write_text(json.dumps(record))
    lines = (json.dumps(row) for row in (rows_of(run) if rows is None else rows))
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return folder


def test_compare_sorts_runs_and_tells_what_differs(run, results, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    [row] = rows_of(run)
    later = {**row, "epoch": 2, "step": 4, "test_accuracy": 0.25, "test_loss": 2.0}
    edited(run, Path("begun"), [], learning_rate=0.3)
    edited(run, Path("same"))
    edited(run, Path("good"), [row | {"test_accuracy": 0.5}, later], num_epochs=2)
    accuracy, loss = f"{row['test_accuracy']:.4f}", f"{row['test_loss']:.4f}"
    seconds = sum(row[f"{part}_seconds"] for part in ("train", "test", "compile"))
    monkeypatch.setenv("COLUMNS", "60")
    out = results("compare", "begun", "same", "good")
    assert out[2].split() == ["epochs", "best", "last", "loss", "seconds", "run"]
    assert [line.split() for line in out[3:]] == [
        ["2/2", "0.5000", "0.2500", "2.0000", f"{2 * seconds:,.1f}", "good"],
        ["learning_rate=0.1,", "num_epochs=2"],
        ["1/1", accuracy, accuracy, loss, f"{seconds:,.1f}", "same"],
        ["learning_rate=0.1,", "num_epochs=1"],
        ["0/1", "-", "-", "-", "0.0", "begun"],
        ["learning_rate=0.3,", "num_epochs=1"],
    ]
    monkeypatch.setenv("COLUMNS", "80")
    _, _, heading, *wide = results("compare", "begun", "good")
    assert heading.split()[-3:] == ["run", "learning_rate", "num_epochs"]
    assert [line.split()[-3:] for line in wide] == [["good", "0.1", "2"], ["begun", "0.3", "1"]]
    best, worst = (json.loads(line) for line in results("compare", "begun", "good", "--json"))
    assert (best["run"], worst["run"]) == ("good", "begun")
    assert (best["best_accuracy"], best["best_epoch"], best["last_accuracy"]) == (0.5, 1, 0.25)
    assert best["seconds"] == pytest.approx(2 * seconds)
    assert worst["best_accuracy"] is None
    assert worst["differing"] == {"learning_rate": 0.3, "num_epochs": 1}


def test_compare_of_runs_that_choose_by_other_sets(run, results, tmp_path, monkeypatch):
    """Each run by its own set; what was chosen by validation has the test accuracy beside it."""
    monkeypatch.chdir(tmp_path)
    [row] = rows_of(run)
    own = {key: value for key, value in row.items() if not key.startswith("test_")}
    validated = own | {
        "validation_loss": 1.25,
        "validation_accuracy": 0.75,
        "validation_seconds": 100.0,
    }
    folders = {"validated": [validated], "tested": [row], "neither": [own]}
    for name, rows in folders.items():
        edited(run, Path(name), rows)
    record = json.loads(Path("validated/run.json").read_text())
    record["result"] = {"test": {"epoch": 1, "step": row["step"], "test_accuracy": 0.6875}}
    Path("validated/run.json").write_text(json.dumps(record))
    out = results("compare", "neither", "validated", "tested")
    assert out[0] == "accuracy (best and last) and loss on each run's own set, seconds in all"
    heading = ["epochs", "on", "best", "last", "loss", "test", "seconds", "run"]
    assert out[2].split()[:8] == heading
    first, second, third = (line.split()[:8] for line in out[3:6])
    seconds = f"{own['train_seconds'] + own['compile_seconds'] + 100:,.1f}"
    figures = ["0.7500", "0.7500", "1.2500", "0.6875", seconds]
    assert first == ["1/1", "validation", *figures, "validated"]
    assert (second[1], second[5], second[7]) == ("test", "-", "tested")
    assert (third[1], third[2]) == ("train", f"{row['train_accuracy']:.4f}")
    assert results("compare", "validated")[0].startswith("validation accuracy (best and last)")
    found = json.loads(results("compare", "validated", "--json")[0])
    assert (found["split"], found["test_accuracy"]) == ("validation", 0.6875)
    assert (found["best_accuracy"], found["best_epoch"]) == (0.75, 1)


def test_long_names_of_runs_have_lines_of_their_own(run, results, tmp_path, monkeypatch):
    for number, name in enumerate("ab"):
        edited(run, tmp_path / (50 * name), seed=number)
    monkeypatch.chdir(tmp_path)
    out = results("compare", *sorted(os.listdir()))
    assert out[2].split()[-1] == "seconds"
    assert out[4:6] == [f"    {50 * 'a'}", "    seed=0"]


def test_runs_that_differ_in_nothing_say_so(run, results, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        edited(run, Path(name))
    assert results("compare", "a", "b")[-1] == "the runs differ in no setting"
    assert results("compare", "a")[3:][0].endswith("  a")
    record = json.loads(Path("a/run.json").read_text())
    record["data"]["test"] = "0" * 64
    Path("a/run.json").write_text(json.dumps(record))
    a = next(line for line in results("compare", "a", "b") if "  a  " in line)
    assert a.endswith(" 000000000000")


def test_compare_goes_on_past_what_is_no_run(run, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("good", "damaged"):
        edited(run, Path(name))
    Path("damaged/metrics.jsonl").write_text("{}\n")
    status, out, err = call("compare", ".", "good", "damaged", "none")
    assert status == 1
    assert out[3].endswith("  good")
    assert [line.partition("; ")[0] for line in err] == [
        "jaxcnn compare: '.' has no run.json",
        "jaxcnn compare: line 1 of 'damaged/metrics.jsonl' is damaged",
        "jaxcnn compare: 'none' is no folder",
    ]
    status, out, err = call("compare", "none")
    assert (status, out, len(err)) == (2, [], 1)


# data


def test_data_tells_what_a_data_set_holds(call, results, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path("samples.png")
    out = results("data", "fashion_mnist_sample", "-o", path)
    whole = load_fashion_mnist_sample("test")
    assert out[2] == "test   1,000 images of 28 x 28 x 1, SHA-256"
    assert out[3].strip() == whole.digest()
    assert [line.split()[-2:] for line in out[6:16]] == [["200", "100"]] * 10
    assert out[16] == "10 classes   2,000  1,000"
    assert out[-1] == f"samples in {path}"
    with Image.open(path) as sheet:
        assert (sheet.format, sheet.height) == ("PNG", 604)
    status, _, err = call("data", "fashion_mnist_sample", "-o", path)
    assert (status, len(err)) == (2, 1)


def test_a_sheet_has_ten_images_of_each_class_in_rows():
    labels = np.arange(36, dtype=np.int32) // 12  # of four classes; the last has no images
    images = np.zeros((36, 8, 4, 3), np.uint8)
    images[..., 1] = 10 * labels[:, None, None] + 7
    images[12:17] = 99  # of the second class, the first five
    names = ("cat", "dog", "a name that is longer", "none")
    sheet = np.asarray(data.draw_samples(Dataset(images, labels, names)))
    cells = sheet[4 + 28 :: 60, sheet.shape[1] - 600 + 10 :: 60]  # a pixel of each
    expected = np.zeros((4, 10, 3), int)
    expected[..., 1] = 10 * np.arange(4)[:, None] + 7
    expected[1, :5], expected[3] = 99, 255
    np.testing.assert_array_equal(cells, expected)
    with pytest.raises(jaxcnn.ConfigError, match="have 2 channels"):
        data.draw_samples(Dataset(images[..., :2], labels, names))


def test_names_with_a_tilde_and_of_any_bytes(run, pictures, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("~0.png", os.fsdecode(b"caf\xe9.png")):
        shutil.copy(pictures / "0.png", name)
    status, out, err = call("predict", run, ".")
    assert (status, err, len(out)) == (0, [], 4)
    assert [line.split()[0] for line in out[2:]] == ["caf\\udce9.png", "~0.png"]
    status, out, err = call("predict", run, "./~0.png")
    assert (status, err, Path(out[0]).name) == (0, [], "~0.png")


def test_more_logits_than_classes_have_columns_too(monkeypatch):
    monkeypatch.setenv("COLUMNS", "999")
    best = [(f"logit {i} (no class)", 0.1) for i in range(12)]
    names = tuple(name for name, _ in best)
    header, row = predict._rows([(Path("a.png"), best)], [Path("a.png")], names, 12)
    assert header.index("12th") == row.index("logit 11")
    assert predict._headings(23)[-4:] == ["20th", "21st", "22nd", "23rd"]
    assert predict._headings(13)[-4:] == ["10th", "11th", "12th", "13th"]


# summary, info


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (60, ["shape", "1x12x12x128"]),
        (80, ["name", "shape", "field", "1x12x12x128", "b5_1/conv2", "435x435"]),
        (120, ["name", "output shape", "receptive field", "1 x 12 x 12 x 128", "435 x 435"]),
    ],
)
def test_a_summary_fits_the_terminal(results, monkeypatch, columns, words):
    monkeypatch.setenv("COLUMNS", f"{columns}")
    text = "\n".join(results("summary", "resnet18", "--input", 96))
    for word in ("global_avg_pool", "11,178,378", "318,657,536", *words):
        assert word in text


def test_info_names_the_versions(results):
    out = results("info")
    assert out[0].split() == ["jaxcnn", jaxcnn.__version__]


# all of them


def test_a_call_without_a_command_and_the_version(call):
    assert call("--version") == (0, [f"jaxcnn {jaxcnn.__version__}"], [])
    status, out, _ = call("--help")
    assert status == 0
    listed = [line.split()[0] for line in out if line.startswith("    ") and line[4] != " "]
    assert listed == ["train", *NAMES]
    status, out, err = call()
    assert (status, out, len(err)) == (2, [], 1)


@pytest.mark.parametrize("name", NAMES)
def test_help_has_an_example_and_fits_the_terminal(call, name):
    status, out, err = call(name, "--help")
    assert (status, err) == (0, [])
    assert max(map(len, out)) <= 80
    assert out[-2] == "example:"
    assert out[-1].startswith(f"  jaxcnn {name}")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("evalute runs", "jaxcnn: unknown command 'evalute' (did you mean 'evaluate'?)"),
        ("--frobnicate", "jaxcnn: "),
        ("--verbose train --config lenet", "jaxcnn: unexpected argument '--verbose'"),
        ("evaluate", "jaxcnn evaluate: the following arguments are required: RUN"),
        ("evaluate RUN --jso", "jaxcnn evaluate: unexpected argument '--jso'"),
        ("evaluate RUN --split both", "jaxcnn evaluate: argument --split: invalid choice"),
        ("evaluate none", "jaxcnn evaluate: 'none' is no folder; give the folder of a run"),
        ("evaluate FOLDER", "has no run.json"),
        ("evaluate BEGUN", "has not saved a checkpoint yet"),
        ("evaluate RUN --which 7", "there is no checkpoint of step 7"),
        ("evaluate RUN --which worst", "it must be 'best', 'last' or the number of a step"),
        ("predict RUN", "jaxcnn predict: the following arguments are required: PATH"),
        ("predict RUN FOLDER --top 0", "jaxcnn predict: --top must be at least 1"),
        ("predict RUN FOLDER --batch-size x", "argument --batch-size: invalid int value: 'x'"),
        ("predict RUN http://x.org/a.png", "must be a path of this machine"),
        ("predict BEGUN FOLDER", "has not saved a checkpoint yet"),
        ("export RUN FOLDER", "is a folder; give a file in it"),
        ("export RUN FOLDER/none/x.onnx", "(No such file or directory); give another name"),
        ("export RUN /proc/x.onnx", "jaxcnn export: cannot write '/proc/x.onnx'"),
        ("export RUN FOLDER/model.txt", "must end in one of .onnx"),
        ("report none -o FOLDER", "is a folder; give a file in it"),
        ("data fashionmnist", "(did you mean 'fashion_mnist'?)"),
        ("data fashion_mnist --data-source none", "data source 'none' is not a folder"),
        ("data fashion_mnist_sample -o FOLDER/x.jpg", "must end in .png"),
        ("data fashion_mnist_sample --image-size 96", "are resized while training"),
        ("data folder:FOLDER --image-size 0", "--image-size is 0; it must be at least 1"),
        ("predict RUN FOLDER", "has no pictures"),
        ("summary lenet --depth 0", "jaxcnn summary: --depth is 0; it must be at least 1"),
        ("summary resnet81", "jaxcnn summary: unknown model 'resnet81' (did you mean"),
        ("summary vgg11", "vgg11 takes images of 32 pixels or more, got 28; give a larger --input"),
        ("info now", "jaxcnn info: unexpected argument 'now'"),
    ],
)
def test_wrong_calls_end_in_one_line(run, call, tmp_path, argv, words):
    folders = {"RUN": run, "FOLDER": tmp_path, "BEGUN": tmp_path / "begun"}
    edited(run, folders["BEGUN"], [])
    for name, folder in folders.items():
        argv = argv.replace(name, f"{folder}")
    status, out, err = call(*argv.split())
    assert (status, out) == (2, [])
    [line] = err
    assert words in line


def test_what_libraries_print_and_warn_of_goes_to_standard_error(call, monkeypatch):
    def run(options):
        print("preparing")
        warnings.warn("something\nmore", stacklevel=1)
        yield "result"

    monkeypatch.setattr("jaxcnn.cli.info.run", run)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert call("info") == (0, ["result"], ["preparing", "jaxcnn info: note: something"])


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyboardInterrupt(), 130, "jaxcnn info: stopped"),
        (MemoryError(), 2, "jaxcnn info: MemoryError"),
        (PermissionError(13, "Permission denied", "x"), 2, "jaxcnn info: x: Permission denied"),
        (RuntimeError("no device\nat all"), 2, "jaxcnn info: no device"),
    ],
)
def test_errors_are_one_line(call, monkeypatch, error, status, line):
    def run(options):
        yield "result"
        raise error

    monkeypatch.setattr("jaxcnn.cli.info.run", run)
    found, out, err = call("info")
    assert (found, out, err[-1]) == (status, ["result"], line)


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (BrokenPipeError(32, "Broken pipe"), 141, []),
        (OSError(28, "No space left on device"), 2, ["jaxcnn info: No space left on device"]),
    ],
)
def test_results_that_nobody_takes(capsys, monkeypatch, error, status, words):
    class Closed(io.StringIO):
        def flush(self):
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Closed())
        assert main(["info"]) == status
        assert main(["--version"]) == status
    assert capsys.readouterr().err.splitlines()[: len(words) or None] == words


@pytest.mark.slow
def test_help_does_not_wait_for_jax(run_python):
    code = (
        "import sys; from jaxcnn.cli.main import main; main(['--help']); main(['train', '--help']);"
        "assert not {'jax', 'numpy', 'absl', 'PIL', 'rich'} & set(sys.modules)"
    )
    result = run_python("-c", code)
    assert result.returncode == 0, result.stderr
