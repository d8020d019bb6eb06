"""Images normalized by the training set's channels: the numbers, and wherever a model goes."""

import dataclasses
import json
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from flax import linen as nn
from jax import export
from safetensors import safe_open

import jaxcnn
from conftest import CACHED, Brightness, Tiny, small_config
from jaxcnn import fitting
from jaxcnn.cli.main import main
from jaxcnn.data import (
    AUGMENTATIONS,
    Dataset,
    channel_statistics,
    load_fashion_mnist_sample,
    statistics,
)
from jaxcnn.errors import ConfigError
from jaxcnn.inspect import layer_summary
from jaxcnn.interop import from_torch, load_state_dict, to_torch, to_torchvision
from jaxcnn.models import Normalized, build_model
from jaxcnn.report.layers import find_convolutions
from jaxcnn.train.finetune import PartlyFrozen
from jaxcnn.train.prepare import prepare
from jaxcnn.train.programs import Programs
from jaxcnn.train.record.report import describe

pytestmark = CACHED
RNG = np.random.default_rng(0)
TRAIN, TEST = (load_fashion_mnist_sample(split).first(256) for split in ("train", "test"))


def images_of(*shape):
    """Random images, each channel of a brightness of its own."""
    brightness = RNG.uniform(0.2, 1, shape[-1])
    return (RNG.integers(0, 256, shape) * brightness).astype(np.uint8)


