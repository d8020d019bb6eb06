"""Using what was trained: fit, load, predict, evaluate, and going on from it."""

import dataclasses
import json
import re
import shutil
import signal
from pathlib import Path

import jax
import nbformat
import numpy as np
import optax
import pytest
from flax import linen as nn
from nbclient import NotebookClient
from PIL import Image
from safetensors import safe_open
from test_reading import snapshot

import jaxcnn
from conftest import CACHED, Tiny, small_config
from jaxcnn.data import Dataset, check_dataset, load_fashion_mnist_sample
from jaxcnn.data.dataset import SelectedImages
from jaxcnn.errors import ConfigError, DataError, StoppedError
from jaxcnn.export import export_model
from jaxcnn.scores import evaluate_logits, wilson_interval
from jaxcnn.train import train_and_evaluate
from jaxcnn.train.finetune import PartlyFrozen, transfer
from jaxcnn.train.loggers import MLflow
from jaxcnn.train.programs import Programs
from jaxcnn.train.record import workdir as workdir_module
from jaxcnn.train.record.checkpoint import Checkpoints

pytestmark = CACHED
TRAIN, TEST = (load_fashion_mnist_sample(split).first(256) for split in ("train", "test"))


def fit(model, train=TRAIN, test=TEST, **settings):
    return jaxcnn.fit(
        model, train, test, **{"epochs": 2, "batch_size": 32, "num_devices": 1} | settings
    )


def assert_same_bits(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run of two epochs of 8 steps."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    fit(Tiny(), workdir=folder)
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    return jaxcnn.load(folder, "last", model=Tiny())


def test_fit_is_train_and_evaluate(trained, tmp_path, capsys):
    """The same bits; and without a folder, and when resumed in one."""
    config = small_config(max_train_examples=256, max_test_examples=256, momentum=0.0)
    objects = {"model": Tiny(), "train": TRAIN, "test": TEST}
    state = train_and_evaluate(config, tmp_path / "run", **objects)
    assert_same_bits(trained.variables, state.variables)
    unsaved = fit(Tiny())
    assert "no workdir, so nothing is saved" in capsys.readouterr().out
    assert_same_bits(unsaved.variables, state.variables)
    assert unsaved.folder is None
    timings = {"images_per_second", "compile_seconds", "train_seconds", "test_seconds"}
    for ours, theirs in zip(unsaved.history, trained.history, strict=True):
        assert {k: v for k, v in ours.items() if k not in timings} == {
            k: v for k, v in theirs.items() if k not in timings
        }
    fit(Tiny(), epochs=1, workdir=tmp_path / "parts")
    resumed = fit(Tiny(), workdir=tmp_path / "parts")
    assert_same_bits(resumed.variables, state.variables)


def test_without_a_test_set(tmp_path):
    trained = fit(Tiny(), test=None, epochs=1, workdir=tmp_path)
    assert set(trained.history[0]) >= {"train_loss", "train_accuracy"}
    assert not [key for key in trained.history[0] if key.startswith("test")]
    assert (tmp_path / "curves.png").stat().st_size > 1000
    with pytest.raises(ConfigError, match="no checkpoint of an evaluated epoch; which='last'"):
        jaxcnn.load(tmp_path, model=Tiny())
    assert jaxcnn.load(tmp_path, "last", model=Tiny()).step == 8


def test_which_checkpoint_is_loaded(folder, trained):
    before = snapshot(folder)
    rows = trained.history
    best = max(rows, key=lambda row: row["test_accuracy"])
    assert jaxcnn.load(folder, model=Tiny()).step == best["step"]
    for row in rows:
        loaded = jaxcnn.load(folder, row["step"], model=Tiny())
        assert loaded.evaluate(TEST).accuracy == row["test_accuracy"]
        assert loaded.evaluate(TEST).loss == pytest.approx(row["test_loss"], rel=1e-5)
    assert trained.step == 16
    assert trained.class_names == TRAIN.class_names
    assert snapshot(folder) == before


@pytest.mark.parametrize(
    ("which", "message"),
    [
        (7, "there is no checkpoint of step 7 in .*; there are: 8, 16"),
        ("newest", "which is 'newest'; it must be 'best', 'last' or the number of a step"),
        (8.0, "which is 8.0"),
        (True, "which is True"),
    ],
)
def test_a_checkpoint_that_is_not_there(folder, which, message):
    with pytest.raises(ConfigError, match=message):
        jaxcnn.load(folder, which, model=Tiny())


def test_a_folder_that_is_no_run_or_of_another_model(folder, tmp_path):
    (tmp_path / "file").write_text("no folder")
    begun = tmp_path / "begun"
    begun.mkdir()
    shutil.copy(folder / "run.json", begun)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "run.json").write_text("{")
    before = snapshot(tmp_path)
    for path, model, message in (
        (tmp_path / "none", None, "is no folder; give the folder of a run"),
        (tmp_path / "file", None, "is no folder"),
        (tmp_path, None, "has no run.json; give the folder of a run"),
        (begun, Tiny(), "has not saved a checkpoint yet"),
        (damaged, None, "its run.json cannot be read"),
        (folder, None, "was given its model as an object Tiny, .*; give it again: jaxcnn.load"),
        (folder, Tiny(features=9), "is of another model: params/BatchNorm_0/bias is 8"),
    ):
        with pytest.raises(ConfigError, match=message):
            jaxcnn.load(path, model=model)
    assert snapshot(tmp_path) == before


