"""Models, optimizers and data given as objects: what fits trains, the rest is refused at once."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from conftest import CACHED, Tiny, small_config
from jaxcnn.data import AUGMENTATIONS, MIXINGS, Dataset, load_fashion_mnist_sample
from jaxcnn.errors import ConfigError
from jaxcnn.layers import BatchNorm, Dense, flatten
from jaxcnn.models import MODELS, is_own_model
from jaxcnn.train import OPTIMIZERS, SCHEDULES, eval_step, loop, train_and_evaluate
from jaxcnn.train.prepare import prepare
from jaxcnn.train.protocol import check_learning_rate, check_model, check_optimizer

pytestmark = [*CACHED, pytest.mark.usefixtures("as_users")]
SAMPLE = load_fashion_mnist_sample("train")


@pytest.fixture
def as_users():
    """JAX as users have it: Optax and their models need not hold under the tests' strictness."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def colored(count, size=8, class_names=("dark", "bright")):
    """Images of two classes, in three colors, which are easily told apart."""
    labels = np.arange(count) % 2
    noise = np.random.default_rng(count).integers(0, 100, (count, size, size, 3))
    return Dataset(
        (noise + 155 * labels[:, None, None, None]).astype(np.uint8), labels, class_names
    )


@pytest.mark.slow
def test_a_run_of_objects_alone_trains_and_is_recorded_as_theirs(tmp_path):
    config = small_config(batch_size=8, num_devices=2, num_epochs=5, momentum=0.0)
    objects = {"optimizer": optax.adam(0.02), "train": colored(40), "test": colored(20)}
    state = train_and_evaluate(config, tmp_path, model=Tiny(), **objects)
    assert int(state.step) == 25
    assert state.params["Dense_0"]["kernel"].shape == (7 * 7 * 3, 8)  # resized to 28 x 28 pixels
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["test_accuracy"] == 1.0
    settings = json.loads((tmp_path / "run.json").read_text())["config"]
    assert settings["model"] == "object Tiny"
    assert settings["optimizer"] == "object GradientTransformationExtraArgs"
    assert settings["dataset"] == "object Dataset"
    with pytest.raises(ConfigError, match="model was 'object Tiny' and is 'lenet'"):
        train_and_evaluate(config, tmp_path, **objects)
    with pytest.raises(ConfigError, match="holds a run on other data"):
        train_and_evaluate(config, tmp_path, model=Tiny(), **objects | {"train": colored(42)})


def test_nothing_is_compiled_before_the_objects_are_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(jax.stages.Lowered, "compile", pytest.fail)
    monkeypatch.setattr(loop, "Programs", pytest.fail)
    with pytest.raises(ConfigError, match="model TwoLogits returns logits of shape"):
        train_and_evaluate(small_config(), tmp_path, model=TwoLogits())
    assert not list(tmp_path.iterdir())


def test_a_model_is_given_the_axis_of_several_devices():
    for devices, axis_name in ((1, None), (2, "batch")):
        setup = prepare(small_config(num_devices=devices), model=Tiny(axis_name="mine"))
        assert setup.model.axis_name == axis_name


def test_limits_hold_for_data_that_are_given():
    config = small_config(max_train_examples=32, max_test_examples=16)
    setup = prepare(config, model=Tiny(), train=SAMPLE, test=SAMPLE)
    assert (len(setup.train.labels), len(setup.test.labels)) == (32, 16)
    assert setup.settings["dataset"] == "object Dataset"
    half = prepare(config, model=Tiny(), train=SAMPLE)
    assert half.settings["dataset"] == "object Dataset, fashion_mnist_sample"


