"""Whole runs: what they leave, going on bit for bit, and what they refuse."""

import dataclasses
import json
import os
import shutil
import struct
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

import jaxcnn
from conftest import CACHED, UNEVEN, Tiny, small_config
from jaxcnn.config import get_default_config, smoke, to_settings
from jaxcnn.data import load_fashion_mnist_sample
from jaxcnn.data.pipeline import batch_sizes
from jaxcnn.errors import ConfigError, TrainingError
from jaxcnn.models import describe_model
from jaxcnn.train import Metrics, TrainState, loop, train_and_evaluate
from jaxcnn.train.parallel import DataParallel
from jaxcnn.train.prepare import prepare
from jaxcnn.train.programs import Programs
from jaxcnn.train.record.checkpoint import CheckpointWriter
from jaxcnn.train.record.logs import TensorBoard
from jaxcnn.train.record.progress import Progress
from jaxcnn.train.record.report import MIN_BATCH, describe
from jaxcnn.train.record.workdir import MAY_CHANGE, Workdir

pytestmark = CACHED
TIMINGS = {"images_per_second", "compile_seconds"} | {
    f"{split}_seconds" for split in ("train", "validation", "test")
}


def rows(workdir, name="metrics.jsonl"):
    lines = (workdir / name).read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMINGS} for line in lines]