def test_a_damaged_checkpoint(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "run")
    (copy / "checkpoints" / "16" / "progress.json").write_text("{}")
    with pytest.raises(
        DataError, match=r"step 16 in .* is damaged .*; which= \(--which\) takes another: 8"
    ):
        jaxcnn.load(copy, 16, model=Tiny())
    with pytest.warns(UserWarning, match="checkpoint 16 is damaged and is passed over"):
        assert jaxcnn.load(copy, "last", model=Tiny()).step == 8
    assert jaxcnn.load(copy, model=Tiny()).step == 8


def test_a_run_that_an_earlier_version_left():
    """Whose record has neither the names of the classes nor the number of channels."""
    old = jaxcnn.load(Path(__file__).parent / "faults" / "golden_run")
    assert old.image_shape == (12, 12, 1)
    assert old.class_names == TRAIN.class_names
    assert type(old.model).__name__ == "LeNet"
    evaluation = old.evaluate()
    assert evaluation.accuracy == old.history[-1]["test_accuracy"]
    assert evaluation.loss == pytest.approx(old.history[-1]["test_loss"], rel=1e-5)


def test_a_checkpoint_that_the_run_replaces_while_it_is_loaded(folder, monkeypatch):
    gone = iter([3])
    best = Checkpoints.best
    monkeypatch.setattr(Checkpoints, "best", lambda self: next(gone, None) or best(self))
    steps = iter([[3, 8]])
    real = Checkpoints.steps.fget
    monkeypatch.setattr(
        Checkpoints, "steps", property(lambda self: next(steps, None) or real(self))
    )
    assert jaxcnn.load(folder, model=Tiny()).step in (8, 16)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [jaxcnn.LeNetModern(num_classes=12), jaxcnn.ResNet(arch=((1, 4), (1, 8)))],
    ids=["modern, more logits", "arch"],
)
def test_jaxcnns_own_models_are_built_again(model, tmp_path):
    data = TRAIN.first(64)
    made = fit(model, data, None, epochs=1, image_size=32, workdir=tmp_path)
    loaded = jaxcnn.load(tmp_path, "last")
    assert loaded.model == model
    assert_same_bits(loaded.variables, made.variables)
    np.testing.assert_array_equal(loaded.logits(TEST.images), made.logits(TEST.images))
    assert len(loaded.predict(TEST.images[:2]).probabilities[0]) == model.num_classes


