"""A validation set: taken from the training set, it chooses; the test set is looked at once."""

import json
import shutil
import signal

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxcnn
from conftest import CACHED, Tiny, small_config
from jaxcnn.cli.main import main
from jaxcnn.data import Dataset, load_fashion_mnist_sample
from jaxcnn.data.split import split_validation
from jaxcnn.errors import ConfigError, StoppedError
from jaxcnn.train import loop, processes, train_and_evaluate
from jaxcnn.train.prepare import prepare
from jaxcnn.train.programs import Evaluator
from jaxcnn.train.record.checkpoint import Checkpoints
from jaxcnn.train.record.progress import Progress
from jaxcnn.train.record.report import describe, summarize
from jaxcnn.train.record.workdir import Workdir

pytestmark = CACHED


def dataset_of(labels, num_classes):
    """Images that tell their place in the set."""
    labels = np.asarray(labels, np.int32)
    images = np.arange(len(labels), dtype=np.uint32).view(np.uint8).reshape(-1, 2, 2, 1)
    return Dataset(images, labels, tuple(f"class {i}" for i in range(num_classes)))


def places_of(dataset):
    return np.ascontiguousarray(dataset.images).reshape(-1, 4).view(np.uint32).ravel()


# Taking it


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.data())
def test_each_class_gives_its_share_and_keeps_one(labels, data):
    train = dataset_of(labels, 5)
    sizes = np.bincount(labels, minlength=5)
    most = int(np.maximum(sizes - 1, 0).sum())
    if most == 0:
        return
    count, seed = data.draw(st.integers(1, most)), data.draw(st.integers(0, 3))
    rest, validation = split_validation(train, count, seed)
    assert len(validation.labels) == count
    assert sorted([*places_of(rest), *places_of(validation)]) == list(range(len(labels)))
    for part in (rest, validation):
        np.testing.assert_array_equal(part.labels, np.asarray(labels)[places_of(part)])
        assert (np.diff(places_of(part).astype(int)) > 0).all()  # in their order
    taken = np.bincount(validation.labels, minlength=5)
    assert (taken[sizes > 0] < sizes[sizes > 0]).all()
    quotas = count * sizes / sizes.sum()
    if (np.ceil(quotas) <= np.maximum(sizes - 1, 0)).all():
        assert (np.abs(taken - quotas) < 1).all()


