"""The table of layers: d2l's printed shapes, and costs against XLA's own count."""

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

from jaxcnn.__main__ import main
from jaxcnn.inspect import layer_summary, spans, summary_table
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
RESNET18 = [
    *[
        ("Sequential", (1, channels, size, size))
        for channels, size in ((64, 24), (64, 24), (128, 12), (256, 6), (512, 3))
    ],
    ("Sequential", (1, 10)),
]
SIZES = {"lenet": 28, "lenet_modern": 28, "vgg": 224, "vgg11": 224, "resnet18": 96}


@pytest.mark.parametrize(
    ("name", "printed"),
    [("lenet", LENET), ("lenet_modern", MODERN), ("vgg11", VGG11), ("resnet18", RESNET18)],
)
def test_d2l_tables_line_by_line(name, printed):
    rows = layer_summary(create_model(name), (1, SIZES[name], SIZES[name], 1))
    assert [(row.type, row.shape_nchw()) for row in rows if row.depth == 1] == printed


@pytest.mark.parametrize("name", MODELS)
def test_totals_are_the_models(name):
    model = create_model(name)
    images = jax.ShapeDtypeStruct((2, 32, 32, 1), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    rows = layer_summary(model, (2, 32, 32, 1))
    parameters = sum(x.size for x in jax.tree.leaves(variables["params"]))
    assert sum(row.parameters for row in rows if row.depth == 1) == parameters
    leaves = [row for row in rows if row.type in ("Conv", "Dense", "BatchNorm")]
    assert sum(row.parameters for row in leaves) == parameters
    assert sum(row.macs for row in leaves) == sum(row.macs for row in rows if row.depth == 1)
    paths = {row.name for row in leaves}
    flat = jax.tree_util.tree_flatten_with_path(variables["params"])[0]
    assert paths == {"/".join(key.key for key in path[:-1]) for path, _ in flat}


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


@pytest.mark.parametrize("layer", ["conv1", "conv2"])
def test_receptive_field_is_where_the_gradient_is(layer):
    rows = {row.name: row for row in layer_summary(LeNet(), (1, 28, 28, 1))}
    model, images = LeNet(), jnp.ones((1, 28, 28, 1)) / 2
    variables = jax.jit(model.init)(jax.random.key(0), images)

    def center(images):
        _, state = model.apply(variables, images, capture_intermediates=True)
        y = state["intermediates"][layer]["__call__"][0]
        return y[0, y.shape[1] // 2, y.shape[2] // 2, 0]

    seen = np.asarray(jax.jit(jax.grad(center))(images))[0, :, :, 0] != 0
    extent = tuple(int(np.ptp(np.flatnonzero(seen.any(axis)))) + 1 for axis in (1, 0))
    assert extent == rows[layer].receptive_field


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

    @nn.compact
    def __call__(self, x, _=None):
        return conv(3, name="conv")(x), x.mean()


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
    return layer(tokens, mask=mask)


def as_tokens(x):
    return x.reshape(x.shape[0], -1, x.shape[-1])


def in_windows(function, x):
    n, height, width, c = x.shape
    windows = x.reshape(n, height // 4, 4, width // 4, 4, c).swapaxes(2, 3).reshape(-1, 16, c)
    windows = function(windows).reshape(n, height // 4, width // 4, 4, 4, c)
    return windows.swapaxes(2, 3).reshape(x.shape)


def without_first_rows(x):
    return jnp.where((jnp.arange(x.shape[1]) > 7)[None, :, None, None], x, 0)


def with_added_mask(x):
    tokens = as_tokens(x)[0]
    mask = jnp.where(jnp.tri(len(tokens), dtype=bool), 0.0, -1e9)
    return (nn.softmax(tokens @ tokens.T + mask) @ tokens)[None]


def running_sum(x):
    return lax.scan(lambda state, row: (state + row,) * 2, x[:, 0], x.swapaxes(0, 1))[1]


def up(x, size):
    return nn.ConvTranspose(2, (size, size), (2, 2), kernel_init=nn.initializers.ones)(x)


# What the images [1, 16, 20, 2] go through, and the receptive field; None where it is not the same
# for all outputs, or cannot be told.
GRAPHS = {
    "reshape": (lambda x: dense(3)(conv(2, padding="VALID")(x).reshape(1, -1)), (16, 20)),
    "mean of the image": (lambda x: dense(3)(x.mean((1, 2))), (16, 20)),
    "mean of columns": (lambda x: dense(3)(conv(2, padding="VALID")(x).mean(1)), (16, 3)),
    "branches": (
        lambda x: conv(3, 1)(jnp.concatenate([x, conv(2, 5)(x), conv(2)(conv(2)(conv(2)(x)))], 3)),
        (7, 7),
    ),
    "channels of one branch": (
        lambda x: dense(1)(
            conv(4, 1, feature_group_count=4)(jnp.concatenate([conv(2)(x), conv(2, 5)(x)], 3))[
                ..., :2
            ]
        ),
        (3, 3),
    ),
    "branches side by side": (lambda x: jnp.concatenate([x, conv(2)(x)], 3), (3, 3)),
    "two scales": (lambda x: conv(2)(x[:, ::2] + x[:, :8]).mean(1), (15, 3)),
    "skip": (lambda x: x + conv(2)(nn.relu(conv(2)(x))), (5, 5)),
    "gate": (lambda x: conv(2)(x * nn.sigmoid(dense(2)(x.mean((1, 2), keepdims=True)))), (16, 20)),
    "slices": (lambda x: conv(2)(x[:, 1:-1:2, ::3]), (5, 7)),
    "transpose": (lambda x: conv(2)(x[:, :, 3:].swapaxes(1, 2))[:, ::-1], (3, 3)),
    "reversal": (lambda x: x[:, ::-1][:, 1:][:, ::-1] + x[:, 1:], (2, 1)),
    "layers side by side": (
        lambda x: nn.vmap(nn.Conv, variable_axes={"params": 0}, split_rngs={"params": True})(
            2, (3, 3), kernel_init=nn.initializers.ones
        )(jnp.stack([x, 2 * x])),
        (3, 3),
    ),
    "channels first": (lambda x: conv(2)(x).transpose(0, 3, 1, 2), (3, 3)),
    "tokens": (lambda x: conv(2)(dense(2)(conv(2)(x).reshape(1, -1, 2)).reshape(x.shape)), (5, 5)),
    "tokens, as features": (lambda x: as_tokens(x).swapaxes(1, 2), None),
    "space to depth": (
        lambda x: conv(2)(x.reshape(1, 8, 2, 10, 2, 2).swapaxes(2, 3).reshape(1, 8, 10, 8)),
        (6, 6),
    ),
    "dilation and groups": (
        lambda x: conv(4, kernel_dilation=(2, 3), feature_group_count=2, strides=(2, 1))(x),
        (5, 7),
    ),
    "circular and reflecting": (
        lambda x: conv(2, padding="REFLECT")(conv(2, padding="CIRCULAR")(x)),
        (5, 5),
    ),
    "windows": (
        lambda x: lax.reduce_window(x, np.float32(0), lax.add, (1, 3, 2, 1), (1, 2, 2, 1), "SAME"),
        (3, 2),
    ),
    "up and down": (
        lambda x: conv(2)(jnp.concatenate([x, up(conv(2, 2, strides=2)(x), 2)], 3)),
        (4, 4),
    ),
    "up, one or two pixels each": (lambda x: up(x, 3), None),
    "nearest": (lambda x: conv(2)(jax.image.resize(x, (1, 32, 40, 2), "nearest")), (2, 2)),
    "bilinear": (lambda x: jax.image.resize(x, (1, 32, 40, 2), "bilinear"), None),
    "maximum of channels": (
        lambda x: jnp.take_along_axis(conv(2)(x), jnp.argmax(x, 3, keepdims=True), 3),
        (3, 3),
    ),
    "attention": (lambda x: attend(as_tokens(x)), (16, 20)),
    "attention in windows": (lambda x: in_windows(attend, x), (4, 4)),
    "attention to what came before": (
        lambda x: attend(as_tokens(x), nn.make_causal_mask(jnp.ones((1, 16 * 20)))),
        None,
    ),
    "attention with a mask that is added": (with_added_mask, None),
    "mask": (without_first_rows, None),
    "mask of a kernel": (
        lambda x: conv(2, mask=jnp.ones((3, 3, 2, 2)).at[2].set(0))(x),
        None,
    ),
    "running sum": (running_sum, None),
    "last running sum": (lambda x: running_sum(x)[-1], (16, 1)),
    "sort": (lambda x: jnp.sort(x, 1), None),
    "rows of which some are sorted": (
        lambda x: jnp.concatenate([x[:, :1], jnp.sort(x, 1)[:, 1:]], 1),
        None,
    ),
    "rows differ": (
        lambda x: jnp.concatenate([conv(2)(x[:, :8]), conv(2, 5)(x[:, 8:])], 1),
        None,
    ),
}


class Branch(nn.Module):
    graph: str

    @nn.compact
    def __call__(self, x):
        return GRAPHS[self.graph][0](x)


class Graphs(nn.Module):
    @nn.compact
    def __call__(self, x):
        return {graph: Branch(graph, name=graph)(x) for graph in GRAPHS}


@pytest.mark.slow
def test_receptive_fields_of_graphs_are_where_gradients_are():
    """Of four positions in the middle, all their channels."""
    images = jax.random.uniform(jax.random.key(0), (1, 16, 20, 2))
    model = Graphs()
    rows = [row for row in layer_summary(model, images.shape) if row.depth == 1]
    found = dict(zip(GRAPHS, (row.receptive_field for row in rows), strict=True))
    assert found == {graph: size for graph, (_, size) in GRAPHS.items()}

    @jax.jit
    def gradients(images):
        return {graph: gradient(graph, images) for graph in set(GRAPHS) - {"channels first"}}

    def gradient(graph, images):
        y, back = jax.vjp(lambda x: Branch(graph).init_with_output(keys, x)[0], images)
        middle = [(n // 2 - 1, n // 2) for n in y.shape[1:-1]]
        positions = np.array([*itertools.product(*middle)], int)
        chosen = np.zeros((len(positions), *y.shape), np.float32)
        for one, position in zip(chosen, positions, strict=True):
            one[:, *position] = 1
        return jax.vmap(back)(chosen)[0][:, 0].sum(-1)

    keys = jax.random.key(1)
    for graph, several in gradients(images).items():
        if found[graph] is not None:
            seen = {tuple(np.ptp(np.nonzero(g), axis=1) + 1) for g in np.asarray(several)}
            assert seen == {found[graph]}, graph


def test_no_receptive_field_takes_too_large_a_table(monkeypatch):
    monkeypatch.setattr(spans, "_MAX_SIZE", 1000)
    for graph, size in (("attention", None), ("branches", (7, 7))):
        row = layer_summary(Branch(graph), (1, 16, 20, 2))[-1]
        assert row.receptive_field == size


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