def assert_same_bits(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


def train_tiny(config, folder):
    return train_and_evaluate(config, folder, model=Tiny())


@pytest.fixture
def tiny_config():
    return small_config(**UNEVEN)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, compile_cache):
    """The workdir and the state of a run of `tiny_config`."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, train_tiny(small_config(**UNEVEN), folder)


@pytest.fixture
def finished(trained, tmp_path):
    """A copy of that workdir, to do something to."""
    return shutil.copytree(trained[0], tmp_path / "finished")


def test_a_run_leaves_what_it_promises(tiny_config, trained):
    tmp_path, state = trained
    assert int(state.step) == 16
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in metrics] == [1, 2]
    assert [row["step"] for row in metrics] == [8, 16]
    for row in metrics:
        assert set(row) == TIMINGS - {"validation_seconds"} | {
            "epoch",
            "step",
            "train_loss",
            "train_accuracy",
            "test_loss",
            "test_accuracy",
        }
    assert metrics[0]["compile_seconds"] > 0
    assert metrics[1]["compile_seconds"] == 0
    steps = rows(tmp_path, "steps.jsonl")
    assert [row["step"] for row in steps] == list(range(1, 17))
    weights = [32] * 7 + [16]  # the epoch's loss is the mean over examples, not over batches
    mean = np.average([row["loss"] for row in steps[:8]], weights=weights)
    assert abs(mean - metrics[0]["train_loss"]) < 1e-6
    run = json.loads((tmp_path / "run.json").read_text())
    of_objects = {"model": "object Tiny", "num_classes": 10}
    assert run["config"] == to_settings(tiny_config) | of_objects
    assert run["data"]["train"] != run["data"]["test"]
    assert [start["versions"]["jax"] for start in run["starts"]] == [jax.__version__]
    assert run["starts"][0]["devices"] == ["cpu: cpu"]
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (1080, 432)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["16", "8"]
    assert list((tmp_path / "tensorboard").glob("events*"))


@pytest.mark.slow
def test_going_on_equals_never_having_stopped(tiny_config, tmp_path):
    tiny_config.num_epochs = 3
    straight = train_tiny(tiny_config, tmp_path / "straight")
    for epochs in (1, 3):
        tiny_config.num_epochs = epochs
        resumed = train_tiny(tiny_config, tmp_path / "resumed")
    assert_same_bits(straight, resumed)
    for name in ("metrics.jsonl", "steps.jsonl"):
        assert rows(tmp_path / "straight", name) == rows(tmp_path / "resumed", name)


def test_rows_after_the_checkpoint_and_torn_lines_are_dropped(tiny_config, finished):
    expected = rows(finished)
    with (finished / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "step": 24}\n{"epoch": 4, "st')
    train_tiny(tiny_config, finished)
    assert rows(finished) == expected


def test_a_finished_run_is_left_as_it_is(tiny_config, trained, finished, capsys):
    _, first = trained
    before = (finished / "metrics.jsonl").read_text()
    second = train_tiny(tiny_config, finished)
    assert_same_bits(first, second)
    assert (finished / "metrics.jsonl").read_text() == before
    out = capsys.readouterr().out
    assert "compiled" not in out
    assert "already trained; nothing to do after epoch 2 (step 16)" in out
    assert "done" in out


def test_an_epoch_is_shown_before_its_curves_are_drawn(tiny_config, tmp_path, capsys, monkeypatch):
    shown = []
    monkeypatch.setattr(Workdir, "draw", lambda _: shown.append(capsys.readouterr().out))
    train_tiny(tiny_config, tmp_path)
    assert [f" {epoch}/2 " in lines for epoch, lines in enumerate(shown, 1)] == [True, True]


def test_an_epochs_time_leaves_out_what_is_compiled_once_the_first_step_is_shown(
    tiny_config, tmp_path, monkeypatch
):
    compile_all = Programs.compile_all

    def slowly(programs):
        time.sleep(1.5)
        return compile_all(programs)

    monkeypatch.setattr(Programs, "compile_all", slowly)
    train_tiny(tiny_config, tmp_path)
    first, second = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert first["compile_seconds"] > 1.5 > first["train_seconds"]
    assert second["compile_seconds"] == 0


def test_a_run_that_resumes_draws_no_new_weights(tiny_config, finished, monkeypatch):
    monkeypatch.setattr(DataParallel, "compile_and_run", lambda *_: pytest.fail("weights drawn"))
    train_tiny(tiny_config, finished)


@pytest.mark.slow
def test_a_run_goes_on_over_another_number_of_devices(tmp_path):
    """From eight to four, two and one, and back: the curve is that of one device."""
    config, model = small_config(num_epochs=5), Tiny(dropout_rate=0.0)  # Flax's is each device's
    train_and_evaluate(config, tmp_path / "one", model=model)
    for epochs, (devices, way) in enumerate(
        [(8, "pmap"), (4, "jit"), (2, "pmap"), (1, "pmap"), (8, "jit")], start=1
    ):
        config.update(num_devices=devices, num_epochs=epochs, data_parallel=way)
        state = train_and_evaluate(config, tmp_path / "several", model=model)
        assert len(state.params["Dense_0"]["kernel"].sharding.device_set) == devices
    one, several = (rows(tmp_path / name) for name in ("one", "several"))
    assert [row["step"] for row in several] == [8, 16, 24, 32, 40]
    for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
        np.testing.assert_allclose(*([row[name] for row in each] for each in (several, one)), 1e-5)


def test_the_best_and_the_last_two_are_kept(tmp_path):
    checkpoints = CheckpointWriter(tmp_path)
    for step, accuracy in enumerate((0.1, 0.7, 0.3, None, 0.7, 0.2, 0.6), start=1):
        params = {"w": jnp.float32(step)}
        state = TrainState(step=jnp.int32(step), params=params, batch_stats={}, opt_state=())
        checkpoints.save(step, state, Progress(epoch=step, accuracy=accuracy))
    assert checkpoints.steps in ([2, 6, 7], [5, 6, 7])  # both 2 and 5 were best
    for step in checkpoints.steps:
        restored, progress = checkpoints.restore(step, state)
        assert float(restored.params["w"]) == step == progress.epoch
    checkpoints.close()


@pytest.mark.slow
def test_a_run_with_a_merged_batch(tiny_config, tmp_path):
    tiny_config.update(last_batch="merged", max_train_examples=65, num_epochs=1)
    assert int(train_tiny(tiny_config, tmp_path).step) == 2
    first, second = rows(tmp_path, "steps.jsonl")
    mean = np.average([first["loss"], second["loss"]], weights=[32, 33])
    assert abs(mean - rows(tmp_path)[0]["train_loss"]) < 1e-6
    tiny_config.last_batch = "smaller"
    with pytest.raises(ConfigError, match="last_batch was 'merged' and is 'smaller'"):
        train_tiny(tiny_config, tmp_path)


@pytest.fixture(scope="module")
def prepared(compile_cache):
    return prepare(small_config(), model=Tiny())


def notes(setup, train=None, **changes):
    """The notes on a run of other settings and data, of which nothing is compiled."""
    config = small_config(**changes)
    setup = dataclasses.replace(setup, config=config, train=train or setup.train)
    head, *found = describe(setup, Path("run")).split("\nnote: ")
    assert head.count("\n") == 3
    return found


@pytest.mark.parametrize(
    ("examples", "changes", "words"),
    [
        (33, {}, "the last batch of an epoch has 1 image(s), too few for BatchNorm"),
        (39, {}, "the last batch of an epoch has 7 image(s), too few for BatchNorm"),
        (66, {"batch_size": 8}, "the last batch of an epoch has 2 image(s)"),
        (
            40,
            {"batch_size": 4},
            "batches of 4 are too few for BatchNorm's statistics, which take 8",
        ),
        (41, {"batch_size": 4}, "batches of 4 are too few"),
        (41, {"batch_size": 4, "last_batch": "merged"}, "batches of 4 are too few"),
        (40, {"batch_size": 1}, "batches of 1 are too few"),
        (7, {"batch_size": 7}, "batches of 7 are too few"),
        (40, {}, None),
        (64, {}, None),
        (72, {"batch_size": 8}, None),
        (33, {"last_batch": "merged"}, None),
        (15, {"batch_size": 8, "last_batch": "merged"}, None),
    ],
)
def test_batches_too_small_for_batch_norm_are_noted(prepared, examples, changes, words):
    train = prepared.train.first(examples)
    found = notes(prepared, train, **changes)
    assert len(found) == bool(words)
    if words:
        assert found[0].startswith(words)
    if words and words.startswith("the last"):
        assert "--config.last_batch=merged joins it to the batch before it" in found[0]
    without = prepared.shapes.replace(batch_stats={})
    assert notes(dataclasses.replace(prepared, shapes=without), train, **changes) == []


@pytest.mark.parametrize(
    ("examples", "steps", "more"),
    [
        (64, 2, None),
        (64, 8, "parts of 4 are too few for BatchNorm's statistics, which take 8 or more; give a"),
        (71, 2, "the last batch of an epoch has 7 image(s), too few"),
        (73, 4, "a part of the last batch of an epoch has 4 image(s), too few"),
        (80, 4, None),
    ],
)
def test_parts_that_batch_norm_takes_its_statistics_of_are_noted(prepared, examples, steps, more):
    train = prepared.train.first(examples)
    changes = {"batch_size": 32, "gradient_accumulation_steps": steps}
    first, *others = notes(prepared, train, **changes)
    assert first.startswith(f"BatchNorm takes its statistics of parts of {32 // steps} images, not")
    assert len(others) == bool(more)
    if more:
        assert others[0].startswith(more)
        assert ("config.last_batch=merged" in others[0]) == (examples == 71)
    without = prepared.shapes.replace(batch_stats={})
    assert notes(dataclasses.replace(prepared, shapes=without), train, **changes) == []


def test_no_run_of_d2l_and_no_smoke_run_has_batches_too_small():
    assert batch_sizes(60_000, get_default_config().batch_size) == [128, 96]
    config = smoke(get_default_config(), 28)
    assert min(batch_sizes(config.max_train_examples, config.batch_size)) >= MIN_BATCH


def test_data_whose_results_are_worth_nothing_are_noted(prepared):
    train = prepared.train
    one = train._replace(labels=np.full_like(train.labels, 3))
    assert notes(prepared, one)[0].startswith("all training images are of one class, 'Dress';")
    [note] = notes(prepared, one._replace(labels=0 * one.labels, class_names=("dress",)))
    assert note.startswith("all training images are of one class, 'dress';")
    black = train._replace(images=np.zeros_like(train.images))
    assert notes(prepared, black) == ["every pixel of the training images is 0"]
    assert notes(prepared, prepared.test) == [
        "the test set is the training set, so nothing is measured on other images"
    ]
    others = prepared.test._replace(images=255 - prepared.test.images)  # under the same labels
    assert notes(prepared, others) == notes(prepared) == []


def test_flaws_of_data_that_are_given_as_objects_are_noted():
    train = load_fashion_mnist_sample("train").first(64)
    test = load_fashion_mnist_sample("test").first(64)
    assert notes(prepare(small_config(), model=Tiny(), train=train, test=test)) == []
    images = test.images.copy()
    images[3] = train.images[5]
    twice = train._replace(images=train.images.copy())
    twice.images[train.labels != train.labels[0]] = train.images[0]
    few = test._replace(images=images, labels=np.minimum(test.labels, 8))
    setup = prepare(small_config(), model=Tiny(), train=twice, test=few, validation=test)
    count = int((train.labels != train.labels[0]).sum())
    assert notes(setup) == [
        "1 class without test images: 'Ankle boot'",
        f"{count} images of train with the same pixels as one of another class: "
        f"'train {int((train.labels != train.labels[0]).argmax())}' as 'train 0'",
    ]
    setup = prepare(small_config(), model=Tiny(), train=train, test=few)
    assert notes(setup)[1] == (
        "1 image of test with the same pixels as one of train, so test results are too good: "
        "'test 3' as 'train 5'"
    )
    others = test._replace(class_names=test.class_names[::-1])
    with pytest.raises(ConfigError, match="give both sets the same"):
        prepare(small_config(), model=Tiny(), train=train, test=others)


def test_a_run_shows_its_notes_before_it_compiles(tiny_config, tmp_path, capsys, monkeypatch):
    def stop(setup):
        raise RuntimeError("compiles")

    monkeypatch.setattr(loop, "Programs", stop)
    tiny_config.max_train_examples = 33
    with pytest.raises(RuntimeError, match="compiles"):
        train_tiny(tiny_config, tmp_path)
    assert "\nnote: the last batch of an epoch has 1 image(s), too" in capsys.readouterr().out


def test_other_settings_are_refused_and_nothing_is_overwritten(tiny_config, finished):
    before = (finished / "run.json").read_text()
    unfinished = finished / "checkpoints" / ".unfinished-24"  # not ours to clear away
    unfinished.mkdir()
    tiny_config.learning_rate = 0.5
    tiny_config.seed = 3
    with pytest.raises(ConfigError) as error:
        train_tiny(tiny_config, finished)
    unfinished.rmdir()
    assert "learning_rate was 0.1 and is 0.5; seed was 0 and is 3" in str(error.value)
    assert (finished / "run.json").read_text() == before


def test_settings_may_change_before_the_first_checkpoint(tiny_config, tmp_path):
    for rate in (0.1, 0.5):
        tiny_config.learning_rate = rate
        with Workdir(tmp_path, tiny_config.to_dict(), digests={}, environment={}):
            pass
    assert json.loads((tmp_path / "run.json").read_text())["config"]["learning_rate"] == 0.5


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits_and_another_others(tiny_config, tmp_path):
    tiny_config.num_epochs = 1
    first = train_tiny(tiny_config, tmp_path / "a")
    again = train_tiny(tiny_config, tmp_path / "b")
    assert_same_bits(first, again)
    tiny_config.seed = 1
    other = train_tiny(tiny_config, tmp_path / "c")
    assert (first.params["Dense_0"]["kernel"] != other.params["Dense_0"]["kernel"]).any()


def test_a_workdir_in_use_is_refused(tiny_config, tmp_path):
    with (
        Workdir(tmp_path, tiny_config.to_dict(), digests={}, environment={}),
        pytest.raises(ConfigError, match=f"process {os.getpid()}"),
    ):
        train_tiny(tiny_config, tmp_path)
    train_tiny(tiny_config, tmp_path)  # free again


@pytest.mark.slow
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_taken(
    tiny_config, trained, finished, capsys
):
    _, straight = trained
    expected = rows(finished)
    for path in (finished / "checkpoints" / "16" / "state").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    resumed = train_tiny(tiny_config, finished)
    assert "checkpoint 16 is damaged" in capsys.readouterr().out
    assert_same_bits(straight, resumed)
    assert rows(finished) == expected
    assert [p.name for p in (finished / "damaged").iterdir()] == ["16-0"]
    assert sorted(p.name for p in (finished / "checkpoints").iterdir()) == ["16", "8"]


def test_no_good_checkpoint_is_an_error(tiny_config, finished):
    for step in ("8", "16"):
        (finished / "checkpoints" / step / "state" / "_METADATA").unlink()
    with pytest.raises(ConfigError, match=r"no checkpoint .* is good"):
        train_tiny(tiny_config, finished)


def test_another_environment_is_noted(tiny_config, finished, capsys):
    run = json.loads((finished / "run.json").read_text())
    run["starts"][0]["versions"]["jax"] = "0.1"
    (finished / "run.json").write_text(json.dumps(run))
    for noted in (True, False):  # noted once, then it is the last start's
        train_tiny(tiny_config, finished)
        assert ("note: versions was {'jaxcnn'" in capsys.readouterr().out) == noted


def test_how_it_is_computed_may_change(tiny_config, trained, finished, capsys, monkeypatch):
    monkeypatch.setenv("JAXCNN_IMPLEMENTATION", "xla")
    tiny_config.update(steps_per_call=3, checkpoint_every_steps=2)
    assert_same_bits(train_tiny(tiny_config, finished), trained[1])
    assert "note: convolution was auto; oneDNN" in capsys.readouterr().out
    assert json.loads((finished / "run.json").read_text())["config"]["steps_per_call"] == 3


@pytest.mark.parametrize("key", MAY_CHANGE)
def test_a_setting_that_makes_no_other_run_may_change(tiny_config, finished, key):
    settings = json.loads((finished / "run.json").read_text())
    changed = settings["config"] | {key: f"another than {settings['config'][key]}"}
    with Workdir(finished, changed, settings["data"], settings["starts"][-1]):
        assert json.loads((finished / "run.json").read_text())["config"] == changed
    with pytest.raises(ConfigError, match="seed was 0 and is 1"):
        Workdir(finished, changed | {"seed": 1}, settings["data"], {})


def test_a_model_with_another_field_is_another_run(finished):
    record = json.loads((finished / "run.json").read_text())
    given = record["config"], record["data"], record["starts"][-1]
    model = jaxcnn.VGG(arch=((1, 4),), dropout_rate=0.5)
    with Workdir(finished, *given, {"module": describe_model(model)}):
        pass
    for other, words in (
        (model.clone(dropout_rate=0.25), "the model's dropout_rate was 0.5 and is 0.25"),
        (jaxcnn.LeNet(), "the model was 'vgg' and is 'lenet'"),
    ):
        with pytest.raises(ConfigError, match=words):
            Workdir(finished, *given, {"module": describe_model(other)})
    fields = {"name": "vgg", "fields": {"dropout_rate": 0.5, "of_another_version": 1}}
    with Workdir(finished, *given, {"module": fields}):
        pass


def test_other_data_are_refused(tiny_config, finished):
    run = json.loads((finished / "run.json").read_text())
    run["data"]["test"] = "0" * 64
    (finished / "run.json").write_text(json.dumps(run))
    with pytest.raises(ConfigError, match="holds a run on other data"):
        train_tiny(tiny_config, finished)


def test_logs_without_checkpoints_are_not_overwritten(tiny_config, finished):
    shutil.rmtree(finished / "checkpoints")
    before = (finished / "metrics.jsonl").read_text()
    with pytest.raises(ConfigError, match="has logs but no checkpoints any more"):
        train_tiny(tiny_config, finished)
    tiny_config.seed = 5
    with pytest.raises(ConfigError, match="seed was 0 and is 5"):
        train_tiny(tiny_config, finished)
    (finished / "run.json").unlink()
    with pytest.raises(ConfigError, match=r"run\.json cannot be read"):
        train_tiny(tiny_config, finished)
    assert (finished / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize("line", [b"{", b"3", b"null", b'{"epoch": 1}', b"\xff"])
def test_a_damaged_line_within_a_log_is_named(tiny_config, finished, line):
    path = finished / "metrics.jsonl"
    first, second = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([first, line, second, b""]))
    with pytest.raises(ConfigError, match=r"line 2 of .*metrics\.jsonl' is damaged"):
        train_tiny(tiny_config, finished)


def scalars(folder):
    """The scalars in the event files of a folder: (step, name, value)."""
    found = []
    for file in sorted(folder.iterdir()):
        content, start = file.read_bytes(), 0
        while start < len(content):  # records: length, its checksum, data, their checksum
            (length,) = struct.unpack_from("<Q", content, start)
            event = Event.FromString(content[start + 12 : start + 12 + length])
            found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
            start += length + 16
    return found


def test_every_row_is_in_the_tensorboard_files_at_once(tmp_path):
    writer = TensorBoard(tmp_path / "tensorboard", step=0)
    writer.write({"epoch": 1, "step": 8, "train_loss": 0.5, "test_accuracy": 0.25})
    written = [(8, "train_loss", 0.5), (8, "test_accuracy", 0.25)]
    assert scalars(tmp_path / "tensorboard") == written
    again = TensorBoard(tmp_path / "tensorboard", step=8)
    again.write({"epoch": 2, "step": 16, "train_loss": 0.25})
    writer.close()
    again.close()
    assert set(scalars(tmp_path / "tensorboard")) == {*written, (16, "train_loss", 0.25)}


@pytest.mark.parametrize(
    "content",
    [None, "", "{", "[]", '{"config": {}}', '{"config": [1], "data": {}, "starts": {}}'],
)
def test_unreadable_config_beside_checkpoints_is_refused(tiny_config, finished, content):
    (finished / "run.json").unlink()
    if content is not None:
        (finished / "run.json").write_text(content)
    with pytest.raises(ConfigError, match=r"run\.json cannot be read"):
        train_tiny(tiny_config, finished)


def test_a_finished_run_without_its_metrics_says_so(tiny_config, finished, capsys):
    (finished / "metrics.jsonl").unlink()
    train_tiny(tiny_config, finished)
    assert "nothing to show" in capsys.readouterr().out


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(tiny_config, tmp_path):
    tiny_config.learning_rate = 1e30
    with pytest.raises(TrainingError, match=r"^the loss is (nan|inf) at step [1-8];.* smaller"):
        train_tiny(tiny_config, tmp_path / "bad")
    assert not list((tmp_path / "bad" / "checkpoints").iterdir())


def test_a_test_loss_that_is_not_finite_stops_the_run(tiny_config, tmp_path, monkeypatch):
    nan = Metrics(jnp.float32(jnp.nan), jnp.float32(1), jnp.float32(2))
    monkeypatch.setattr(Programs, "evaluate", lambda *args: iter([nan]))
    with pytest.raises(TrainingError, match=r"^the test loss is nan at step 8;"):
        train_tiny(tiny_config, tmp_path)
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.slow
def test_the_largest_seed_trains(tiny_config, tmp_path):
    tiny_config.seed, tiny_config.num_epochs = 2**31 - 1, 1
    assert int(train_tiny(tiny_config, tmp_path).step) == 8