def test_the_seed_chooses():
    train = dataset_of(np.arange(200) % 4, 4)
    first, again, other = (places_of(split_validation(train, 40, seed)[1]) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert len(np.intersect1d(first, other)) < 20


def test_more_than_there_are_is_refused():
    with pytest.raises(ConfigError, match=r"validation_examples is 5, but .* give at most 4"):
        split_validation(dataset_of([0, 0, 0, 1, 1, 1], 3), 5, seed=0)
    with pytest.raises(ConfigError, match=r"config\.validation_examples is 300, .* at most 246"):
        prepare(small_config(validation_examples=300), model=Tiny())


# A run


def choosing_config(**changes):
    """Seven steps an epoch: the training set keeps 224 images."""
    given = {"max_train_examples": 264, "validation_examples": 40, "num_epochs": 4}
    return small_config(**given | changes)


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def result_of(folder):
    return json.loads((folder / "run.json").read_text())["result"]


@pytest.fixture
def looks(monkeypatch):
    """The number of images of each set that is evaluated."""
    seen = []
    create = Evaluator.__init__

    def spy(self, setup, dataset, *args):
        seen.append(len(dataset.labels))
        create(self, setup, dataset, *args)

    monkeypatch.setattr(Evaluator, "__init__", spy)
    return seen


# Of large steps, so that the best epoch is not the last.
WAVERING = {"learning_rate": 2.0, "seed": 1}


@pytest.fixture(scope="module")
def folder_of_run(tmp_path_factory, compile_cache):
    folder = tmp_path_factory.mktemp("chosen")
    train_and_evaluate(choosing_config(**WAVERING), folder, model=Tiny())
    return folder


@pytest.fixture
def folder(folder_of_run, tmp_path):
    """A copy of a finished run."""
    return shutil.copytree(folder_of_run, tmp_path / "run")


def test_validation_chooses_and_the_chosen_epoch_is_tested(folder):
    rows, result = rows_of(folder), result_of(folder)
    assert not any(key.startswith("test_") for row in rows for key in row)
    accuracies = [row["validation_accuracy"] for row in rows]
    best = int(np.argmax(accuracies))
    assert best < len(rows) - 1, "this run cannot tell the best from the last"
    assert (result["best"], result["last"]) == (rows[best], rows[-1])
    assert (result["test"]["epoch"], result["test"]["step"]) == (best + 1, rows[best]["step"])
    loaded = jaxcnn.load(folder, model=Tiny())
    assert loaded.step == rows[best]["step"]
    checkpoints = Checkpoints(folder / "checkpoints")
    assert checkpoints.best() == loaded.step
    checkpoints.close()
    evaluations = {split: loaded.evaluate(split) for split in ("train", "validation", "test")}
    assert [each.count for each in evaluations.values()] == [224, 40, 200]
    assert evaluations["validation"].accuracy == accuracies[best]
    assert evaluations["validation"].loss == pytest.approx(rows[best]["validation_loss"], rel=1e-5)
    assert evaluations["test"].accuracy == result["test"]["test_accuracy"]
    assert evaluations["test"].loss == pytest.approx(result["test"]["test_loss"], rel=1e-5)
    data = json.loads((folder / "run.json").read_text())["data"]
    assert data == {split: loaded.dataset(split).digest() for split in data}
    assert list(data) == ["train", "validation", "test"]


def test_the_test_set_is_looked_at_once(tmp_path, looks, capsys):
    config = choosing_config(num_epochs=1, max_test_examples=90)
    train_and_evaluate(config, tmp_path, model=Tiny())
    assert looks == [40, 90]
    tested = result_of(tmp_path)["test"]
    line = f"test accuracy {tested['test_accuracy']:.4f} and loss {tested['test_loss']:.4f} after"
    assert line in capsys.readouterr().out
    train_and_evaluate(config, tmp_path, model=Tiny())  # the same command
    assert looks == [40, 90]
    assert result_of(tmp_path)["test"] == tested
    assert line in capsys.readouterr().out


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("is_better", [False, True])
def test_more_epochs_are_tested_if_one_is_better(folder, looks, several, is_better, monkeypatch):
    if is_better:  # than the best so far, of which the rows now say that it was bad
        rows = rows_of(folder)
        for row in rows:
            row["validation_accuracy"] /= 1000
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    before = result_of(folder)
    monkeypatch.setattr(processes, "are_several", lambda: several)  # and this is the first
    train_and_evaluate(choosing_config(num_epochs=5, **WAVERING), folder, model=Tiny())
    after = result_of(folder)
    assert is_better == (after["best"]["step"] != before["best"]["step"])
    assert looks == [40, 200][: 1 + is_better]
    assert after["test"]["step"] == after["best"]["step"]
    assert is_better or after["test"] == before["test"]


def test_a_signal_before_the_test_leaves_it_to_the_next_start(folder, monkeypatch, looks):
    uninterrupted = result_of(folder)["test"]
    record = json.loads((folder / "run.json").read_text())
    del record["result"]
    (folder / "run.json").write_text(json.dumps(record))
    totals = Evaluator.totals

    def interrupted(self, *args):
        for each in totals(self, *args):
            signal.raise_signal(signal.SIGTERM)
            yield each

    config = choosing_config(**WAVERING)
    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "totals", interrupted)
        with pytest.raises(StoppedError, match="before the test set was evaluated and saved after"):
            train_and_evaluate(config, folder, model=Tiny())
    assert "result" not in json.loads((folder / "run.json").read_text())
    train_and_evaluate(config, folder, model=Tiny())
    times = {"test_seconds": 0}
    assert result_of(folder)["test"] | times == uninterrupted | times
    assert looks == [200, 200]


def test_a_damaged_best_checkpoint_is_said(folder, capsys):
    record = json.loads((folder / "run.json").read_text())
    best = record["result"]["best"]["step"]
    record["result"] = {}
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "checkpoints" / f"{best}" / "progress.json").write_text("{}")
    train_and_evaluate(choosing_config(**WAVERING), folder, model=Tiny())
    assert f"the best checkpoint, {best}, cannot be read" in " ".join(
        capsys.readouterr().out.split()
    )
    assert result_of(folder)["test"]["epoch"] == 4


def test_another_number_is_another_run(folder):
    with pytest.raises(ConfigError, match="validation_examples was 40 and is 41"):
        train_and_evaluate(
            choosing_config(**WAVERING, validation_examples=41), folder, model=Tiny()
        )


def test_patience_follows_validation(tmp_path, monkeypatch):
    values = iter([0.5, 0.75, 0.25, 0.75])

    def accuracies(self, *args):
        metrics = jax.tree.map(np.float32, loop.Metrics(1.0, 100 * next(values), 100.0))
        return iter([metrics])

    monkeypatch.setattr(Evaluator, "totals", accuracies)
    config = choosing_config(num_epochs=9, patience=1)
    train_and_evaluate(config, tmp_path, model=Tiny())
    assert [row["validation_accuracy"] for row in rows_of(tmp_path)] == [0.5, 0.75, 0.25]
    assert result_of(tmp_path)["test"]["epoch"] == 2