def test_every_form_of_images_gives_the_same(trained, tmp_path):
    images = TEST.images[:3]
    for i, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(tmp_path / f"{i}.png")
    expected = trained.predict(images)
    logits = trained.model.apply(trained.variables, images / np.float32(255))
    np.testing.assert_allclose(expected.probabilities, jax.nn.softmax(logits), rtol=1e-5)
    assert expected.labels.tolist() == logits.argmax(1).tolist()
    assert expected.names == [TRAIN.class_names[i] for i in expected.labels]
    for form in (
        (images / 255).astype(np.float32),
        images / 255,
        jax.numpy.asarray(images),
        tmp_path,
        str(tmp_path),
        [tmp_path / f"{i}.png" for i in range(3)],
    ):
        np.testing.assert_array_equal(trained.predict(form).probabilities, expected.probabilities)
    for form in (images[0], images[0, :, :, 0], images[0] / 255, tmp_path / "0.png"):
        one = trained.predict(form)
        np.testing.assert_allclose(one.probabilities, expected.probabilities[:1], rtol=1e-5)
    many = trained.predict(TEST.images, batch_size=7)
    np.testing.assert_allclose(many.probabilities[:3], expected.probabilities, rtol=1e-5)
    assert len(many) == 256
    assert len(repr(many).splitlines()) == 11
    (first, p), *_ = many.top(2)[0]
    assert (first, p) == (many.names[0], many.probabilities[0].max())


def test_pictures_of_other_sizes_are_resized_as_in_training(trained, tmp_path):
    sizes = [(56, 40), (9, 13), (56, 40)]
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, size, np.uint8) for size in sizes]
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    predictions = trained.predict(tmp_path)
    assert [path.name for path in predictions.paths] == ["0.png", "1.png", "2.png"]
    for picture, found in zip(pictures, predictions.probabilities, strict=True):
        images = jaxcnn.data.preprocess(picture[None, ..., None], 28)
        logits = trained.model.apply(trained.variables, images)
        np.testing.assert_allclose(found, jax.nn.softmax(logits)[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 28, 28, 3), np.uint8), r"images are \[2, 28, 28, 3\], and the model takes 1"),
        (np.zeros((2, 28, 28), np.uint8), r"several gray images take images\[..., None\]"),
        (np.zeros((2, 1, 28, 28), np.uint8), r"got uint8 \[2, 1, 28, 28\]"),
        (np.zeros((0, 28, 28, 1), np.uint8), r"got uint8 \[0, 28, 28, 1\]"),
        (np.zeros(28, np.uint8), r"got uint8 \[28\]"),
        (np.zeros((28, 28), np.int64), r"got int64 \[28, 28\]"),
        (np.full((28, 28), 255.0), r"float64 \[28, 28\] from 255 to 255"),
        (np.full((28, 28), np.nan), "from nan to nan"),
        (np.array(["a"]), r"got <U1 \[1\]"),
        ([], r"got float64 \[0\]"),
        (None, "got object"),
    ],
)
def test_arrays_that_are_no_images(trained, images, message):
    with pytest.raises(ValueError, match=message) as error:
        trained.predict(images)
    assert "\n" not in str(error.value)


def test_a_data_set_that_does_not_fit(trained):
    for data, message in (
        (
            TEST._replace(class_names=tuple("abcdefghij")),
            "has the classes a, b, .*trained on T-shi",
        ),
        (Dataset(np.repeat(TEST.images, 3, 3), *TEST[1:]), "the model takes 1 channel"),
        ("valid", "unknown split 'valid'; accepted: 'test', 'validation', 'train'"),
        ("test", "made with 'object Dataset', which is not in .*; give the data set itself"),
        (TEST.images, "data is of type ndarray, which has no"),
    ):
        with pytest.raises(ConfigError, match=message):
            trained.evaluate(data)


def test_other_data_under_the_same_name_are_noticed(tmp_path, monkeypatch):
    config = small_config(max_train_examples=64, num_epochs=1)
    monkeypatch.setitem(jaxcnn.data.DATASETS, "mine", lambda split, *_: TRAIN)
    config.dataset = "mine"
    train_and_evaluate(config, tmp_path, model=Tiny())
    loaded = jaxcnn.load(tmp_path, model=Tiny())
    assert loaded.evaluate().count == 200
    monkeypatch.setitem(jaxcnn.data.DATASETS, "mine", lambda split, *_: TEST)
    with pytest.raises(ConfigError, match="the test set of mine is not the one of the run"):
        loaded.evaluate()
    monkeypatch.delitem(jaxcnn.data.DATASETS, "mine")
    with pytest.raises(ConfigError, match=r"'mine', which is not in jaxcnn.data.DATASETS"):
        loaded.evaluate()


