"""Models: the shapes and exact parameter counts of d2l and the papers, BatchNorm, bad input."""

import itertools
import json
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import references
from conftest import SHALLOW
from jaxcnn.layers import BatchNorm, Conv, Dense, avg_pool, max_pool, relu
from jaxcnn.models import (
    MODELS,
    VGG,
    BasicBlock,
    Bottleneck,
    DenseBlock,
    Inception,
    LeNet,
    Residual,
    ResNet,
    ResNeXtBlock,
    SmallNet,
    VGGBlock,
    build_model,
    create_model,
    describe_model,
)
from jaxcnn.ops.cpu.primitives import ALL

# image size, parameters, running averages of BatchNorm
TABLE = {
    "lenet": (28, 61_706, 0),
    "lenet_modern": (28, 61_706, 0),
    "alexnet": (224, 46_764_746, 0),
    "vgg": (224, 43_093_322, 0),
    "vgg11": (224, 128_806_154, 0),
    "nin": (224, 1_992_166, 0),
    "googlenet": (96, 5_977_530, 0),
    "resnet18": (96, 11_178_378, 2 * 3_904),
    "resnet34": (96, 21_283_530, 2 * 8_512),
    "resnet50": (96, 23_522_250, 2 * 26_560),
    "resnext50": (96, 22_994_122, 2 * 34_112),
    "densenet": (96, 758_226, 2 * 3_304),
    "small_tiny": (28, 70_330, 2 * 208),
    "small_fast": (28, 279_402, 2 * 416),
    "small_best": (28, 1_165_930, 2 * 928),
}
TORCHVISION = {"resnet34": 21_797_672, "resnet50": 25_557_032, "resnext50": 25_028_904}


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


