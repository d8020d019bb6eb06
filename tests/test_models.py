"""Models: d2l's shapes and exact parameter counts, BatchNorm, and what is refused."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import references
from jaxcnn.layers import BatchNorm, Conv, avg_pool, max_pool, relu
from jaxcnn.models import MODELS, VGG, LeNet, Residual, ResNet, VGGBlock, create_model
from jaxcnn.ops.cpu.primitives import ALL

# image size, parameters, running averages of BatchNorm
TABLE = {
    "lenet": (28, 61_706, 0),
    "lenet_modern": (28, 61_706, 0),
    "vgg": (224, 43_093_322, 0),
    "vgg11": (224, 128_806_154, 0),
    "resnet18": (96, 11_178_378, 2 * 3_904),
}


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def shapes(name, size, **kwargs):
    model = create_model(name, **kwargs)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    images = jnp.zeros((2, size, size, 1))
    return jax.eval_shape(lambda: model.init_with_output(keys, images, train=False))


def test_table_covers_every_model():
    assert set(TABLE) == set(MODELS)


@pytest.mark.parametrize("name", TABLE)
def test_parameter_counts(name):
    size, parameters, averages = TABLE[name]
    logits, variables = shapes(name, size)
    assert logits.shape == (2, 10)
    assert logits.dtype == jnp.float32
    assert count(variables["params"]) == parameters
    assert count(variables.get("batch_stats", {})) == averages


def test_parameter_counts_by_hand():
    def conv(k, i, o):
        return k * k * i * o + o

    def dense(i, o):
        return i * o + o

    lenet = conv(5, 1, 6) + conv(5, 6, 16) + dense(400, 120) + dense(120, 84) + dense(84, 10)
    assert TABLE["lenet"][1] == lenet
    narrow = conv(3, 1, 16) + conv(3, 16, 32) + conv(3, 32, 64) + conv(3, 64, 64)
    narrow += conv(3, 64, 128) + 3 * conv(3, 128, 128)
    narrow += dense(7 * 7 * 128, 4096) + dense(4096, 4096) + dense(4096, 10)
    assert TABLE["vgg"][1] == narrow
    residual = conv(7, 1, 64) + 2 * 64 + 4 * (conv(3, 64, 64) + 2 * 64) + dense(512, 10)
    for i, o in ((64, 128), (128, 256), (256, 512)):
        residual += conv(3, i, o) + 3 * conv(3, o, o) + 4 * 2 * o + conv(1, i, o)
    assert TABLE["resnet18"][1] == residual


@pytest.mark.parametrize("name", MODELS)
def test_number_of_classes(name):
    assert shapes(name, 32, num_classes=7)[0].shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "size", "features"),
    [("lenet_modern", 28, 84), ("vgg", 32, 4096), ("resnet18", 32, 512)],
)
def test_without_classes_a_model_gives_what_the_last_layer_takes(name, size, features):
    key, images = jax.random.key(0), jnp.zeros((2, size, size, 1))
    y, variables = jax.eval_shape(create_model(name, num_classes=0).init_with_output, key, images)
    assert y.shape == (2, features)
    with_classes = jax.eval_shape(create_model(name).init, key, images)
    (last,) = with_classes["params"].keys() - variables["params"].keys()
    assert with_classes["params"][last]["kernel"].shape == (features, 10)


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_keeps_float32_parameters_and_logits(name):
    logits, variables = shapes(name, 32, dtype=jnp.bfloat16)
    assert logits.dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(variables)} == {np.dtype(np.float32)}


@pytest.mark.parametrize(("name", "size"), [("lenet", 11), ("vgg", 31), ("vgg11", 16)])
def test_too_small_an_image_is_refused(name, size):
    with pytest.raises(ValueError, match="does not fit"):
        shapes(name, size)
    assert shapes(name, size + 16)[0].shape == (2, 10)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int32])
@pytest.mark.parametrize("name", MODELS)
def test_pixels_that_nobody_has_scaled_are_refused(name, dtype):
    """At `init` they may be: it asks for their shape alone."""
    model, images = create_model(name), jax.ShapeDtypeStruct((2, 32, 32, 1), dtype)
    with jax.numpy_dtype_promotion("standard"):  # as users have it
        variables = jax.eval_shape(model.init, jax.random.key(0), images)
    with pytest.raises(ValueError, match="preprocess makes of uint8"):
        jax.eval_shape(model.apply, variables, images)


def primitives(program):
    """The names of a traced program's primitives, those of the programs within it included."""
    names = set()
    for equation in program.eqns:
        names.add(equation.primitive.name)
        for value in jax.tree.leaves(list(equation.params.values())):
            if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
                names |= primitives(getattr(value, "jaxpr", value))
    return names


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("by", ["argument", "environment"])
def test_of_the_engine_nothing_remains_with_implementation_xla(name, by, monkeypatch):
    engine = {"platform_index", "ffi_call", *(primitive.name for primitive in ALL)}
    images = jax.ShapeDtypeStruct((2, 32, 32, 1), jnp.float32)

    def traced(model):
        keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        variables = jax.eval_shape(model.init, keys, images)

        def loss(variables, images):
            return model.apply(variables, images, train=True, mutable=["batch_stats"], rngs=keys)[
                0
            ].sum()

        return primitives(jax.make_jaxpr(jax.grad(loss, allow_int=True))(variables, images).jaxpr)

    assert engine & traced(create_model(name))
    if by == "environment":
        monkeypatch.setenv("JAXCNN_IMPLEMENTATION", "xla")
        assert not engine & traced(create_model(name))
    else:
        assert not engine & traced(create_model(name, implementation="xla"))