# Not after every epoch


def seldom_config(**changes):
    return choosing_config(num_epochs=5, evaluate_every_epochs=2, **changes)


def test_epochs_that_are_not_evaluated(tmp_path, monkeypatch, capsys):
    seldom, always = tmp_path / "seldom", tmp_path / "always"
    evaluations = []
    totals = Evaluator.totals

    def spy(self, state, *args):
        evaluations.append(int(state.step) // 7)
        return totals(self, state, *args)

    monkeypatch.setattr(Evaluator, "totals", spy)
    train_and_evaluate(seldom_config(), seldom, model=Tiny())
    rows, result = rows_of(seldom), result_of(seldom)
    key = "validation_accuracy"
    assert [row["epoch"] for row in rows if key in row] == [2, 4, 5]
    best = max((row for row in rows if key in row), key=lambda row: row[key])
    assert result["best"] == best
    assert result["test"]["epoch"] == best["epoch"]
    assert evaluations == [2, 4, 5, best["epoch"]]
    out = capsys.readouterr().out
    table = [line.split() for line in out.splitlines() if line.strip()[1:3] == "/5"]
    assert [line[3:5] == ["-", "-"] for line in table] == [True, False, True, False, False]
    assert f"best {best[key]:.4f} after epoch {best['epoch']}" in out
    assert Checkpoints(seldom / "checkpoints").best() == best["step"]
    train_and_evaluate(choosing_config(num_epochs=5), always, model=Tiny())  # it changes no bit
    for one, other in zip(rows, rows_of(always), strict=True):
        assert one["train_loss"] == other["train_loss"]
        assert one.get(key, other[key]) == other[key]


def test_a_run_that_has_not_been_evaluated_yet(tmp_path, monkeypatch, capsys):
    save = Workdir.save

    def stop(self, state, progress, *args):
        save(self, state, progress, *args)
        if progress.epoch == 1 and not progress.position:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Workdir, "save", stop)
        with pytest.raises(StoppedError):
            train_and_evaluate(seldom_config(patience=1), tmp_path, model=Tiny())
    (row,) = rows_of(tmp_path)
    assert "validation_accuracy" not in row
    assert main(["compare", f"{tmp_path}", "--json"]) == 0
    compared = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert compared["epochs"] == 1
    with pytest.raises(ConfigError, match="no checkpoint of an evaluated epoch; which='last'"):
        jaxcnn.load(tmp_path, model=Tiny())
    assert jaxcnn.load(tmp_path, "last", model=Tiny()).step == 7
    train_and_evaluate(seldom_config(patience=1), tmp_path, model=Tiny())  # it goes on
    evaluated = [row["epoch"] for row in rows_of(tmp_path) if "validation_accuracy" in row]
    assert evaluated[:2] == [2, 4]


@pytest.mark.parametrize(
    ("values", "epochs"), [([0.5, 0.25], 4), ([0.5, 0.75, 0.5], 6), ([0.5] * 9, 4)]
)
def test_patience_counts_epochs_that_are_evaluated(values, epochs, tmp_path, monkeypatch):
    left = iter(values)

    def accuracies(self, *args):
        return iter([jax.tree.map(np.float32, loop.Metrics(1.0, 100 * next(left, 0.9), 100.0))])

    monkeypatch.setattr(Evaluator, "totals", accuracies)
    config = choosing_config(num_epochs=9, patience=1, evaluate_every_epochs=2)
    train_and_evaluate(config, tmp_path, model=Tiny())
    assert len(rows_of(tmp_path)) == epochs


def test_patience_with_no_epochs_to_go_by_is_refused():
    with pytest.raises(ConfigError, match=r"patience is 2, but config\.evaluate_every_epochs is 0"):
        prepare(small_config(patience=2, evaluate_every_epochs=0), model=Tiny())