def test_scores_are_counted_one_by_one():
    rng = np.random.default_rng(1)
    labels, logits = rng.integers(0, 4, 50).astype(np.int32), rng.standard_normal((50, 5))
    logits[:, 3] -= 20  # a class that is never predicted, and one that never occurs
    found = evaluate_logits(logits, labels, tuple("abcde"))
    predicted = [max(range(5), key=lambda i: row[i]) for row in logits]
    pairs = list(zip(labels.tolist(), predicted, strict=True))
    assert found.confusion.tolist() == [
        [pairs.count((true, guess)) for guess in range(5)] for true in range(5)
    ]
    assert found.accuracy == sum(a == b for a, b in pairs) / 50
    losses = [
        np.log(np.exp(row).sum()) - row[label] for row, label in zip(logits, labels, strict=True)
    ]
    assert found.loss == pytest.approx(np.mean(losses))
    for c in range(5):
        hits = pairs.count((c, c))
        guessed, occur = predicted.count(c), labels.tolist().count(c)
        assert found.precision[c] == pytest.approx(
            hits / guessed if guessed else np.nan, nan_ok=True
        )
        assert found.recall[c] == pytest.approx(hits / occur if occur else np.nan, nan_ok=True)
        total = guessed + occur
        assert found.f1[c] == pytest.approx(2 * hits / total if total else np.nan, nan_ok=True)
    wrong = found.mistakes()
    assert sorted(wrong.tolist()) == [i for i, (a, b) in enumerate(pairs) if a != b]
    confidence = found.probabilities[wrong].max(axis=1)
    assert (np.diff(confidence) <= 0).all()


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),  # from Brown, Cai and DasGupta's formula, by hand
    [(8, 10, 0.4902, 0.9433), (0, 5, 0.0, 0.4345), (5, 5, 0.5655, 1.0)],
)
def test_the_interval_is_wilsons(hits, count, low, high):
    labels = np.array([0] * hits + [1] * (count - hits))
    logits = np.tile([1.0, 0.0], (count, 1))
    interval = evaluate_logits(logits, labels, ("right", "wrong")).interval
    assert interval == pytest.approx((low, high), abs=5e-5)
    assert interval == wilson_interval(hits, count)


class Normed(nn.Module):
    """Two layers with BatchNorm and a head."""

    num_classes: int = 10
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, train=False):
        x = images[:, ::4, ::4].reshape(len(images), -1)
        for i in (1, 2):
            x = nn.Dense(8, name=f"dense{i}")(x)
            norm = nn.BatchNorm(axis_name=self.axis_name, name=f"norm{i}")
            x = nn.relu(norm(x, not train))
        return nn.Dense(self.num_classes, name="head")(x)


def test_a_new_head_on_a_frozen_body(tmp_path, capsys):
    body = fit(Normed(), epochs=1)
    three = TRAIN._replace(labels=TRAIN.labels % 3, class_names=("a", "b", "c"))
    frozen = ["dense1", "norm1", "norm2/scale"]
    settings = {"init_from": body, "freeze": frozen, "optimizer": optax.sgd(0.1, momentum=0.9)}
    tuned = fit(Normed(3), three, None, epochs=2, workdir=tmp_path, **settings)
    assert "new: params/head/bias, params/head/kernel" in capsys.readouterr().out
    before, after = body.variables, tuned.variables
    for part in ("dense1", "norm1"):
        assert_same_bits(before["params"][part], after["params"][part])
    assert_same_bits(before["batch_stats"]["norm1"], after["batch_stats"]["norm1"])
    assert_same_bits(before["params"]["norm2"]["scale"], after["params"]["norm2"]["scale"])
    for path in (("params", "dense2"), ("params", "norm2", "bias"), ("batch_stats", "norm2")):
        one, other = before, after
        for key in path:
            one, other = one[key], other[key]
        differ = jax.tree.map(lambda a, b: bool((a != b).any()), one, other)
        assert all(jax.tree.leaves(differ)), path
    # A frozen layer normalizes by its running averages in training too.
    images = three.images[:4] / np.float32(255)
    frozen_model = PartlyFrozen(Normed(3), ("norm1", "norm2"))
    in_training, _ = frozen_model.apply(after, images, train=True, mutable=["batch_stats"])
    np.testing.assert_array_equal(in_training, Normed(3).apply(after, images))
    # The record knows what it began with, and the run resumes.
    again = fit(Normed(3), three, None, epochs=2, workdir=tmp_path, **settings)
    assert_same_bits(again.variables, after)
    with pytest.raises(ConfigError, match=r"freeze was .*norm1.* and is .*'dense1'"):
        fit(Normed(3), three, None, workdir=tmp_path, **settings | {"freeze": ["dense1"]})
    with pytest.raises(ConfigError, match=r"init_from was '[0-9a-f]{64}' and is None"):
        fit(Normed(3), three, None, workdir=tmp_path, **settings | {"init_from": None})
    np.testing.assert_array_equal(
        jaxcnn.load(tmp_path, "last", model=Normed(3)).logits(TEST.images),
        tuned.logits(TEST.images),
    )