class TwoLogits(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        return Dense(2)(flatten(images))


class NoTrainArgument(nn.Module):
    @nn.compact
    def __call__(self, images):
        return Dense(10)(flatten(images))


class IntegerLogits(TwoLogits):
    @nn.compact
    def __call__(self, images, train=False):
        return Dense(10)(flatten(images)).astype(jnp.int32)


class PairOfLogits(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        return Dense(10)(flatten(images)), Dense(10)(flatten(images))


class OneRow(nn.Module):
    in_training: bool

    @nn.compact
    def __call__(self, images, train=False):
        logits = Dense(10)(flatten(images))
        return logits[:1] if train == self.in_training else logits


class AnotherCollection(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        self.variable("cache", "seen", jnp.zeros, ())
        return Dense(10)(flatten(images))


class NoParameters(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        return flatten(images)


class IntegerParameter(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        self.param("shift", lambda key: jnp.zeros((), jnp.int32))
        return Dense(10)(flatten(images))


class GrowingStatistics(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        mean = self.variable("batch_stats", "mean", jnp.zeros, (1,))
        if train:
            mean.value = jnp.zeros(2)
        return Dense(10)(flatten(images))


class NoAxisName(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        return Dense(10)(BatchNorm(use_running_average=not train)(flatten(images)))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda images: images, "model function is no flax.linen.Module"),
        (TwoLogits(), r"logits of shape \(2, 2\) for 2 images; .* at least the 10 classes"),
        (NoTrainArgument(), r"init\(key, images \[1, 28, 28, 1\], train=False\) fails: TypeError"),
        (IntegerLogits(), "returns logits of int32; they must be floating point"),
        (PairOfLogits(), r"returns a tuple; it must return logits \[N, K\]"),
        (OneRow(in_training=True), r"logits of shape \(1, 10\) for 2 images"),
        (OneRow(in_training=False), r"logits of shape \(1, 10\) for 2 images"),
        (AnotherCollection(), "returns the collections cache, params; it must be params and"),
        (NoParameters(), "returns the collections none; it must be params and"),
        (IntegerParameter(), "has params/shift of int32; it must be floating point"),
        (GrowingStatistics(), "training changes mean from 1 float32 to 2 float32; shape and"),
        (NoAxisName(), "has batch_stats but no field axis_name, so 2 devices cannot share"),
    ],
    ids=lambda value: getattr(type(value), "__name__", None),
)
def test_a_model_that_does_not_fit_is_refused_in_one_line(model, message):
    with pytest.raises(ConfigError, match=message) as error:
        prepare(small_config(num_devices=2), model=model)
    assert "\n" not in str(error.value)


def test_a_model_without_an_axis_name_trains_on_one_device_or_without_statistics():
    check_model(NoAxisName(), (28, 28, 1), num_classes=10, num_devices=1)
    check_model(TwoLogits(), (28, 28, 1), num_classes=2, num_devices=2)
    prepare(small_config(num_devices=2, data_parallel="jit"), model=NoAxisName())


class FlaxBatchNorm(nn.Module):
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, train=False):
        norm = nn.BatchNorm(use_running_average=not train, axis_name=self.axis_name, name="norm")
        return nn.Dense(10)(flatten(norm(images)))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"num_devices": 3}, r"a batch of 32 for 3 device\(s\) is"),
        ({"num_devices": 2, "max_train_examples": 97}, r"a batch of 1 for 2 device\(s\) is"),
        (
            {"gradient_accumulation_steps": 3, "data_parallel": "jit"},
            r"a batch of 32 for 1 device\(s\) in 3 parts is",
        ),
    ],
)
def test_padding_that_would_count_in_batch_statistics_is_refused(changes, what):
    config = small_config(**changes)
    with pytest.raises(ConfigError, match=f"{what} padded.* of BatchNorm in model") as error:
        prepare(config, model=FlaxBatchNorm())
    assert "\n" not in str(error.value)
    prepare(config, model=Tiny())  # with jaxcnn's own
    prepare(small_config(num_devices=2), model=FlaxBatchNorm())  # without padding