def assert_same_bits(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


# The numbers


@pytest.mark.parametrize("shape", [(5, 5, 37, 1), (7, 37, 5, 3), (1, 1, 2, 4), (9, 3, 3, 2)])
@pytest.mark.parametrize("piece", [1, 100, 2**22])
def test_statistics_are_numpys_whatever_the_pieces(shape, piece, monkeypatch):
    monkeypatch.setattr(statistics, "_PIECE", piece)
    images = images_of(*shape)
    found = channel_statistics(images)
    scaled = images.astype(np.float64) / 255
    np.testing.assert_allclose(found.mean, scaled.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(found.std, scaled.std(axis=(0, 1, 2)), rtol=1e-12)


def test_a_constant_channel_is_not_divided():
    images = images_of(5, 4, 3, 3)
    images[..., 1] = 100
    found = channel_statistics(images)
    assert (found.mean[1], found.std[1]) == (100 / 255, 1.0)
    model = Normalized(Brightness(), *found)
    logits = model.init_with_output(jax.random.key(0), images / np.float32(255))[0]
    assert np.isfinite(logits).all()


def test_they_are_of_the_images_that_the_run_uses_before_they_are_enlarged():
    data = Dataset(images_of(40, 5, 5, 3), np.arange(40, dtype=np.int32) % 3, ("a", "b", "c"))
    config = small_config(normalization="per_channel", image_size=11, batch_size=8)
    config.max_train_examples = 16
    setup = prepare(config, model=Brightness(), train=data, test=data)
    assert setup.normalization == channel_statistics(data.images[:16])
    assert setup.normalization != channel_statistics(data.images)


# The model


class Named(nn.Module):
    """Layers with the names of fields, as in many a module of PyTorch."""

    def setup(self):
        """Make the layers."""
        self.net = nn.Sequential([nn.Dense(4), nn.relu])
        self.model = nn.Dense(10)

    def __call__(self, images, train=False):
        """Return ten logits."""
        return self.model(self.net(images.reshape(len(images), -1)))


NUMBERS = {"mean": (0.4, 0.1, 0.5), "std": (0.2, 0.3, 0.05)}


@pytest.mark.parametrize("model", [Tiny(), Brightness(), Named()], ids=lambda m: type(m).__name__)
def test_it_is_the_model_of_normalized_images(model):
    """With the same variables; frozen, too."""
    images = images_of(3, 8, 12, 3) / np.float32(255)
    mean, std = (np.array(x, np.float32) for x in NUMBERS.values())
    expected, variables = model.init_with_output(
        jax.random.key(1), (images - mean[None, None, None]) / std[None, None, None]
    )
    normalized = Normalized(model, **NUMBERS)
    for each in (normalized, PartlyFrozen(normalized, ("BatchNorm_0",))):
        assert_same_bits(each.init(jax.random.key(1), images), variables)
        np.testing.assert_allclose(each.apply(variables, images), expected, rtol=1e-4)
    assert_same_bits(PartlyFrozen(model, ()).init(jax.random.key(1), images), variables)


def test_half_precision_is_normalized_in_float32():
    images = jnp.asarray(images_of(3, 8, 12, 3) / np.float32(255)).astype(jnp.bfloat16)
    seen = []

    class See(nn.Module):
        @nn.compact
        def __call__(self, images, train=False):
            seen.append(images)
            return images

    Normalized(See(), **NUMBERS).apply({}, images)
    assert seen[0].dtype == jnp.bfloat16
    mean, std = (np.array(x, np.float32)[None, None, None] for x in NUMBERS.values())
    expected = (np.asarray(images, np.float32) - mean) / std
    np.testing.assert_array_equal(seen[0], jnp.asarray(expected).astype(jnp.bfloat16))


@pytest.mark.parametrize(
    ("images", "numbers", "message"),
    [
        (np.zeros((2, 8, 8, 1), np.float32), NUMBERS, r"a std above 0 for each of their 1 chan"),
        (np.zeros((2, 8, 8, 3), np.float32), NUMBERS | {"std": (1.0, 0.0, 1.0)}, "std above 0"),
        (np.zeros((2, 8, 8, 3), np.uint8), NUMBERS, "takes floating point, got uint8"),
    ],
)
def test_images_and_numbers_that_are_refused(images, numbers, message):
    variables = Brightness().init(jax.random.key(0), jnp.zeros((2, 8, 8, 3)))
    with pytest.raises(ValueError, match=message):
        Normalized(Brightness(), **numbers).apply(variables, images)


# Runs


def fit(model=None, test=TEST, **settings):
    return jaxcnn.fit(
        model or Tiny(),
        TRAIN,
        test,
        **{"epochs": 2, "batch_size": 32, "num_devices": 1, "normalization": "per_channel"}
        | settings,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run of two epochs of 8 steps."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    fit(workdir=folder)
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    return jaxcnn.load(folder, "last", model=Tiny())


def test_it_comes_after_augmentation(monkeypatch):
    """By hand, in training and in evaluation."""
    monkeypatch.setitem(AUGMENTATIONS, "invert", lambda key, image: 1 - image)
    images = images_of(8, 4, 4, 1)
    data = Dataset(images, np.zeros(8, np.int32), ("zero",))
    config = small_config(augmentation="invert", batch_size=8, normalization="per_channel")
    setup = prepare(config, model=Brightness(), train=data, test=data)
    compiled = Programs(setup)
    [test] = compiled.evaluate(setup.state, 1)
    _, metrics = compiled.train(setup.state, 0, 1)

    def loss(images):
        x = (images / 255).mean(axis=(1, 2, 3))
        normalized = (x - (data.images / 255).mean()) / (data.images / 255).std()
        return (np.log(np.exp(normalized) + 9) - normalized).mean()

    assert next(iter(metrics.per_step())).loss() == pytest.approx(loss(255 - images), rel=1e-5)
    assert test.total().loss() == pytest.approx(loss(images), rel=1e-5)


def test_what_is_loaded_is_what_was_trained(folder, trained):
    record = json.loads((folder / "run.json").read_text())
    numbers = channel_statistics(TRAIN.images)
    assert record["normalization"] == {"mean": list(numbers.mean), "std": list(numbers.std)}
    assert trained.model == Normalized(Tiny(), *numbers)
    evaluation, row = trained.evaluate(TEST), trained.history[-1]
    assert evaluation.accuracy == row["test_accuracy"]
    assert evaluation.loss == pytest.approx(row["test_loss"], rel=1e-5)
    mean, std = np.float32(numbers.mean[0]), np.float32(numbers.std[0])
    normalized = (TEST.images[:5] / np.float32(255) - mean) / std
    logits = Tiny().apply(trained.variables, normalized)
    predicted = trained.predict(TEST.images[:5])
    np.testing.assert_allclose(predicted.probabilities, jax.nn.softmax(logits), rtol=1e-4)
    again = jaxcnn.load(folder, "last", model=trained.model)  # with the normalization in it
    assert again.model == trained.model


@pytest.mark.slow
def test_a_run_resumes_bit_for_bit(folder, trained, tmp_path):
    fit(epochs=1, workdir=tmp_path)
    resumed = fit(workdir=tmp_path)
    assert_same_bits(resumed.variables, trained.variables)
    assert resumed.model == trained.model
    with pytest.raises(ConfigError, match="normalization was 'per_channel' and is 'none'"):
        fit(workdir=tmp_path, normalization="none")


@pytest.mark.slow
def test_several_devices_train_as_one():
    one, two = (
        fit(Tiny(dropout_rate=0.0), None, num_devices=n, epochs=1, max_train_examples=64)
        for n in (1, 2)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        one.variables,
        two.variables,
    )
    assert two.model.axis_name is None


@pytest.mark.slow
def test_what_is_recorded_of_a_model():
    """Of an object the one that was given, also if it is partly frozen."""
    model = jaxcnn.LeNetModern()
    config = small_config(normalization="per_channel")
    setup = prepare(config, model=model, train=TRAIN, test=TEST)
    frozen = dataclasses.replace(setup, model=PartlyFrozen(setup.model, ("conv1",)))
    for each in (setup, frozen):
        assert build_model(each.facts()["module"]) == model


def test_a_run_begins_with_the_numbers():
    numbers = channel_statistics(TRAIN.images)
    for word, model, expected in (
        ("per_channel", Tiny(), f"mean {numbers.mean[0]:.4f}, std {numbers.std[0]:.4f}"),
        ("none", Normalized(Tiny(), (0.5,), (0.25,)), "mean 0.5000, std 0.2500"),
        ("none", Tiny(), None),
    ):
        setup = prepare(small_config(normalization=word), model=model, train=TRAIN, test=TEST)
        text = describe(setup, None)
        assert (f"\nnormalized per channel: {expected}\n" in text) == (expected is not None)
        assert ("normalized" in text) == (expected is not None)


def test_tuning_says_where_the_numbers_differ(trained, capsys):
    was = f"mean {trained.model.mean[0]:.4f}, std {trained.model.std[0]:.4f}"
    other = Normalized(Tiny(), (0.5,), (0.25,))
    setup = prepare(small_config(), model=Tiny(), train=TRAIN, test=TEST)
    for model, now in (
        (trained.model, None),
        (other, "mean 0.5000, std 0.2500"),
        (Tiny(), "none"),
    ):
        fitting._prepare_transfer(dataclasses.replace(setup, model=model), trained, ())
        out = capsys.readouterr().out
        assert (f"normalized otherwise: {was}; now: {now}" in out) == (now is not None)
        assert ("otherwise" in out) == (now is not None)


def test_settings_that_are_refused():
    config = small_config(normalization="per_channel")
    with pytest.raises(ConfigError, match="the model is a Normalized, which has a mean and std"):
        prepare(config, model=Normalized(Tiny(), (0.5,), (0.5,)))
    config.normalization = "per_chanel"
    with pytest.raises(ConfigError, match=r"normalization is 'per_chanel' \(did you mean 'per_ch"):
        jaxcnn.validate_config(config)


# Where a model goes


def random_variables(model, shape):
    """Variables of the right shapes, drawn without running the model."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)))
    return jax.tree.map(lambda x: RNG.normal(0, 0.05, x.shape).astype(np.float32), shapes)


def small_trained():
    """LeNet for odd colour images, normalized, with the same model on images by hand."""
    model = jaxcnn.LeNetModern(num_classes=3)
    images = images_of(6, 20, 28, 3)
    variables = random_variables(model, images.shape[1:])
    config = jaxcnn.get_default_config()
    config.image_size = 20
    return jaxcnn.Trained(
        Normalized(model, **NUMBERS), variables, config, ("a", "b", "c"), (20, 28, 3), 1, []
    ), images


def logits_by_hand(trained, images):
    mean, std = (np.array(x, np.float32)[None, None, None] for x in NUMBERS.values())
    return trained.model.model.apply(trained.variables, (images / np.float32(255) - mean) / std)


def test_exported_programs_normalize(tmp_path):
    trained, images = small_trained()
    expected = logits_by_hand(trained, images)
    assert np.abs(expected).max() > 0.1
    path = trained.export(tmp_path / "a.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"images": images})[0], expected, atol=1e-5)
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["model"] == "LeNet"
    assert metadata["preprocessing"].endswith("divides by 255 and normalizes")
    assert "mean" not in metadata
    path = trained.export(tmp_path / "a.stablehlo")
    program = export.deserialize(bytearray(path.read_bytes()))
    np.testing.assert_allclose(program.call(images), expected, atol=1e-5)
    assert "mean" not in json.loads(zipfile.ZipFile(path).read("metadata.json"))


def test_exported_weights_say_how_to_normalize(tmp_path):
    trained, _ = small_trained()
    path = trained.export(tmp_path / "a.safetensors")
    plain = to_torch(trained.variables, trained.model.model)
    assert_same_bits(load_state_dict(path), plain)
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    numbers = {key: tuple(json.loads(metadata[key])) for key in ("mean", "std")}
    assert numbers == NUMBERS
    assert metadata["preprocessing"].endswith(
        "divide by 255; subtract 'mean' from each channel, and divide it by 'std'"
    )
    assert_same_bits(from_torch(plain, trained.model), dict(trained.variables, batch_stats={}))
    vgg = jaxcnn.VGG(arch=((1, 4), (1, 8)))
    variables = random_variables(vgg, (28, 28, 3))
    assert_same_bits(
        to_torchvision(variables, Normalized(vgg, **NUMBERS), (28, 28)),
        to_torchvision(variables, vgg, (28, 28)),
    )


@pytest.mark.slow
def test_the_command_says_that_weights_do_not_normalize(tmp_path, capsys):
    made = jaxcnn.fit(
        "lenet",
        TRAIN.first(32),
        epochs=1,
        batch_size=32,
        num_devices=1,
        normalization="per_channel",
        workdir=tmp_path / "run",
    )
    loaded = jaxcnn.load(tmp_path / "run", "last")  # without a model: it is built again
    np.testing.assert_array_equal(loaded.logits(TEST.images), made.logits(TEST.images))
    capsys.readouterr()
    for suffix, lines in ((".safetensors", 2), (".onnx", 1)):
        command = ["export", str(tmp_path / "run"), str(tmp_path / f"a{suffix}")]
        assert main([*command, "--which", "last"]) == 0
        out = capsys.readouterr().out.splitlines()
        assert len(out) == lines
        if lines == 2:
            assert out[1].startswith("normalize its images in [0, 1] by mean 0.")


def test_the_table_of_layers_is_the_models():
    model = jaxcnn.LeNet()
    assert layer_summary(Normalized(model, **NUMBERS), (1, 28, 28, 3)) == layer_summary(
        model, (1, 28, 28, 3)
    )


def test_a_report_shows_maps_of_normalized_images():
    trained, images = small_trained()
    trained = dataclasses.replace(trained, image_shape=(20, 20, 3))
    model = trained.model.model
    variables = random_variables(model, (20, 20, 3))
    trained = dataclasses.replace(trained, variables=variables)
    found = find_convolutions(trained, images[0, :, 4:24])
    assert [each.name for each in found] == ["conv1", "conv2"]
    mean, std = (np.array(x, np.float32)[None, None, None] for x in NUMBERS.values())
    normalized = (images[:1, :, 4:24] / np.float32(255) - mean) / std
    _, captured = model.apply(
        variables, normalized, capture_intermediates=True, mutable=["intermediates"]
    )
    for each in found:
        expected = captured["intermediates"][each.name]["__call__"][0][0]
        np.testing.assert_allclose(each.maps, expected, rtol=1e-4, atol=1e-5)