def test_several_devices_tune_as_one():
    body = fit(Normed(), epochs=1)
    settings = {"init_from": body, "freeze": ["norm1"], "epochs": 1}
    one, two = (fit(Normed(), num_devices=n, **settings) for n in (1, 2))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        one.variables,
        two.variables,
    )
    assert_same_bits(body.variables["batch_stats"]["norm1"], two.variables["batch_stats"]["norm1"])
    assert two.model.axis_name is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"freeze": ["dens1"]}, r"freeze has 'dens1' \(did you mean 'dense1'\?\)"),
        ({"freeze": ["dense1", "dense2", "norm1", "norm2", "head"]}, "leaves nothing to train"),
        ({"freeze": ["norm1/mean"]}, "'norm1/mean', a running average, .*; give 'norm1'"),
        ({"implementation": "xla"}, "config.implementation is 'xla', but applies to models that"),
        ({"num_classes": 3}, "num_classes is 3, but a Normed with 10 logits was given; leave"),
        ({"freeze": "dense1"}, "freeze is 'dense1'; it must be a list of names"),
        ({"batchsize": 3}, r"unknown key config.batchsize \(did you mean 'batch_size'\?\)"),
        ({"dataset": "mnist"}, "no argument dataset=; give the data as train="),
        ({"optimizer": optax.sgd(0.1), "learning_rate": 0.2}, "learning_rate has no effect on an"),
        ({"optimizer": "adamm"}, "config.optimizer is 'adamm'"),
        ({"epochs": 0}, "config.num_epochs is 0"),
        ({"epochs": 1.5}, "config.num_epochs is 1.5"),
        ({"learning_rate": -1.0}, "config.learning_rate is -1.0"),
        ({"train": "fashion_mnistt"}, "config.dataset is 'fashion_mnistt'"),
        ({"train": "fashion_mnist", "test": "fashion_mnist_sample"}, "give the same name"),
        ({"test": "fashion_mnist"}, "test is 'fashion_mnist', and train an object; give the test"),
        ({"train": TRAIN.images}, "train is of type ndarray"),
        ({"train": Dataset(TRAIN.images[:, :20], *TRAIN[1:])}, "20 x 28 pixels; image_size= says"),
        ({"model": "lenett"}, "config.model is 'lenett'"),
        ({"model": Tiny}, "model .* is no flax.linen.Module"),
        ({"workdir": "http://host/run"}, "workdir must be a path of this machine"),
        ({"init_from": "runs/lenet"}, "init_from is a str; give what jaxcnn.load returns, or a d"),
        ({"init_from": {"dense1": {}}}, "init_from is a dict; give what jaxcnn.load returns, or"),
        ({"init_from": {"params": {"a": 1}}}, "init_from is a dict; give what"),
        *(
            ({"optimizer": optax.sgd(0.1), key: value}, f"config.{key} is .*no effect on an optim")
            for key, value in {
                "schedule": "cosine",
                "warmup_epochs": 0.5,
                "final_rate": 0.1,
                "rate_steps": (1,),
                "momentum": 0.9,
                "weight_decay": 0.1,
                "weight_decay_on": "kernels",
                "clip_norm": 1.0,
            }.items()
        ),
    ],
)
def test_calls_of_fit_that_are_wrong(settings, message):
    with pytest.raises(ConfigError, match=message) as error:
        fit(**{"model": Normed()} | settings)
    assert "\n" not in str(error.value)


def to_what_it_began_with():
    """An optimizer that keeps the first parameters, and goes back to them in each step."""

    def update(grads, state, params):
        return jax.tree.map(lambda new, old: new - old, state, params), state

    return optax.GradientTransformation(lambda params: params, update)