def test_a_model_whose_train_has_no_default_may_be_padded():
    class Mine(nn.Module):
        @nn.compact
        def __call__(self, images, train):
            return Dense(10)(flatten(BatchNorm(use_running_average=not train)(images)))

    prepare(small_config(gradient_accumulation_steps=3), model=Mine())


def test_logits_of_a_higher_precision_than_the_images_are_refused():
    class Double(nn.Module):
        @nn.compact
        def __call__(self, images, train=False):
            return Dense(10)(flatten(images)).astype(jnp.float64)

    with jax.enable_x64(True):
        check_model(Double(), (28, 28, 1), 10, dtype=jnp.float64)
        with pytest.raises(ConfigError, match="logits of float64 for images of float32; they must"):
            check_model(Double(), (28, 28, 1), 10)


def test_a_field_of_another_meaning_may_be_called_dtype():
    class Mine(nn.Module):
        dtype: str = "fast"

        @nn.compact
        def __call__(self, images, train=False):
            return Dense(10)(flatten(images))

    assert prepare(small_config(), model=Mine()).described is None


@pytest.mark.slow
def test_logits_of_lower_precision_are_accepted(tmp_path):
    class Half(nn.Module):
        @nn.compact
        def __call__(self, images, train=False):
            return Dense(10, dtype=jnp.bfloat16)(flatten(images)).astype(jnp.bfloat16)

    config = small_config(num_epochs=1, max_train_examples=64, max_test_examples=32)
    state = train_and_evaluate(config, tmp_path, model=Half())
    assert int(state.step) == 2
    metrics = eval_step(state, jnp.ones((2, 28, 28, 1)), jnp.arange(2), jnp.ones(2), model=Half())
    assert metrics.loss_sum.dtype == jnp.float32


def transformation(init, update):
    return optax.GradientTransformation(init, update)


def plain(grads, state, params=None):
    return grads, state


class Seen(dict):
    """A state of another type than the one it turns into."""


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ("sgd", "optimizer str is no optax.GradientTransformation; give one"),
        (transformation(lambda: (), plain), r"init\(params\) fails: TypeError"),
        (transformation(lambda p: (), lambda g: g), r"update\(grads, state, params\) fails"),
        (
            transformation(lambda p: (), lambda g, s, p: (g["Dense_0"], s)),
            r"update\(grads, state, params\) fails: ValueError",
        ),
        (
            transformation(
                lambda p: (), lambda g, s, p: (jax.tree.map(lambda x: jnp.stack([x, x]), g), s)
            ),
            r"changes the parameter \S+ from \S+ float32 to 2x\S+ float32; shape and dtype must",
        ),
        (
            transformation(lambda p: jnp.zeros(3), lambda g, s, p: (g, s[:2])),
            "changes its state .*from 3 float32 to 2 float32",
        ),
        (optax.noisy_sgd(0.1, key=0), "keeps a random key in its state, and checkpoints take numb"),
        (
            transformation(lambda p: (jnp.zeros(3),), lambda g, s, p: (g, list(s))),
            "changes its state in structure; the tree must stay the same",
        ),
    ],
)
def test_an_optimizer_that_does_not_fit_is_refused_in_one_line(optimizer: Any, message):
    with pytest.raises(ConfigError, match=message) as error:
        prepare(small_config(momentum=0.0), model=Tiny(), optimizer=optimizer)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["sgd", "adam", "lamb", "lion", "rmsprop", "adafactor"])
def test_optimizers_of_optax_fit(name):
    params = {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)}
    check_optimizer(getattr(optax, name)(1e-3), params)
    check_optimizer(optax.MultiSteps(getattr(optax, name)(1e-3), 2), params)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"train": [1, 2]}, "train is of type list, which has no images"),
        ({"test": SAMPLE._replace(labels=SAMPLE.labels + 1)}, "test.labels holds 10"),
        ({"train": colored(40)}, "train.images are 8 x 8 x 3 and test.images 28 x 28 x 1"),
        (
            {"train": colored(40), "test": colored(40, class_names=("a", "b"))},
            r"train.class_names are \('dark', 'bright'\) and test.class_names \('a', 'b'\)",
        ),
        ({"train": SAMPLE.first(16)}, "only 16 training examples"),
    ],
)
def test_data_that_do_not_fit_are_refused_in_one_line(data, message):
    with pytest.raises(ConfigError, match=message) as error:
        prepare(small_config(), model=Tiny(), **data)
    assert "\n" not in str(error.value)


