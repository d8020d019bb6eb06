"""The table of layers: d2l's printed shapes, and costs against XLA's own count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxcnn.__main__ import main
from jaxcnn.inspect import layer_summary
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


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["conv1", "conv2"])
def test_receptive_field_is_where_the_gradient_is(layer):
    rows = {row.name: row for row in layer_summary(LeNet(), (1, 28, 28, 1))}
    model, images = LeNet(), jnp.ones((1, 28, 28, 1)) / 2
    variables = model.init(jax.random.key(0), images)

    def center(images):
        _, state = model.apply(variables, images, capture_intermediates=True)
        y = state["intermediates"][layer]["__call__"][0]
        return y[0, y.shape[1] // 2, y.shape[2] // 2, 0]

    seen = np.asarray(jax.grad(center)(images))[0, :, :, 0] != 0
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