@pytest.mark.parametrize("name", TORCHVISION)
def test_parameter_counts_of_torchvision(name):
    model = create_model(name, num_classes=1000)
    images = jnp.zeros((1, 64, 64, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    assert count(variables["params"]) == TORCHVISION[name]


def conv(k, i, o):
    return k * k * i * o + o


def dense(i, o):
    return i * o + o


def test_parameter_counts_by_hand():

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


def test_parameter_counts_of_the_rest_of_chapter_8_by_hand():
    alexnet = conv(11, 1, 96) + conv(5, 96, 256) + conv(3, 256, 384) + conv(3, 384, 384)
    alexnet += conv(3, 384, 256) + dense(5 * 5 * 256, 4096) + dense(4096, 4096) + dense(4096, 10)
    assert TABLE["alexnet"][1] == alexnet
    nin = conv(11, 1, 96) + conv(5, 96, 256) + conv(3, 256, 384) + conv(3, 384, 10)
    nin += 2 * sum(conv(1, n, n) for n in (96, 256, 384, 10))
    assert TABLE["nin"][1] == nin
    densenet, channels, averages = conv(7, 1, 64), 64, 64
    for block in range(4):
        for _ in range(4):
            densenet += conv(3, channels, 32)
            averages += channels
            channels += 32
        if block < 3:
            densenet += conv(1, channels, channels // 2)
            averages += channels
            channels //= 2
    averages += channels
    assert TABLE["densenet"][1:] == (densenet + 2 * averages + dense(channels, 10), 2 * averages)


@pytest.mark.parametrize(
    ("name", "size", "channels"),
    [
        ("small_tiny", 3, (16, 32, 64)),
        ("small_fast", 5, (32, 64, 128)),
        ("small_best", 3, (32, 64, 128, 256)),
    ],
)
def test_parameter_counts_of_the_small_networks_by_hand(name, size, channels):
    averages = 2 * (channels[0] + 2 * sum(channels[1:]))
    kernels = size * size * channels[0]
    kernels += sum(9 * (i * o + o * o) for i, o in itertools.pairwise(channels))
    assert TABLE[name][1:] == (kernels + averages + dense(channels[-1], 10), averages)


def test_a_stem_of_even_size_is_refused():
    with pytest.raises(ValueError, match="kernel_size is 4; it must be odd"):
        shapes("small_fast", 28, stem_kernel_size=4)


def test_parameter_counts_of_googlenet_and_vgg11_by_hand():
    def inception(i, c1, c2, c3, c4):
        count = conv(1, i, c1) + conv(1, i, c2[0]) + conv(3, *c2) + conv(1, i, c3[0])
        return count + conv(5, *c3) + conv(1, i, c4), c1 + c2[1] + c3[1] + c4

    googlenet, channels = conv(7, 1, 64) + conv(1, 64, 64) + conv(3, 64, 192), 192
    for branches in (  # d2l 8.4.2
        (64, (96, 128), (16, 32), 32),
        (128, (128, 192), (32, 96), 64),
        (192, (96, 208), (16, 48), 64),
        (160, (112, 224), (24, 64), 64),
        (128, (128, 256), (24, 64), 64),
        (112, (144, 288), (32, 64), 64),
        (256, (160, 320), (32, 128), 128),
        (256, (160, 320), (32, 128), 128),
        (384, (192, 384), (48, 128), 128),
    ):
        count, channels = inception(channels, *branches)
        googlenet += count
    assert TABLE["googlenet"][1] == googlenet + dense(1024, 10)
    vgg11 = conv(3, 1, 64) + conv(3, 64, 128) + conv(3, 128, 256) + conv(3, 256, 256)
    vgg11 += conv(3, 256, 512) + 3 * conv(3, 512, 512)
    vgg11 += dense(7 * 7 * 512, 4096) + dense(4096, 4096) + dense(4096, 10)
    assert TABLE["vgg11"][1] == vgg11


def test_inception_has_four_branches():
    """Of 480 channels d2l makes 192, 208, 48 and 64."""
    block = Inception(192, (96, 208), (16, 48), 64)
    images = jnp.zeros((2, 6, 7, 480))
    y, variables = jax.eval_shape(block.init_with_output, jax.random.key(0), images)
    assert y.shape == (2, 6, 7, 512)
    kernels = {name: layer["kernel"].shape for name, layer in variables["params"].items()}
    assert kernels == {
        "b1_1": (1, 1, 480, 192),
        "b2_1": (1, 1, 480, 96),
        "b2_2": (3, 3, 96, 208),
        "b3_1": (1, 1, 480, 16),
        "b3_2": (5, 5, 16, 48),
        "b4_2": (1, 1, 480, 64),
    }


def test_a_dense_block_hands_its_input_on():
    """Each convolution sees the input and all maps before it."""
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(4, 8, 8, 3)), jnp.float32)
    block = DenseBlock(2, 10)
    y, variables = jax.jit(block.init_with_output)(jax.random.key(0), x)
    assert y.shape == (4, 8, 8, 23)
    np.testing.assert_array_equal(y[..., :3], x)
    kernels = [variables["params"][f"conv{i}"]["kernel"].shape for i in (1, 2)]
    assert kernels == [(3, 3, 3, 10), (3, 3, 13, 10)]


@pytest.mark.parametrize(("channels", "groups"), [(40, 16), (24, 16), (8, 16), (8, 0)])
def test_channels_that_groups_do_not_divide_are_refused(channels, groups):
    block = ResNeXtBlock(channels, groups)
    with pytest.raises(ValueError, match=f"{channels} channels cannot be divided into groups of"):
        jax.eval_shape(block.init, jax.random.key(0), jnp.zeros((1, 9, 9, channels)))


@pytest.mark.parametrize(
    ("block", "middle"),
    [
        (Bottleneck(256, use_1x1conv=True, strides=2), (3, 3, 64, 64)),
        (Bottleneck(256, groups=32, bot_mul=0.5, use_1x1conv=True), (3, 3, 4, 128)),
        (ResNeXtBlock(32, 16, 1, True), (3, 3, 16, 32)),  # 16 channels a group: two groups
        (ResNeXtBlock(32, 4, 0.5, True, 2), (3, 3, 4, 16)),
    ],
)
def test_a_bottleneck_has_its_groups_and_strides_in_the_middle(block, middle):
    images = jnp.zeros((2, 9, 8, 12))
    y, variables = jax.eval_shape(block.init_with_output, jax.random.key(0), images)
    size = (9, 8) if block.strides == 1 else (5, 4)
    assert y.shape == (2, *size, block.num_channels)
    kernels = {
        name: layer["kernel"].shape
        for name, layer in variables["params"].items()
        if name.startswith("conv")
    }
    width = middle[-1]
    assert kernels == {
        "conv1": (1, 1, 12, width),
        "conv2": middle,
        "conv3": (1, 1, width, block.num_channels),
        "conv4": (1, 1, 12, block.num_channels),
    }
    has_bias = isinstance(block, ResNeXtBlock)
    assert all(("bias" in variables["params"][name]) == has_bias for name in kernels)


def test_shortcuts_are_projected_where_the_shape_changes_alone():
    """In the first stage too, if a bottleneck widens the stem's output."""
    for name, first in (("resnet18", 0), ("resnet34", 0), ("resnet50", 1), ("resnext50", 1)):
        params = shapes(name, 32)[1]["params"]
        projection = "conv3" if name in ("resnet18", "resnet34") else "conv4"
        projected = sorted(block for block, layers in params.items() if projection in layers)
        assert projected == ["b2_0"] * first + ["b3_0", "b4_0", "b5_0"]


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_has_the_models_fields(name):
    given = {"dtype": jnp.bfloat16, "axis_name": "devices", "implementation": "xla"}
    model, seen = create_model(name, **given, **SHALLOW.get(name, {})), set()

    def note(run, args, kwargs, context):
        if isinstance(context.module, Conv | Dense | BatchNorm):
            fields = {key: getattr(context.module, key, value) for key, value in given.items()}
            seen.add(context.module.path)
            assert fields == given, context.module.path
        return run(*args, **kwargs)

    images = jnp.zeros((1, *[TABLE[name][0]] * 2, 1))
    with nn.intercept_methods(note):
        jax.eval_shape(model.init, jax.random.key(0), images)
    assert len(seen) > 3


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_described_in_json(name):
    for fields in ({}, SHALLOW.get(name, {}), {"num_classes": 7, "dtype": jnp.bfloat16}):
        model = create_model(name, **fields)
        assert build_model(json.loads(json.dumps(describe_model(model)))) == model


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("densenet", {"growth_rate": 12, "num_channels": 24, "arch": (2, 3)}),
        ("vgg", {"hidden_features": 12, "dropout_rate": 0.1, "arch": ((1, 4), (1, 8))}),
        ("small_tiny", {"stem_channels": 4, "logit_scale": 0.1, "arch": (8,)}),
        ("small_tiny", {"stem_kernel_size": 7, "stem_pool": True}),
    ],
)
def test_fields_of_the_architecture_are_described(name, fields):
    model = create_model(name, **fields)
    assert build_model(describe_model(model)) == model