def test_the_test_set_at_the_end_alone_is_not_chosen_on(tmp_path, looks, capsys):
    config = small_config(num_epochs=2, evaluate_every_epochs=0)
    train_and_evaluate(config, tmp_path)
    (row,) = (row for row in rows_of(tmp_path) if "test_accuracy" in row)
    assert row["epoch"] == 2
    out = capsys.readouterr().out
    assert f"done: test accuracy {row['test_accuracy']:.4f} after epoch 2" in out
    assert "chosen" not in out
    assert main(["evaluate", f"{tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert f"{row['test_accuracy']:.4f}" in out
    assert "best of several epochs" not in out


# From Python


TRAIN, TEST = (load_fashion_mnist_sample(split) for split in ("train", "test"))


def fit(**changes):
    arguments = {"epochs": 1, "batch_size": 32, "num_devices": 1, **changes}
    return jaxcnn.fit(Tiny(), TRAIN.first(100), TEST.first(64), **arguments)


def test_a_set_of_ones_own(tmp_path, looks, capsys):
    own = TRAIN.take(np.arange(200, 250))
    trained = fit(validation=own, workdir=tmp_path / "run")
    assert looks == [50, 64]
    row = trained.history[-1]
    assert trained.evaluate(own).accuracy == row["validation_accuracy"]
    assert f"validation_accuracy {row['validation_accuracy']:.4f}" in repr(trained)
    assert "100 training, 50 validation and 64 test images" in capsys.readouterr().out
    loaded = jaxcnn.load(tmp_path / "run", model=Tiny())
    with pytest.raises(ConfigError, match="object Dataset"):
        loaded.evaluate("validation")


def test_a_run_that_is_not_kept_tests_its_last_state(looks, capsys):
    trained = fit(validation_examples=30, epochs=2)
    assert looks == [30, 64]
    evaluation = trained.evaluate(TEST.first(64))
    assert f"test accuracy {evaluation.accuracy:.4f}" in capsys.readouterr().out


def test_a_run_needs_no_test_set(looks):
    arguments = {"epochs": 1, "batch_size": 32, "num_devices": 1, "validation_examples": 20}
    trained = jaxcnn.fit(Tiny(), TRAIN.first(100), **arguments)
    assert looks == [20]
    assert "validation_accuracy" in trained.history[-1]
    with pytest.raises(ConfigError, match="'object Dataset'"):
        trained.dataset("test")


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="a validation set is given as well; give one of them"):
        fit(validation=TRAIN.first(10), validation_examples=10)
    other = TRAIN.first(10)._replace(class_names=tuple("abcdefghij"))
    with pytest.raises(ConfigError, match=r"train\.class_names are .* and validation\.class_names"):
        fit(validation=other)
    with pytest.raises(ConfigError, match=r"validation\.images 14 x 14 x 1; give images of one"):
        fit(validation=TRAIN.first(10)._replace(images=TRAIN.images[:10, ::2, ::2]))
    with pytest.raises(
        ConfigError, match=r"config\.validation_examples is -1; it must be at least"
    ):
        fit(validation_examples=-1)


def test_a_split_that_a_run_lacks_is_refused(tmp_path):
    train_and_evaluate(small_config(num_epochs=1), tmp_path, model=Tiny())
    loaded = jaxcnn.load(tmp_path, model=Tiny())
    with pytest.raises(ConfigError, match="no validation set; it has: 'train', 'test'"):
        loaded.evaluate("validation")
    with pytest.raises(ConfigError, match="unknown split 'val'; accepted: 'test', 'validation'"):
        loaded.evaluate("val")


# What is said


def test_what_is_chosen_is_called_what_it_is():
    rows = [{"epoch": n, "step": n, "train_accuracy": 0.5} for n in (1, 2)]
    assert summarize(rows, None, None).startswith("done: training accuracy 0.5000 after epoch 2")
    tested = [row | {"test_accuracy": 0.75 / row["epoch"]} for row in rows]
    assert summarize(tested, None, None) == (
        "done: test accuracy 0.3750 after epoch 2, best 0.7500 after epoch 1 (chosen on the test "
        "set)"
    )
    validated = [row | {"validation_accuracy": 0.75 / row["epoch"]} for row in rows]
    at_end = {"epoch": 1, "step": 1, "test_accuracy": 0.625, "test_loss": 1.5}
    assert summarize(validated, at_end, None) == (
        "done: validation accuracy 0.3750 after epoch 2, best 0.7500 after epoch 1\n"
        "test accuracy 0.6250 and loss 1.5000 after epoch 1"
    )


def test_a_validation_set_that_is_the_training_set_is_noted():
    few = TRAIN.first(64)
    setup = prepare(small_config(), model=Tiny(), train=few, validation=few)
    assert "note: the validation set is the training set" in describe(setup, None)


def test_progress_of_earlier_versions_is_read():
    saved = {"epoch": 2, "position": 0, "test_accuracy": 0.5}
    assert Progress.from_dict(saved) == Progress(epoch=2, accuracy=0.5)
