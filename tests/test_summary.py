"""The table of layers: d2l's printed shapes, and costs against XLA's own count."""

import dataclasses
import io
import itertools
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from rich.console import Console

from conftest import SHALLOW
from jaxcnn.__main__ import main
from jaxcnn.inspect import layer_summary, summary_table
from jaxcnn.layers import Conv
from jaxcnn.models import MODELS, LeNet, create_model

LENET = [
    ("Conv", (1, 6, 28, 28)),
    ("sigmoid", (1, 6, 28, 28)),
    ("avg_pool", (1, 6, 14, 14)),
    ("Conv", (1, 16, 10, 10)),
    ("sigmoid", (1, 16, 10, 10)),
    ("avg_pool", (1, 16, 5, 5)),
    ("flatten", (1, 400)),
    ("Dense", (1, 120)),
    ("sigmoid", (1, 120)),
    ("Dense", (1, 84)),
    ("sigmoid", (1, 84)),
    ("Dense", (1, 10)),
]
MODERN = [(t.replace("sigmoid", "relu").replace("avg_pool", "max_pool"), s) for t, s in LENET]
HIDDEN = [("Dense", (1, 4096)), ("relu", (1, 4096)), ("Dropout", (1, 4096))]
VGG11 = [
    *[
        ("VGGBlock", (1, channels, size, size))
        for channels, size in ((64, 112), (128, 56), (256, 28), (512, 14), (512, 7))
    ],
    ("flatten", (1, 25088)),
    *HIDDEN,
    *HIDDEN,
    ("Dense", (1, 10)),
]
ALEXNET = [
    *[(t, (1, 96, 54, 54)) for t in ("Conv", "relu")],
    ("max_pool", (1, 96, 26, 26)),
    *[(t, (1, 256, 26, 26)) for t in ("Conv", "relu")],
    ("max_pool", (1, 256, 12, 12)),
    *[(t, (1, 384, 12, 12)) for t in ("Conv", "relu", "Conv", "relu")],
    *[(t, (1, 256, 12, 12)) for t in ("Conv", "relu")],
    ("max_pool", (1, 256, 5, 5)),
    ("flatten", (1, 6400)),
    *HIDDEN,
    *HIDDEN,
    ("Dense", (1, 10)),
]
NIN = [
    ("NiNBlock", (1, 96, 54, 54)),
    ("max_pool", (1, 96, 26, 26)),
    ("NiNBlock", (1, 256, 26, 26)),
    ("max_pool", (1, 256, 12, 12)),
    ("NiNBlock", (1, 384, 12, 12)),
    ("max_pool", (1, 384, 5, 5)),
    ("Dropout", (1, 384, 5, 5)),
    ("NiNBlock", (1, 10, 5, 5)),
    ("global_avg_pool", (1, 10)),
]


def stages(*sizes):
    return [("Sequential", (1, channels, size, size)) for channels, size in sizes]


GOOGLENET = [
    *stages((64, 24), (192, 12), (480, 6), (832, 3)),
    ("Sequential", (1, 1024)),
    ("Dense", (1, 10)),
]
HEAD = ("Sequential", (1, 10))
RESNET18 = [*stages((64, 24), (64, 24), (128, 12), (256, 6), (512, 3)), HEAD]
RESNET50 = [*stages((64, 24), (256, 24), (512, 12), (1024, 6), (2048, 3)), HEAD]  # the paper's
DENSENET = [
    *stages((64, 24)),
    *(
        (name, (1, channels, size, size))
        for name, channels, size in (
            ("DenseBlock", 192, 24),
            ("Sequential", 96, 12),
            ("DenseBlock", 224, 12),
            ("Sequential", 112, 6),
            ("DenseBlock", 240, 6),
            ("Sequential", 120, 3),
            ("DenseBlock", 248, 3),
        )
    ),
    HEAD,
]
SIZES = {
    "lenet": 28,
    "lenet_modern": 28,
    "vgg": 224,
    "vgg11": 224,
    "alexnet": 224,
    "nin": 224,
    "googlenet": 96,
    "resnet18": 96,
    "resnet34": 96,
    "resnet50": 96,
    "resnext50": 96,
    "densenet": 96,
    "small_tiny": 28,
    "small_fast": 28,
    "small_best": 28,
}


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("lenet", LENET),
        ("lenet_modern", MODERN),
        ("alexnet", ALEXNET),
        ("vgg11", VGG11),
        ("nin", NIN),
        ("googlenet", GOOGLENET),
        ("resnet18", RESNET18),
        ("resnet50", RESNET50),
        ("densenet", DENSENET),
    ],
)
def test_d2l_tables_line_by_line(name, printed):
    rows = layer_summary(create_model(name), (1, SIZES[name], SIZES[name], 1))
    assert [(row.type, row.shape_nchw()) for row in rows if row.depth == 1] == printed