class Bottleneck(nn.Module):
    """Another block for `ResNet`: its convolution has groups."""

    channels: int
    use_1x1conv: bool = False
    strides: int = 1
    dtype: Any = None
    axis_name: str | None = None
    implementation: str | None = None

    @nn.compact
    def __call__(self, x, train=False):
        norm = BatchNorm(not train, axis_name=self.axis_name)
        y = relu(norm(Conv(self.channels, 3, self.strides, 1, groups=4)(x)))
        return y + (Conv(self.channels, 1, self.strides)(x) if self.use_1x1conv else x)


@pytest.mark.slow
def test_another_block_makes_another_resnet():
    model = ResNet(arch=((1, 8), (2, 16)), block=Bottleneck)
    y, variables = model.init_with_output(jax.random.key(0), jnp.ones((2, 32, 32, 1)))
    assert y.shape == (2, 10)
    blocks = {name: set(variables["params"][name]) for name in ("b2_0", "b3_0", "b3_1")}
    same = {"Conv_0", "BatchNorm_0"}
    assert blocks == {"b2_0": same, "b3_0": same | {"Conv_1"}, "b3_1": same}


def test_unknown_model_names_the_nearest():
    with pytest.raises(ValueError, match=r"'resnet81'.*'resnet18'"):
        create_model("resnet81")


def test_lenet_is_sigmoids_and_means_and_the_modern_one_relus_and_maxima():
    assert (create_model("lenet").activation, create_model("lenet").pool) == (nn.sigmoid, avg_pool)
    modern = create_model("lenet_modern")
    assert (modern.activation, modern.pool) == (relu, max_pool)
    assert isinstance(modern, LeNet)


def test_lenet_forward_matches_the_reference():
    images = np.random.default_rng(0).uniform(size=(2, 28, 28, 1)).astype(np.float32)
    model = create_model("lenet")
    variables = model.init(jax.random.key(0), images)
    p = jax.tree.map(np.asarray, variables["params"])
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    x = images
    for name, padding in (("conv1", (2, 2)), ("conv2", (0, 0))):
        x = sigmoid(references.conv2d(x, p[name]["kernel"], padding=padding) + p[name]["bias"])
        x = references.pool(x, (2, 2), (2, 2), (0, 0), "avg")
    x = x.reshape(2, 400)
    for name in ("dense1", "dense2"):
        x = sigmoid(x @ p[name]["kernel"] + p[name]["bias"])
    x = x @ p["dense3"]["kernel"] + p["dense3"]["bias"]
    np.testing.assert_allclose(model.apply(variables, images), x, rtol=1e-5, atol=1e-5)


def test_vgg_block_halves_the_image():
    y, _ = VGGBlock(2, 5).init_with_output(jax.random.key(0), jnp.ones((1, 9, 8, 3)))
    assert y.shape == (1, 4, 4, 5)


@pytest.mark.slow
def test_vgg_drops_out_in_training_only():
    model = VGG(arch=((1, 4), (1, 8)))
    images = jnp.ones((1, 8, 8, 1))
    variables = jax.jit(model.init)(jax.random.key(0), images)

    @partial(jax.jit, static_argnames="train")
    def logits(key, train):
        return model.apply(variables, images, train=train, rngs={"dropout": key})

    keys = [jax.random.key(i) for i in (1, 2)]
    for train in (True, False):
        first, second = (logits(key, train) for key in keys)
        assert bool((first != second).any()) == train


def test_d2l_residual_shapes():
    x = jnp.ones((4, 6, 6, 3))
    assert Residual(3).init_with_output(jax.random.key(0), x)[0].shape == (4, 6, 6, 3)
    block = Residual(6, use_1x1conv=True, strides=2)
    assert block.init_with_output(jax.random.key(0), x)[0].shape == (4, 3, 3, 6)


def test_residual_that_cannot_add_is_refused():
    with pytest.raises(ValueError, match=r"\(4, 6, 6, 3\).*\(4, 6, 6, 5\).*use_1x1conv"):
        Residual(5).init(jax.random.key(0), jnp.ones((4, 6, 6, 3)))


@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_matches_the_reference(train):
    x = 100 + np.random.default_rng(0).standard_normal((4, 3, 5, 2)).astype(np.float32)
    variables = {
        "params": {"scale": jnp.ones(2), "bias": jnp.zeros(2)},
        "batch_stats": {"mean": jnp.array([99.0, 101.0]), "var": jnp.array([1.5, 0.5])},
    }
    norm = BatchNorm(use_running_average=not train)
    y, updates = norm.apply(variables, x, mutable=["batch_stats"])
    expected = references.batch_norm(
        x.astype(np.float64), np.array([99.0, 101.0]), np.array([1.5, 0.5]), train
    )
    np.testing.assert_allclose(y, expected[0], rtol=1e-3, atol=1e-4)
    if train:
        np.testing.assert_allclose(updates["batch_stats"]["mean"], expected[1], rtol=1e-6)
        np.testing.assert_allclose(updates["batch_stats"]["var"], expected[2], rtol=1e-4)


@pytest.mark.slow
def test_training_moves_the_running_averages_of_every_batch_norm():
    model = create_model("resnet18")
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(4, 32, 32, 1)), jnp.float32)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    apply = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))
    _, updates = apply(variables, images)
    before, after = (jax.tree.leaves(v["batch_stats"]) for v in (variables, updates))
    assert len(after) == (1 + 8 * 2) * 2  # the stem's and two per block, mean and variance each
    assert all((a != b).any() for a, b in zip(before, after, strict=True))