# What is registered in a table goes through the same door


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda **_: TwoLogits(), r"model TwoLogits returns logits of shape \(2, 2\)"),
        (lambda **_: AnotherCollection(), "model AnotherCollection: .* collections cache, params"),
        (lambda **_: None, "model NoneType is no flax.linen.Module"),
        (lambda num_classes: Tiny(), r"MODELS\['mine'\]\(.*\) fails: .* argument 'dtype'; it must"),
        (Tiny(), r"MODELS\['mine'\]\(.*\) fails: missing a required argument: 'images'"),
        ("lenet", r"MODELS\['mine'\]\(.*\) fails: the entry is a str, not a function"),
    ],
)
def test_a_registered_model_is_checked(make, message, monkeypatch):
    monkeypatch.setitem(MODELS, "mine", make)
    with pytest.raises(ConfigError, match=message) as error:
        prepare(small_config(model="mine"))
    assert "\n" not in str(error.value)


def test_a_registered_model_is_traced_with_the_channels_of_its_images(monkeypatch):
    """Also one that replaces jaxcnn's own."""

    class InColor(nn.Module):
        @nn.compact
        def __call__(self, images, train=False):
            if images.shape[3] != 3:
                raise ValueError("three channels, please")
            return Dense(10)(flatten(images))

    monkeypatch.setitem(MODELS, "lenet", lambda **_: InColor())
    assert prepare(small_config(), train=colored(40), test=colored(20)).full_batches == 1
    with pytest.raises(ConfigError, match=r"InColor: .* ValueError: three channels, please"):
        prepare(small_config())