@pytest.mark.parametrize("name", MODELS)
def test_totals_are_the_models(name):
    model = create_model(name, **SHALLOW.get(name, {}))
    images = jax.ShapeDtypeStruct((2, *[SIZES[name]] * 2, 1), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    rows = layer_summary(model, images.shape)
    parameters = sum(x.size for x in jax.tree.leaves(variables["params"]))
    assert sum(row.parameters for row in rows if row.depth == 1) == parameters
    leaves = [row for row in rows if row.type in ("Conv", "Dense", "BatchNorm")]
    assert sum(row.parameters for row in leaves) == parameters
    assert sum(row.macs for row in leaves) == sum(row.macs for row in rows if row.depth == 1)
    paths = {row.name for row in leaves}
    flat = jax.tree_util.tree_flatten_with_path(variables["params"])[0]
    assert paths == {"/".join(key.key for key in path[:-1]) for path, _ in flat}


@pytest.mark.parametrize("name", ["lenet", "lenet_modern", "vgg", "small_tiny"])
def test_multiply_adds_are_the_same_in_bfloat16(name):
    model, shape = create_model(name), (2, SIZES[name], SIZES[name], 1)
    half = layer_summary(model.clone(dtype=jnp.bfloat16), shape)
    assert [row.macs for row in half] == [row.macs for row in layer_summary(model, shape)]


@pytest.mark.parametrize(("name", "size"), [("lenet", 28), ("vgg", 224), ("resnet18", 448)])
def test_multiply_adds_are_half_of_xlas_operations(name, size, monkeypatch):
    """XLA leaves out products with padding (few in large images) and counts biases and ReLU."""
    monkeypatch.setenv("JAXCNN_IMPLEMENTATION", "xla")  # of oneDNN's operations it knows nothing
    model = create_model(name)
    images = jax.ShapeDtypeStruct((1, size, size, 1), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    analysis = jax.jit(model.apply).lower(variables, images).compile().cost_analysis()
    macs = sum(row.macs for row in layer_summary(model, images.shape) if row.depth == 1)
    assert 0.9 < analysis["flops"] / (2 * macs) < 1.05


def seen(function, shape):
    """Return the rows and the columns that outputs at four positions in the middle depend on.

    Each row, and each column, of an image of ones is made brighter, to see which outputs change.

    Returns:
        [(first row, last), (first column, last)] for each position.
    """
    _, height, width, _ = shape
    lines = np.zeros((1 + height + width, *shape), np.float32)
    lines[np.arange(height) + 1, :, np.arange(height)] = 1
    lines[np.arange(width) + 1 + height, :, :, np.arange(width)] = 1
    y = np.asarray(jax.jit(jax.vmap(function))(1 + 1e8 * lines))
    rows, columns = np.split((y[1:] != y[0]).any(-1)[:, 0], [height])  # [lines, positions]
    middle = itertools.product(*((size // 2 - 1, size // 2) for size in rows.shape[1:]))
    return [[tuple(np.flatnonzero(x[:, *at])[[0, -1]]) for x in (rows, columns)] for at in middle]


def sizes_seen(function, shape):
    return {tuple(last - first + 1 for first, last in spans) for spans in seen(function, shape)}


def test_receptive_fields_of_lenet_are_where_outputs_change():
    rows = {row.name: row for row in layer_summary(LeNet(), (1, 28, 28, 1))}
    images = jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32)
    variables = jax.eval_shape(LeNet().init, jax.random.key(0), images)
    variables = jax.tree.map(lambda x: jnp.full(x.shape, 0.1), variables)

    def output(name, images):  # small enough for the sigmoid
        _, state = LeNet().apply(variables, images / 1e9, capture_intermediates=True)
        return state["intermediates"][name]["__call__"][0]

    for name in ("conv1", "conv2"):
        assert sizes_seen(partial(output, name), (1, 28, 28, 1)) == {rows[name].receptive_field}


def test_a_residual_block_sees_as_far_as_its_longer_branch():
    rows = {row.name: row for row in layer_summary(create_model("resnet18"), (1, 96, 96, 1))}
    assert rows["b1_conv"].receptive_field == (7, 7)
    assert rows["b2_0/conv1"].receptive_field == (19, 19)  # 11 after pooling, then 2 * 4 more
    assert rows["b3_0/conv3"].receptive_field == rows["b2_1"].receptive_field == (43, 43)
    assert rows["b3_0"].receptive_field == rows["b3_0/conv2"].receptive_field == (67, 67)


def test_any_linen_module_can_be_summarised():
    class Mine(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Dense(3, name="mix")(inputs=x))
            x = nn.Conv(6, (3, 1), strides=(2, 1), feature_group_count=3)(x)
            return nn.Sequential([nn.Dense(5), nn.tanh])(x)

    rows = layer_summary(Mine(), (2, 4, 4, 2))
    assert [(r.type, r.name, r.parameters, r.macs, r.receptive_field) for r in rows] == [
        ("Dense", "mix", 9, 2 * 4 * 4 * 2 * 3, (1, 1)),
        ("Conv", "", 3 * 6 + 6, 2 * 2 * 4 * 6 * 3, (3, 1)),
        ("Dense", "", 35, 2 * 2 * 4 * 6 * 5, (3, 1)),
        ("tanh", "", 0, 0, (3, 1)),
    ]


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\[N, H, W, C\].*\(28, 28\)"):
        layer_summary(LeNet(), (28, 28))
    with pytest.raises(ValueError, match="does not fit"):
        layer_summary(LeNet(), (1, 8, 8, 1))


def test_command_prints_the_table(capsys):
    assert main(["summary", "resnet18", "--input", "96", "--depth", "1", "--nchw"]) == 0
    out = capsys.readouterr().out
    for words in ("1 x 64 x 24 x 24", "1 x 512 x 3 x 3", "11,178,378", "318,657,536"):
        assert words in out
    assert main(["summary", "resnet81"]) == 2
    assert "did you mean 'resnet18'" in capsys.readouterr().err


class Net(nn.Module):
    """A model that is one function of itself and the images."""

    call: Callable

    @nn.compact
    def __call__(self, x):
        return self.call(self, x)


def conv(features, size=3, **options):
    return nn.Conv(features, (size, size), kernel_init=nn.initializers.ones, **options)


def dense(features, **options):
    return nn.Dense(features, kernel_init=nn.initializers.ones, **options)


def facts(call, shape=(2, 9, 8, 3)):
    """Name or type, parameters, shared ones and costs of each row; checks the total."""
    model = call if isinstance(call, nn.Module) else Net(call)
    variables = jax.eval_shape(
        model.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32)
    )
    rows = layer_summary(model, shape)
    parameters = sum(x.size for x in jax.tree.leaves(variables["params"]))
    assert sum(row.parameters for row in rows if row.depth == 1) == parameters
    return [(row.name or row.type, row.parameters, row.shared_parameters, row.macs) for row in rows]


def test_shared_layers_count_once(capsys):
    def shared(model, x):
        a, b = conv(1, name="a"), conv(1, name="b")
        return a(b(a(x)))

    cost = 9 * 8 * 9
    assert facts(shared, (1, 9, 8, 1)) == [
        ("a", 10, 0, cost),
        ("b", 10, 0, cost),
        ("a", 0, 10, cost),
    ]
    Console(width=120).print(summary_table(layer_summary(Net(shared), (1, 9, 8, 1))))
    *_, last, _, foot, _ = capsys.readouterr().out.splitlines()
    assert "10 shared" in last
    assert foot.split()[1:-1] == ["total", "│", "│", "│", "20", "│", f"{3 * cost:,}", "│"]


def test_layers_that_are_shared_at_another_depth():
    class Block(nn.Module):
        outer: nn.Module

        @nn.compact
        def __call__(self, x):
            return dense(3, name="own")(self.outer(self.outer(x)))

    def nested(model, x):
        outer = conv(3, name="outer")
        return Block(outer, name="second")(Block(outer, name="first")(x))

    pixels = 2 * 9 * 8
    assert facts(nested) == [
        ("first", 84 + 12, 0, pixels * (81 + 81 + 9)),
        ("outer", 84, 0, pixels * 81),
        ("outer", 0, 84, pixels * 81),
        ("first/own", 12, 0, pixels * 9),
        ("second", 12, 84, pixels * (81 + 81 + 9)),
        ("outer", 0, 84, pixels * 81),
        ("outer", 0, 84, pixels * 81),
        ("second/own", 12, 0, pixels * 9),
    ]


def test_what_the_model_has_beside_its_layers_is_its_row():
    class Scaled(nn.Module):
        @nn.compact
        def __call__(self, x):
            scale = self.param("scale", nn.initializers.ones, (1, 1, 1, 3))
            kernel = self.param("kernel", nn.initializers.ones, (3, 1, 3, 3))
            x = lax.conv_general_dilated(
                x * scale, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            return dense(3, name="dense")(x)

    pixels = 2 * 9 * 8
    assert facts(Scaled()) == [
        ("dense", 12, 0, pixels * 9),
        ("Scaled", 3 + 27, 0, pixels * 27),
    ]
    inner = ("inner", 3 + 27 + 12, 0, pixels * (27 + 9))
    assert facts(lambda model, x: Scaled(name="inner")(x))[0] == inner
    assert facts(nn.Dense(3)) == [("Dense", 12, 0, pixels * 9)]
    scale = ("Net", 1, 0, 0)
    assert facts(lambda model, x: dense(3)(x) * model.param("a", nn.initializers.ones, (1,) * 4))[
        1:
    ] == [scale]
    assert layer_summary(Scaled(), (2, 9, 8, 3))[-1].receptive_field == (3, 1)


class Step(nn.Module):
    """A layer, and a result beside the state, as `nn.scan` wants it."""

    features: int = 3

    @nn.compact
    def __call__(self, x, _=None):
        return conv(self.features, name="conv")(x), x.mean()


LIFTED = {
    "scan": (
        lambda model, x: nn.scan(
            Step, variable_axes={"params": 0}, split_rngs={"params": True}, length=5
        )(name="step")(x, None)[0],
        (5, 5),
    ),
    "long scan with one set of parameters": (
        lambda model, x: nn.scan(
            Step, variable_broadcast="params", split_rngs={"params": False}, length=70
        )(name="step")(x, None)[0],
        (1, 70),
    ),
    "vmap": (
        lambda model, x: nn.vmap(
            Step,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=None,
            axis_size=4,
        )(name="step")(x)[0],
        (4, 4),
    ),
    "vmap of images": (
        lambda model, x: nn.vmap(
            Step, variable_axes={"params": None}, split_rngs={"params": False}
        )(name="step")(x)[0],
        (1, 1),
    ),
    "checkpoint": (lambda model, x: nn.checkpoint(Step)(name="step")(x)[0], (1, 1)),
    "jit": (lambda model, x: nn.jit(Step)(name="step")(x)[0], (1, 1)),
}


@pytest.mark.parametrize("name", LIFTED)
def test_lifted_layers(name):
    call, (copies, runs) = LIFTED[name]
    cost = runs * 2 * 9 * 8 * 81
    rows = [("step", copies * 84, 0, cost), ("step/conv", copies * 84, 0, cost)]
    assert facts(call) == rows
    (row, _) = layer_summary(Net(call), (2, 9, 8, 3))
    assert row.shape is None  # it returns two arrays
    assert row.receptive_field is None


def test_what_is_compiled_once_for_two_layers():
    class Compiled(nn.Module):
        def setup(self):
            self.inner = conv(3)

        @nn.jit
        def __call__(self, x):
            return self.inner(x)

    class Two(nn.Module):
        def setup(self):
            self.a, self.b = Compiled(), Compiled()

        def __call__(self, x):
            return self.a(self.b(x))

    cost = 2 * 9 * 8 * 81
    rows = facts(Two())
    assert rows == [("b", 84, 0, cost), ("b/inner", 84, 0, cost), ("Two", 84, 0, cost)]
    assert facts(Two()) == rows  # nothing is left of the first time
    x = jnp.ones((2, 9, 8, 3))
    assert "jaxcnn" not in str(jax.make_jaxpr(Two().init)(jax.random.key(0), x))


def test_what_is_no_layer_is_a_part_of_the_one_around():
    class Aside(nn.Module):
        """Returns nothing; its parameters and product are its own."""

        @nn.compact
        def __call__(self, x):
            kernel = self.param("kernel", nn.initializers.ones, (3, 2))
            self.sow(
                "intermediates", "y", dense(5, name="dense")(x) @ jnp.ones((5, 2)) + x @ kernel
            )

    class Around(nn.Module):
        @nn.compact
        def __call__(self, x):
            Aside(name="aside")(x)
            other = dense(4)  # a model within, with variables of its own
            variables = self.param("other", lambda key: other.init(key, x))
            return other.apply(variables, x)

    pixels = 2 * 9 * 8
    assert facts(lambda model, x: Around(name="around")(x)) == [
        ("around", 6 + 20 + 16, 0, pixels * (6 + 15 + 10 + 12)),
        ("around/aside/dense", 20, 0, pixels * 15),
    ]
    assert facts(Around()) == [
        ("aside/dense", 20, 0, pixels * 15),
        ("Around", 6 + 16, 0, pixels * (6 + 10 + 12)),
    ]


def test_what_cannot_be_counted_is_left_empty(capsys):
    def loop(model, x):
        kernel = model.param("kernel", nn.initializers.ones, (3, 3))
        y = lax.while_loop(lambda y: y.sum() < 9, lambda y: y @ kernel, dense(3)(x))
        return dense(2)(x + y)

    assert facts(loop) == [
        ("Dense", 12, 0, 2 * 9 * 8 * 9),
        ("Dense", 8, 0, 2 * 9 * 8 * 6),
        ("Net", 9, 0, None),
    ]
    rows = layer_summary(Net(loop), (2, 9, 8, 3))
    assert [row.receptive_field for row in rows] == [(1, 1), None, None]
    Console(width=120).print(summary_table(rows))
    foot = capsys.readouterr().out.splitlines()[-2]
    assert foot.split()[1:-1] == ["total", "│", "│", "│", "29", "│", "│"]


def test_costs_of_products_other_than_layers():
    def up(model, x):
        return nn.ConvTranspose(5, (3, 2), (2, 3), padding="VALID")(x)

    def attention(model, x):
        tokens = x.reshape(2, 72, 3)
        return nn.MultiHeadDotProductAttention(3, name="attention")(tokens)

    def resize(model, x):
        return dense(1)(jax.image.resize(x, (2, 18, 16, 3), "bilinear"))

    assert facts(resize) == [("Dense", 4, 0, 2 * 18 * 16 * 3)]
    assert facts(up)[0][3] == 2 * 9 * 8 * 3 * 2 * 3 * 5
    projections = 4 * 2 * 72 * 3 * 3
    assert facts(attention)[0] == ("attention", 4 * 12, 0, projections + 2 * (2 * 72 * 72 * 3))


class Trained(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = True):
        return nn.BatchNorm(use_running_average=not train)(x)


class Untold(nn.Module):
    @nn.compact
    def __call__(self, x, training):
        return nn.Dropout(0.5, deterministic=not training)(x)


class ByName(nn.Module):
    @nn.compact
    def __call__(self, *, images, is_training):
        return nn.BatchNorm(use_running_average=not is_training)(x=images)


@pytest.mark.parametrize(
    "model",
    [
        Trained(),
        Trained,
        Untold(),
        ByName(),
        nn.BatchNorm(),
        nn.Dropout(0.5),
        nn.Dropout(0.5, deterministic=True),
    ],
)
def test_models_are_called_as_for_evaluation(model):
    """In training, BatchNorm depends on the whole image, and dropout takes a key."""
    (row,) = layer_summary(model, (2, 9, 8, 3))
    assert (row.shape, row.receptive_field) == ((2, 9, 8, 3), (1, 1))


def test_partial_models():
    rows = layer_summary(create_model("lenet", num_classes=3), (1, 28, 28, 1))
    assert layer_summary(partial(LeNet, num_classes=3), (1, 28, 28, 1)) == rows
    assert layer_summary(partial(LeNet(num_classes=3), train=True), (1, 28, 28, 1)) == rows
    (row,) = layer_summary(partial(Trained(), train=True), (2, 9, 8, 3))
    assert row.receptive_field == (9, 8)


def test_several_outputs_and_other_methods():
    class Autoencoder(nn.Module):
        def setup(self):
            self.encoder, self.decoder = dense(4), dense(3)

        def encode(self, x):
            return {"code": self.encoder(x)}

        def decode(self, code):
            return self.decoder(code), code

        def __call__(self, x):
            return self.decode(**self.encode(x))

    model = nn.Sequential([Autoencoder(), lambda x, code: {"x": x}, lambda x: -x])
    shapes = [(row.depth, row.type, row.shape) for row in layer_summary(model, (2, 9, 8, 3))]
    assert shapes == [
        (1, "Autoencoder", None),
        (2, "Dense", (2, 9, 8, 4)),
        (2, "Dense", (2, 9, 8, 3)),
        (1, "<lambda>", (2, 9, 8, 3)),
        (1, "<lambda>", (2, 9, 8, 3)),
    ]

    def methods(model, x):
        ae = Autoencoder(name="ae")
        return ae.decode(**ae.encode(x))

    rows = layer_summary(Net(methods), (2, 9, 8, 3))
    assert [(row.type, row.name, row.parameters) for row in rows] == [
        ("Autoencoder.encode", "ae", 16),
        ("Dense", "ae/encoder", 16),
        ("Autoencoder.decode", "ae", 15),
        ("Dense", "ae/decoder", 15),
    ]


def attend(tokens, mask=None):
    layer = nn.MultiHeadDotProductAttention(1, kernel_init=nn.initializers.ones)
    return layer(tokens, mask=mask).mean(1)


def attend_with_added_mask(tokens):
    mask = jnp.where(jnp.tri(tokens.shape[1], dtype=bool), 0.0, -1e9)
    return (nn.softmax(tokens[0] @ tokens[0].T + mask) @ tokens[0])[None].mean(1)


def as_tokens(x):
    return x.reshape(x.shape[0], -1, x.shape[-1])


def normalized(x):
    mean, std = np.float32([[[[0.5, -0.1]]]]), np.float32([[[[0.2, 0.3]]]])
    return (x - mean) / std + jnp.zeros(x.shape)


def convolve(x, kernel):
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)


def pad(x, axis, low, high):
    return jnp.pad(x, [(low, high) if k == axis else (0, 0) for k in range(x.ndim)])


def concat(*branches):
    return jnp.concatenate(branches, 3)


def side_by_side(x):
    layers = nn.vmap(nn.Conv, variable_axes={"params": 0}, split_rngs={"params": True})
    return layers(2, (3, 3), kernel_init=nn.initializers.ones)(jnp.stack([x, 2 * x])).sum(0)


def one_after_another(x):
    layers = nn.scan(Step, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
    return layers(2)(x, None)[0]


def pools(x):
    return nn.avg_pool(nn.max_pool(x, (2, 3)), (3, 3), (2, 2), "SAME", count_include_pad=False)


class Masked(nn.Module):
    @nn.compact
    def __call__(self, x):
        return (
            x * self.variable("masks", "mask", lambda: pad(jnp.ones((1, 7, 1, 1)), 1, 0, 9)).value
        )


# What the images [1, 16, 20, 2] go through, and the receptive field.
KNOWN = {
    "reshape": (lambda x: dense(3)(conv(2, padding="VALID")(x).reshape(1, -1)), (16, 20)),
    "features": (lambda x: x[:, 2:].reshape(1, -1), (14, 20)),
    "mean of the image": (lambda x: dense(3)(x.mean((1, 2))), (16, 20)),
    "mean of columns": (lambda x: dense(3)(conv(2, padding="VALID")(x).mean(1)), (16, 3)),
    "branches": (lambda x: conv(3, 1)(concat(x, conv(2, 5)(x), conv(2)(conv(2)(x)))), (5, 5)),
    "branches side by side": (lambda x: concat(x, conv(2)(x)), (3, 3)),
    "maximum of branches": (lambda x: jnp.stack([x, conv(2)(x), conv(2, 5)(x)]).max(0), (5, 5)),
    "halves of the channels": (lambda x: concat(*map(conv(1), jnp.split(x, 2, 3))), (3, 3)),
    "channels of zeros": (lambda x: pad(conv(2)(x), 3, 1, 1), (3, 3)),
    "skip": (lambda x: x + conv(2)(nn.relu(conv(2)(x))), (5, 5)),
    "sum of all": (lambda x: sum([x, conv(2)(x)]), (3, 3)),
    "gate": (lambda x: conv(2)(x * dense(2)(x.mean((1, 2), keepdims=True))), (16, 20)),
    "slices": (lambda x: conv(2)(x[:, 1:-1:2, ::3]), (5, 7)),
    "transpose": (lambda x: conv(2)(x[:, :, 3:].swapaxes(1, 2))[:, ::-1], (3, 3)),
    "reversal": (lambda x: x[:, ::-1][:, 1:][:, ::-1] + x[:, 1:], (2, 1)),
    "layers side by side": (side_by_side, (3, 3)),
    "one layer after another": (one_after_another, (7, 7)),
    "channels first": (lambda x: conv(2)(x).transpose(0, 3, 1, 2), (3, 3)),
    "shuffled channels": (
        lambda x: conv(4)(x).reshape(1, 16, 20, 2, 2).swapaxes(3, 4).reshape(1, 16, 20, 4),
        (3, 3),
    ),
    "mean of tokens": (lambda x: dense(2)(as_tokens(x)).mean(1), (16, 20)),
    "attention": (lambda x: attend(as_tokens(x)), (16, 20)),
    "dilation and groups": (
        lambda x: conv(4, kernel_dilation=(2, 3), feature_group_count=2, strides=(2, 1))(x),
        (5, 7),
    ),
    "windows": (
        lambda x: lax.reduce_window(x, np.float32(0), lax.add, (1, 3, 2, 1), (1, 2, 2, 1), "SAME"),
        (3, 2),
    ),
    "pooling": (pools, (4, 5)),
    "constants": (lambda x: conv(2)(normalized(x)), (3, 3)),
    "noise": (lambda x: x + jax.random.normal(jax.random.key(0), x.shape), (1, 1)),
}
# What is not the same for all outputs, or is not told.
UNKNOWN = {
    "channels of one branch": lambda x: concat(x, conv(2)(x))[..., :2],
    "groups of two branches": lambda x: conv(4, 1, feature_group_count=4)(concat(x, conv(2)(x))),
    "windows over channels": lambda x: lax.reduce_window(
        concat(x, conv(2)(x)), np.float32(0), lax.add, (1, 1, 1, 2), (1, 1, 1, 2), "VALID"
    ),
    "branches, channels first": lambda x: concat(x, conv(2)(x)).transpose(0, 3, 1, 2),
    "one channel of zeros": lambda x: pad(x, 3, 0, 1)[..., 2:],
    "two scales": lambda x: x[:, ::2] + x[:, :8],
    "gate of a part": lambda x: x * x[:, 4:].mean((1, 2), keepdims=True),
    "upside down": lambda x: x + x[:, ::-1],
    "tokens": lambda x: dense(2)(as_tokens(x)),
    "tokens, as features": lambda x: as_tokens(x).swapaxes(1, 2),
    "space to depth": lambda x: x.reshape(1, 8, 2, 10, 2, 2).max((2, 4)),
    "up": lambda x: nn.ConvTranspose(2, (2, 2), (2, 2))(x),
    "nearest": lambda x: jax.image.resize(x, (1, 32, 40, 2), "nearest"),
    "bilinear": lambda x: jax.image.resize(x, (1, 32, 40, 2), "bilinear"),
    "circular": lambda x: conv(2, padding="CIRCULAR")(x),
    "picked": lambda x: jnp.take_along_axis(conv(2)(x), jnp.argmax(x, 3, keepdims=True), 3),
    "attention to what came before": lambda x: attend(
        as_tokens(x), nn.make_causal_mask(jnp.ones((1, 16 * 20)))
    ),
    "attention with a mask that is added": lambda x: attend_with_added_mask(as_tokens(x)),
    "mask": lambda x: jnp.where((jnp.arange(16) > 7)[None, :, None, None], x, 0),
    "mask of an array": lambda x: x * np.tri(16, 20, dtype=np.float32)[None, ..., None],
    "mask in a collection": lambda x: Masked()(x),
    "mask of a kernel": lambda x: conv(2, mask=jnp.ones((3, 3, 2, 2)).at[2].set(0))(x),
    "padded kernel": lambda x: convolve(x, pad(jnp.ones((1, 3, 2, 2)), 0, 1, 1)),
    "positions": lambda x: x + jnp.arange(20.0)[None, None, :, None],
    "nothing": lambda x: conv(2)(x * 0),
    "ones": lambda x: conv(2)(x**0),
    "zeros": lambda x: x * jnp.zeros_like(x),
    "beyond the image": lambda x: pad(x, 1, 40, 0)[:, :30],
    "one of two": lambda x: jnp.where(jnp.full(x.shape, False), conv(2)(x), x),
    "condition": lambda x: lax.cond(x.sum() > 0, lambda x: x + 1, lambda x: x, x),
    "running sum": lambda x: lax.scan(lambda y, row: (y + row,) * 2, x[:, 0], x.swapaxes(0, 1))[1],
    "sort": lambda x: jnp.sort(x, 1),
    "rows differ": lambda x: jnp.concatenate([conv(2)(x[:, :8]), conv(2, 5)(x[:, 8:])], 1),
}
GRAPHS = {graph: function for graph, (function, _) in KNOWN.items()} | UNKNOWN


class Branch(nn.Module):
    graph: str

    @nn.compact
    def __call__(self, x):
        return GRAPHS[self.graph](x)


class Graphs(nn.Module):
    @nn.compact
    def __call__(self, x):
        return {graph: Branch(graph, name=graph)(x) for graph in GRAPHS}


def test_receptive_fields_of_graphs_are_where_outputs_change():
    shape = (1, 16, 20, 2)
    rows = [row for row in layer_summary(Graphs(), shape) if row.depth == 1]
    found = dict(zip(GRAPHS, (row.receptive_field for row in rows), strict=True))
    assert found == {**dict.fromkeys(GRAPHS), **{graph: size for graph, (_, size) in KNOWN.items()}}
    for graph in set(KNOWN) - {"channels first", "attention", "noise"}:
        assert sizes_seen(partial(run, Branch(graph)), shape) == {found[graph]}, graph


def run(model, images):
    """Return what a model makes of images with parameters of which none is zero."""
    return model.init_with_output(jax.random.key(0), images)[0]


class Drawn(nn.Module):
    """A chain of operations that a random generator picks."""

    seed: int

    @nn.compact
    def __call__(self, x):
        rng = np.random.default_rng(self.seed)
        for _ in range(rng.integers(2, 6)):
            x = self.step(rng, x)
        ends = [lambda x: x.mean(1), lambda x: x.reshape(1, -1), lambda x: x.max(2)]
        x = [*ends, *[lambda x: x] * 4][rng.integers(7)](x)
        return x if rng.integers(2) else dense(2)(x)

    def step(self, rng, x):
        k, d, stride, low = rng.integers(1, 4, 4).tolist()
        axis, c = 1 + int(rng.integers(2)), x.shape[-1]
        name = rng.choice(["conv", "groups", "pool", "max", "skip", "concat", "slice", "pad"])
        if name in ("conv", "groups"):
            groups = 2 if name == "groups" else 1
            x = x if name == "conv" else dense(4)(x)  # mixes what branches see
            return nn.Conv(
                2 * int(rng.integers(1, 3)),
                (k, 2),
                (1, stride % 2 + 1),
                padding="VALID",
                kernel_dilation=(d, 1),
                feature_group_count=groups,
                kernel_init=nn.initializers.ones,
            )(x)
        if name in ("pool", "max"):
            function, start = (lax.add, 0.0) if name == "pool" else (lax.max, -np.inf)
            return nn.pool(x, start, function, (k, d), (1, stride % 2 + 1), "VALID")
        if name == "skip":
            return x + conv(c, 2 * (k // 2) + 1)(x)
        if name == "concat":
            return jnp.concatenate([x, conv(2, 3)(x), nn.max_pool(x, (3, 1), padding="SAME")], 3)
        if name == "pad":
            return jnp.pad(x, [(0, 0), (0, low), (k - 1, 0), (0, 0)])
        return lax.slice_in_dim(jnp.flip(x, 3 - axis), low, x.shape[axis] - 2, 1 + d % 2, axis)


def test_receptive_fields_of_random_graphs_are_where_outputs_change():
    """Padding counts as pixels: beside it, an output depends on fewer of them."""
    shape, found = (1, 48, 44, 2), {}
    for seed in range(24):
        row = layer_summary(Net(lambda _, x, seed=seed: Drawn(seed)(x)), shape)[0]
        found[seed] = row.receptive_field
        for spans in seen(partial(run, Drawn(seed)), shape) if found[seed] else []:
            for (first, last), length, size in zip(spans, shape[1:3], found[seed], strict=True):
                is_cut = first == 0 or last == length - 1
                assert last - first + 1 == size or (is_cut and last - first + 1 < size), seed
    assert list(found.values()).count(None) < 5


def test_an_output_depends_on_no_image():
    def embed(model, x):
        position = nn.Embed(9, 3, name="position")(jnp.arange(9))
        return dense(2)(x + position[None, :, None])

    rows = layer_summary(Net(embed), (2, 9, 8, 3))
    assert [(row.name, row.parameters, row.receptive_field) for row in rows] == [
        ("position", 27, None),
        ("", 8, (1, 1)),
    ]


def test_what_is_no_model_or_takes_other_images_is_refused_in_a_line():
    class Eight(nn.Module):
        @nn.compact
        def __call__(self, x, mask):
            assert x.shape[1] == 8, "eight rows, please\nand no more"
            return x

    for model, message in (
        (Eight(), "Eight cannot take images .2, 9, 8, 3.: .*argument: 'mask'"),
        (partial(Eight(), mask=None), "Eight cannot take images .*: eight rows, please$"),
        (Net(lambda model, x: x @ jnp.ones((4, 2))), "Net cannot take images .* got .3,. and .4,."),
        (nn.Embed(9, 3), "Embed cannot take images .*integer"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            layer_summary(model, (2, 9, 8, 3))
        assert "\n" not in str(error.value)
    for shape in (28, "1,28", (1, 28, 28.0, 1), (0, 28, 28, 1), (1, True, 28, 1)):
        with pytest.raises(ValueError, match=r"\[N, H, W, C\]"):
            layer_summary(LeNet(), shape)
    for thing in (create_model, None, nn.Module()):
        with pytest.raises(TypeError, match="takes a linen module, got"):
            layer_summary(thing, (1, 28, 28, 1))


def test_names_are_no_markup():
    (row,) = layer_summary(nn.Sequential([Conv(2, 1)]), (1, 3, 3, 1))
    table = summary_table([dataclasses.replace(row, name="stem[a] :cat:")], "net [a] :dog:")
    console = Console(file=io.StringIO(), width=120)
    console.print(table)
    for words in ("stem[a] :cat:", "net [a] :dog:"):
        assert words in console.file.getvalue()