def test_an_optimizer_and_the_average_begin_with_what_is_taken(tmp_path):
    body = fit(Normed(), epochs=1)
    settings = {"init_from": body, "optimizer": to_what_it_began_with(), "epochs": 1}
    tuned = fit(Normed(), **settings)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        tuned.variables["params"],
        body.variables["params"],
    )
    three = TRAIN._replace(labels=TRAIN.labels % 3, class_names=("a", "b", "c"))
    fit(Normed(3), three, None, epochs=1, init_from=body, ema_decay=0.9)  # with a new head


def test_a_run_whose_numbers_or_names_are_others_is_refused(tmp_path, capsys):
    model = jaxcnn.models.Normalized(Tiny(), (0.25,), (np.float32(0.5),))
    fit(model, test=None, epochs=1, workdir=tmp_path)
    assert "normalized per channel: mean 0.2500, std 0.5000" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"the normalization was .*0\.25.* and is .*0\.75"):
        fit(model.clone(mean=(0.75,)), test=None, epochs=2, workdir=tmp_path)
    names = TRAIN._replace(class_names=TRAIN.class_names[::-1])
    with pytest.raises(ConfigError, match=r"the list of classes was \['T-shirt.* and is \['Ankle"):
        fit(model, names, None, epochs=2, workdir=tmp_path)


def test_the_numbers_of_a_normalization_are_shown_where_a_part_is_frozen(capsys):
    body = fit(Normed(), epochs=1, normalization="per_channel")
    shown = capsys.readouterr().out
    fit(Normed(), epochs=1, normalization="per_channel", init_from=body, freeze=["norm1"])
    (line,) = (line for line in shown.splitlines() if line.startswith("normalized per channel"))
    assert line in capsys.readouterr().out


@pytest.mark.parametrize(
    ("dataset", "aspect_ratio", "words"),
    [
        (
            "folder:pets",
            "crop",
            "resize the shorter side of uint8 images to 28, and cut out",
        ),
        (
            "tfds:pets",
            "pad",
            "resize the longer side of uint8 images to 28, and fill up the square",
        ),
        ("folder:pets", "stretch", "resize uint8 images to 28 x 28 (bilinear"),
        ("object Dataset", "crop", "resize uint8 images to 28 x 28 (bilinear"),
    ],
)
def test_an_exported_file_says_how_pictures_become_of_its_size(
    tmp_path, dataset, aspect_ratio, words
):
    model = jaxcnn.LeNet()
    variables = model.init(jax.random.key(0), np.zeros((1, 28, 28, 1), np.float32))
    config = jaxcnn.get_default_config()
    config.update(dataset=dataset, aspect_ratio=aspect_ratio)
    names = tuple("abcdefghij")
    trained = jaxcnn.Trained(model, variables, config, names, (28, 28, 1), step=0, history=[])
    path = trained.export(tmp_path / "lenet.safetensors")
    with safe_open(path, "numpy") as file:
        assert file.metadata()["preprocessing"].startswith(words)
    with pytest.raises(ConfigError, match="aspect_ratio is 'zoom'; accepted: 'crop', 'pad', 'str"):
        export_model(
            path, model, variables, image_shape=(28, 28, 1), class_names=(), aspect_ratio="zoom"
        )


def test_images_are_evaluated_a_part_of_a_batch_at_a_time(trained, monkeypatch):
    sizes = []
    monkeypatch.setattr(
        jaxcnn.Trained, "logits", lambda self, x, n: sizes.append(n) or np.zeros((len(x), 10))
    )
    config = trained.config.copy_and_resolve_references()
    config.update(batch_size=33, gradient_accumulation_steps=4)
    dataclasses.replace(trained, config=config).evaluate(TEST)
    assert sizes == [9]


def test_a_single_image_may_be_on_disk(trained, tmp_path):
    np.save(tmp_path / "images.npy", TEST.images)
    on_disk = TEST._replace(images=np.load(tmp_path / "images.npy", mmap_mode="r"))
    one = check_dataset(on_disk, "data").take(np.array([7]))
    assert isinstance(one.images, SelectedImages)
    assert trained.evaluate(one).loss == trained.evaluate(TEST.take(np.array([7]))).loss