def test_models_of_jaxcnn_need_no_check(monkeypatch):
    """Tracing ResNet18 takes a second."""
    assert all(map(is_own_model, MODELS))
    monkeypatch.setitem(MODELS, "lenet", Tiny)
    assert not is_own_model("lenet")
    assert not is_own_model("mine")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda c, rate: None,
            r"OPTIMIZERS\['mine'\].* returns a NoneType; it must return an optax",
        ),
        (lambda c, rate: optax.sgd, "returns a function; it must return an optax"),
        (lambda c: optax.sgd(0.1), r"\(config, learning_rate\) fails: too many positional arg"),
        (
            lambda c, rate: transformation(lambda p: jnp.zeros(3), lambda g, s, p: (g, s[:2])),
            "changes its state .*from 3 float32 to 2 float32",
        ),
    ],
)
def test_a_registered_optimizer_is_checked(make, message, monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "mine", make)
    with pytest.raises(ConfigError, match=message) as error:
        prepare(small_config(optimizer="mine"), model=Tiny())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda c, n: None,
            r"SCHEDULES\['mine'\]\(config, num_steps\) returns a NoneType; it must",
        ),
        (lambda c, n: "0.1", "returns a str; it must return a finite number, or a function"),
        (lambda c, n: float("nan"), "returns nan; it must return a finite number"),
        (lambda c, n: jnp.ones(3), r"returns float32 \[3\]; it must return a finite number"),
        (lambda c, n: lambda step: None, "returns a function to a NoneType; it must"),
        (lambda c, n: lambda step: jnp.ones(2), r"returns a function to float32 \[2\]; it must"),
        (
            lambda c, n: lambda step: 0.1 if step < 5 else 0.01,
            r"\(step\) fails: TracerBoolConversionError: Attempted boolean conversion",
        ),
        (lambda c: 0.1, r"\(config, num_steps\) fails: too many positional arguments"),
    ],
)
def test_a_registered_schedule_is_checked(make, message, monkeypatch):
    monkeypatch.setitem(SCHEDULES, "mine", make)
    with pytest.raises(ConfigError, match=message) as error:
        prepare(small_config(schedule="mine"), model=Tiny())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "rate",
    [
        1,
        np.float64(0.1),
        jnp.float32(0.1),
        lambda step: 0.1,
        lambda step: jnp.bfloat16(0.1),
        optax.cosine_decay_schedule(0.1, 16),
        optax.piecewise_constant_schedule(0.1, {8: 0.1}),
    ],
)
def test_a_schedule_may_return_any_number(rate):
    check_learning_rate(rate, "mine")


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (lambda key, x: x[2:-2, 2:-2], r"returns float32 \[8, 8, 1\] for an image float32"),
        (lambda key, x: jnp.concatenate([x, x]), r"returns float32 \[24, 12, 1\] for an image"),
        (lambda key, x: (255 * x).astype(jnp.uint8), r"returns uint8 \[12, 12, 1\] for"),
        (lambda key, x: x.astype(jnp.bfloat16), "returns bfloat16 .* the same shape and dtype"),
        (lambda key, x: None, "returns a NoneType for an image"),
        (lambda key, x: (x, key), "returns a tuple for an image"),
        (lambda x: x, r"\(key, image\) fails: TypeError"),
        (lambda key, x: x.shuffle(key), "fails: AttributeError"),
        (
            lambda key, x: x / jnp.zeros_like(x),
            "returns (nan|inf) to (nan|-inf) for the first images",
        ),
        (lambda key, x: 255 * x, r"returns 0 to \d+ for the first images .* near \[0, 1\]"),
    ],
)
def test_an_augmentation_is_checked(augment, message, monkeypatch):
    monkeypatch.setitem(AUGMENTATIONS, "mine", augment)
    config = small_config(augmentation="flip, mine", image_size=12)
    with pytest.raises(ConfigError, match=rf"AUGMENTATIONS\['mine'\].*{message}") as error:
        prepare(config, model=Tiny())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        (lambda key, x, y: x, r"\(key, images, targets\) changes"),
        (lambda key, x: (x, x), r"\(key, images, targets\) fails: TypeError"),
        (lambda key, x, y: (x, y.argmax(axis=1)), r"changes 1 from 32x2 float32 to 32 int32"),
        (
            lambda key, x, y: (x.repeat(32 // len(x), 0), y),
            "changes 0 from 8x12x12x1 float32 to 32x12",
        ),
    ],
)
def test_mixing_is_checked(mix, message, monkeypatch):
    """With whole batches, on several devices too, and the smaller last one."""
    monkeypatch.setitem(MIXINGS, "mine", mix)
    config = small_config(mixing="mine", image_size=12, num_devices=2, max_train_examples=40)
    with pytest.raises(ConfigError, match=rf"MIXINGS\['mine'\].*{message}") as error:
        prepare(config, model=Tiny())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "augment",
    [
        lambda key, x: x[:, ::-1],
        lambda key, x: x + jax.random.normal(key, x.shape, x.dtype),  # beyond [0, 1]
        lambda key, x: (x - 0.286) / 0.353,
    ],
)
def test_augmentations_of_every_kind_fit(augment, monkeypatch):
    monkeypatch.setitem(AUGMENTATIONS, "mine", augment)
    prepare(small_config(augmentation="mine", image_size=12), model=Tiny())


def test_a_configs_model_must_have_a_logit_for_each_class_of_data_that_are_given():
    many = SAMPLE._replace(class_names=tuple("abcdefghijkl"))
    with pytest.raises(ConfigError, match="num_classes is 10, but object Dataset has 12 classes"):
        prepare(small_config(num_classes=10), train=many, test=many)