def test_a_model_of_other_blocks_is_not_described():
    assert describe_model(ResNet(arch=((1, 32),), block=ResNeXtBlock)) is None


@pytest.mark.parametrize("name", MODELS)
def test_number_of_classes(name):
    fields = SHALLOW.get(name, {}) | {"num_classes": 7}
    assert shapes(name, TABLE[name][0], **fields)[0].shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "size", "features"),
    [
        ("lenet_modern", 28, 84),
        ("alexnet", 65, 4096),
        ("vgg", 32, 4096),
        ("googlenet", 32, 1024),
        ("resnet18", 32, 512),
        ("resnet50", 32, 2048),
        ("densenet", 32, 248),
        ("small_tiny", 28, 64),
        ("small_fast", 28, 128),
    ],
)
def test_without_classes_a_model_gives_what_the_last_layer_takes(name, size, features):
    key, images = jax.random.key(0), jnp.zeros((2, size, size, 1))
    y, variables = jax.eval_shape(create_model(name, num_classes=0).init_with_output, key, images)
    assert y.shape == (2, features)
    with_classes = jax.eval_shape(create_model(name).init, key, images)
    (last,) = with_classes["params"].keys() - variables["params"].keys()
    assert with_classes["params"][last]["kernel"].shape == (features, 10)