def test_variables_alone_are_enough_to_start_from(capsys):
    body = fit(Normed(), epochs=1)
    three = TRAIN._replace(labels=TRAIN.labels % 3, class_names=("a", "b", "c"))
    one, other = (
        fit(Normed(3), three, None, epochs=1, init_from=start) for start in (body, body.variables)
    )
    assert_same_bits(one.variables, other.variables)
    assert "starting from the given variables; new: params/head/bias" in capsys.readouterr().out


def test_nothing_can_be_taken_of_another_network():
    with pytest.raises(ConfigError, match="init_from has no array of this model's"):
        transfer({"params": {"a": np.ones(2)}}, {"params": {"b": np.ones(2)}})


def test_the_picture_of_the_curves(trained, tmp_path):
    figure = trained.plot(tmp_path / "curves.png")
    assert len(figure.axes) == 2
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (1080, 432)
    shown = trained._repr_mimebundle_()
    assert shown["image/png"].startswith(b"\x89PNG")
    assert len(shown["text/plain"]) < 300


def test_a_run_without_a_folder_says_what_a_signal_cost(monkeypatch):
    def interrupt(self, state, count=None):
        signal.raise_signal(signal.SIGINT)
        yield from evaluate(self, state, count)

    evaluate = Programs.evaluate
    monkeypatch.setattr(Programs, "evaluate", interrupt)
    with pytest.raises(StoppedError, match="stopped by SIGINT after step 8; nothing is saved"):
        fit(Tiny())


def test_what_is_recorded_of_a_run(tmp_path):
    fit(jaxcnn.LeNetModern(), TRAIN.first(32), TEST.first(10), epochs=1, workdir=tmp_path)
    run = json.loads((tmp_path / "run.json").read_text())
    (row,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert run["class_names"] == list(TRAIN.class_names)
    assert run["image_shape"] == [28, 28, 1]
    assert run["module"]["name"] == "lenet_modern"
    assert run["result"] == {"last": row, "best": row}
    commit = run["starts"][0]["commit"]
    assert commit is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", commit)


NOTEBOOK = """
import jaxcnn
train = jaxcnn.data.load_fashion_mnist_sample("train").first(64)
trained = jaxcnn.fit("lenet", train, train, epochs=3, batch_size=32, num_devices=1)
trained
"""


@pytest.mark.slow
def test_curves_grow_in_jupyter():
    """In a kernel of its own: one picture, replaced after each epoch, and a line below it."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(NOTEBOOK)])
    messages = []

    class Client(NotebookClient):
        def process_message(self, message, cell, index):
            messages.append(message)
            return super().process_message(message, cell, index)

    Client(notebook, kernel_name="python3", timeout=120).execute()
    cell = notebook.cells[0]
    shown = [output for output in cell.outputs if output.output_type == "display_data"]
    (picture,) = (output for output in shown if "image/png" in output.data)
    (line,) = (output for output in shown if "image/png" not in output.data)
    assert line.data["text/plain"].startswith("epoch 3/3  train loss")
    assert len(line.data["text/plain"]) < 85  # or it breaks within a word
    assert len(picture.data["image/png"]) > 10_000
    grown = [
        message["content"]["data"]["image/png"]
        for message in messages
        if message["msg_type"] in ("display_data", "update_display_data")
        and "image/png" in message["content"]["data"]
    ]
    assert len(set(grown)) >= 2  # the first epoch, and the last
    (result,) = (output for output in cell.outputs if output.output_type == "execute_result")
    assert "image/png" in result.data
    assert len(result.data["text/plain"]) < 400
    printed = "".join(output.text for output in cell.outputs if output.output_type == "stream")
    assert len(printed.splitlines()) < 10


class Rows:
    """A logger that remembers."""

    def __init__(self, fails=""):
        self.calls, self.fails = [], fails

    def __getattr__(self, name):
        def call(*args):
            if name == self.fails:
                raise RuntimeError("no connection\nsecond line")
            self.calls.append((name, *args))

        return call


def test_loggers_are_told_and_cannot_disturb(tmp_path, capsys):
    good, bad, lost = Rows(), Rows(fails="start"), Rows(fails="write")
    loggers = [bad, good, lost]
    trained = fit(Tiny(), workdir=tmp_path, loggers=loggers)
    start, *writes, close = good.calls
    assert start == ("start", json.loads((tmp_path / "run.json").read_text())["config"], 0)
    assert [row for _, row in writes] == trained.history
    assert close == ("close",)
    printed = capsys.readouterr().out
    assert "note: Rows.start fails, and is left out from here: no connection\n" in printed
    assert printed.count("Rows.write fails") == 1
    assert bad.calls == []
    assert [name for name, *_ in lost.calls] == ["start"]
    resumed = Rows()
    fit(Tiny(), epochs=3, workdir=tmp_path, loggers=[resumed])
    assert [resumed.calls[0][2], resumed.calls[1][1]["epoch"]] == [16, 3]


def test_a_logger_is_told_of_an_error(tmp_path):
    class Aborted(Rows):
        def write(self, row):
            raise KeyboardInterrupt

    aborted, closed = Aborted(), Curves(tmp_path, stops=False)
    closed.close = lambda: closed.seen.append("closed")
    with pytest.raises(KeyboardInterrupt):
        fit(Tiny(), epochs=1, loggers=[closed, aborted])
    assert [(name, *map(type, rest)) for name, *rest in aborted.calls[1:]] == [
        ("abort", KeyboardInterrupt)
    ]
    assert closed.seen == [False, "closed"]


@pytest.mark.parametrize(
    ("error", "status"),
    [(StoppedError("stopped", signal.SIGTERM), "KILLED"), (ValueError("diverged"), "FAILED")],
)
def test_mlflow_is_told_how_a_run_ended(tmp_path, monkeypatch, error, status):
    tracking = pytest.importorskip("mlflow.tracking", reason="MLflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = MLflow(f"file:{tmp_path}/mlruns", "ends")
    logger.start({"batch_size": 32}, 0)
    logger.abort(error)
    with pytest.raises(Exception, match="exceeds the maximum length"):
        logger.start({"a" * 9_000: 1}, 0)
    client = tracking.MlflowClient(tracking_uri=f"file:{tmp_path}/mlruns")
    runs = client.search_runs([client.get_experiment_by_name("ends").experiment_id])
    assert sorted(run.info.status for run in runs) == sorted([status, "FAILED"])


def test_mlflow_has_the_run(tmp_path, monkeypatch):
    tracking = pytest.importorskip("mlflow.tracking", reason="MLflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = f"file:{tmp_path}/mlruns"
    trained = fit(Tiny(), loggers=[MLflow(uri, "sizes", "tiny")])
    client = tracking.MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("sizes").experiment_id])
    assert (run.info.run_name, run.info.status) == ("tiny", "FINISHED")
    assert run.data.params["batch_size"] == "32"
    found = client.get_metric_history(run.info.run_id, "test_accuracy")
    assert [(each.step, each.value) for each in found] == [
        (row["step"], row["test_accuracy"]) for row in trained.history
    ]


class Curves:
    """A logger that notes after each epoch whether there are curves, and may stop the run."""

    def __init__(self, folder, stops):
        self.path, self.stops, self.seen = folder / "curves.png", stops, []

    def start(self, settings, step):
        pass

    def write(self, row):
        self.seen.append(self.path.exists())
        if self.stops:
            signal.raise_signal(signal.SIGINT)

    def close(self):
        pass


def test_curves_are_there_after_an_epoch_that_takes_long_and_after_a_stop(tmp_path, monkeypatch):
    stopped = Curves(tmp_path / "stopped", stops=True)
    with pytest.raises(StoppedError, match="and saved after step 8"):
        fit(Tiny(), workdir=tmp_path / "stopped", loggers=[stopped])
    assert stopped.seen == [False]
    assert stopped.path.exists()
    monkeypatch.setattr(workdir_module, "_DRAW_SHARE", np.inf)
    slow = Curves(tmp_path / "slow", stops=False)
    fit(Tiny(), workdir=tmp_path / "slow", loggers=[slow])
    assert slow.seen == [True, True]


@pytest.mark.parametrize("shift", [-0.4, 0.0, 0.4])
def test_numbers_in_0_to_1_become_the_nearest_grey_levels(trained, shift):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    shifted = ((levels + shift) / 255).clip(0, 1)
    for dtype in (np.float32, np.float64):
        found = trained._as_images(shifted.astype(dtype))
        np.testing.assert_array_equal(found[0, :, :, 0], levels)