def test_without_classes_nin_gives_the_mean_of_what_its_last_block_takes():
    y, variables = shapes("nin", 67, num_classes=0)
    assert y.shape == (2, 384)
    assert set(variables["params"]) == {"block1", "block2", "block3"}


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_keeps_float32_parameters_and_logits(name):
    fields = SHALLOW.get(name, {}) | {"dtype": jnp.bfloat16}
    logits, variables = shapes(name, TABLE[name][0], **fields)
    assert logits.dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(variables)} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("lenet", 11),
        ("alexnet", 64),
        ("vgg", 31),
        ("vgg11", 16),
        ("nin", 66),
        ("densenet", 28),
        ("small_tiny", 3),
        ("small_fast", 7),
    ],
)
def test_too_small_an_image_is_refused(name, size):
    with pytest.raises(ValueError, match="does not fit"):
        shapes(name, size)
    assert shapes(name, size + 16)[0].shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, jnp.uint8) for name in MODELS), ("lenet", jnp.int32)]
)
def test_pixels_that_nobody_has_scaled_are_refused(name, dtype):
    """At `init` they may be: it asks for their shape alone."""
    size = TABLE[name][0]
    model = create_model(name, **SHALLOW.get(name, {}))
    images = jax.ShapeDtypeStruct((2, size, size, 1), dtype)
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
def test_of_the_engine_nothing_remains_with_implementation_xla(name, monkeypatch):
    engine = {"platform_index", "ffi_call", *(primitive.name for primitive in ALL)}
    images = jax.ShapeDtypeStruct((2, *[TABLE[name][0]] * 2, 1), jnp.float32)
    create = partial(create_model, name, **SHALLOW.get(name, {}))

    def traced(model):
        keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        variables = jax.eval_shape(model.init, keys, images)

        def loss(variables, images):
            return model.apply(variables, images, train=True, mutable=["batch_stats"], rngs=keys)[
                0
            ].sum()

        return primitives(jax.make_jaxpr(jax.grad(loss, allow_int=True))(variables, images).jaxpr)

    assert engine & traced(create())
    assert not engine & traced(create(implementation="xla"))
    monkeypatch.setenv("JAXCNN_IMPLEMENTATION", "xla")
    assert not engine & traced(create())


class Grouped(nn.Module):
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
    model = ResNet(arch=((1, 8), (2, 16)), block=Grouped)
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
    model = VGG(arch=((1, 4), (1, 8)), hidden_features=64)
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


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck, ResNeXtBlock])
def test_other_residual_blocks_that_cannot_add_are_refused(block):
    with pytest.raises(ValueError, match=r"\(4, 6, 6, 3\).*\(4, 6, 6, 16\).*use_1x1conv"):
        jax.eval_shape(block(16).init, jax.random.key(0), jnp.ones((4, 6, 6, 3)))


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
    model = create_model("resnet18", **SHALLOW["resnet18"])
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(4, 32, 32, 1)), jnp.float32)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    apply = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))
    _, updates = apply(variables, images)
    before, after = (jax.tree.leaves(v["batch_stats"]) for v in (variables, updates))
    assert len(after) == (1 + 2 * 2) * 2  # the stem's and two per block, mean and variance each
    assert all((a != b).any() for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("implementation", ["auto", "xla"])
def test_gradients_of_single_images_go_through_the_maximum(implementation):
    """As compiled here, XLA computes small maps more than once, rounded otherwise each time."""
    model = SmallNet((4, 6), stem_channels=3, implementation=implementation)
    images = np.random.default_rng(0).random((8, 1, 9, 10, 2)).astype(np.float32)
    variables = model.init(jax.random.key(0), images[0])

    def total(params, image):
        given = {**variables, "params": params}
        logits, _ = model.apply(given, image, train=True, mutable=["batch_stats"])
        return jnp.square(logits).sum()

    gradient = jax.grad(total)
    compiled = jax.jit(gradient)
    for image in images:
        expected = gradient(variables["params"], image)  # each operation a program of its own
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3),
            compiled(variables["params"], image),
            expected,
        )
