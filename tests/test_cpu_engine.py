"""The engine for CPUs: against float64, under every transformation, its tables and fallbacks."""

import dataclasses
import functools
import itertools
import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest
from flax import linen as nn
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from jax.sharding import Mesh, PartitionSpec

import references
from conftest import small_config
from jaxcnn import __main__, ops
from jaxcnn.ops import cpu, xla
from jaxcnn.ops.cpu import gemm, limits, primitives, probe, products, select, winograd
from jaxcnn.ops.cpu.limits import NEVER, Limits
from jaxcnn.ops.geometry import Geometry
from jaxcnn.train.prepare import prepare
from jaxcnn.train.record import report


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


# batch, (H, W), I, O, (kh, kw), (vertical, horizontal) strides, padding: the networks' layers with
# fewer channels, then odd ones; the large batches are cut into chunks, with a rest
SHAPES = [
    (96, (28, 28), 1, 6, (5, 5), (1, 1), (2, 2)),
    (4, (14, 14), 6, 16, (5, 5), (1, 1), (0, 0)),
    (3, (32, 32), 1, 8, (7, 7), (2, 2), (3, 3)),
    (97, (24, 24), 16, 24, (3, 3), (1, 1), (1, 1)),
    (4, (12, 12), 16, 8, (3, 3), (2, 2), (1, 1)),
    (4, (12, 12), 16, 8, (1, 1), (2, 2), (0, 0)),
    (4, (3, 3), 32, 32, (3, 3), (1, 1), (1, 1)),
    (1, (9, 4), 2, 3, (4, 2), (3, 1), (2, 0)),
    (5, (5, 7), 3, 2, (2, 3), (1, 1), (4, 5)),
    (2, (1, 1), 1, 1, (1, 1), (1, 1), (0, 0)),
    (2, (20, 9), 2, 2, (17, 4), (1, 2), (0, 0)),
    (37, (60, 60), 1, 3, (5, 5), (1, 2), (1, 2)),
    (2, (9, 8), 3, 2, (4, 3), (3, 2), (1, 1)),  # strides that divide the image
    (2, (12, 4), 3, 2, (2, 5), (3, 2), (0, 4)),  # rows that no window meets
    (2, (3, 3), 3, 2, (3, 3), (3, 3), (1, 1)),  # and pixels whose only place is outside
    (2, (1, 8), 3, 2, (7, 1), (1, 4), (3, 2)),
    (3, (7, 12), 3, 2, (3, 3), (1, 1), (0, 2)),  # tiles of Winograd's beyond the image
    (2, (5, 4), 2, 3, (3, 3), (1, 1), (4, 0)),
    (6, (1, 1), 7, 5, (1, 1), (1, 1), (0, 0)),  # as a fully connected layer
]

# Thresholds under which each algorithm of the tables is chosen wherever it can be.
ALWAYS = Limits(
    small_work=0, banded_work=0, shifted_channels=0, winograd_channels=0, winograd_tiles=0
)
IN_CHUNKS = ALWAYS._replace(winograd_channels=NEVER, product_chunk_bytes=1 << 14)
SETTINGS = {
    "as chosen": Limits(small_work=0),
    "banded": ALWAYS._replace(banded_work=NEVER, lanes=NEVER),
    "tiles": ALWAYS._replace(winograd_conv=0, large_chunk_bytes=1 << 12),
    "rows": ALWAYS._replace(
        winograd_conv=NEVER, winograd_rows=0, winograd_row_bytes=NEVER, large_chunk_bytes=1 << 12
    ),
    "shifted": IN_CHUNKS._replace(run_work=0),
    "runs": IN_CHUNKS._replace(shifted_channels=NEVER),
    "runs of one": IN_CHUNKS._replace(shifted_channels=NEVER, run_work=0),  # in bfloat16
    "columns": ALWAYS._replace(columns_work=0),  # in bfloat16
}


@pytest.fixture(params=["onednn", "no onednn"])
def onednn_or_not(request, monkeypatch):
    """Each test on both, and never on programs that were compiled with the other."""
    if request.param == "onednn" and not probe.available():
        pytest.skip(cpu.status())
    monkeypatch.setattr(probe, "available", lambda: request.param == "onednn")
    jax.clear_caches()
    yield
    jax.clear_caches()


@functools.cache
def operands(shape):
    """Images, kernel, bias and cotangent, and what the references make of them in float64."""
    n, size, i, o, window, strides, padding = shape
    x, k, b = random(n, *size, i), random(*window, i, o, seed=1), random(o, seed=3)
    k = k * k[..., 0].size ** -0.5  # sums of about one, where a sigmoid is not flat
    y = references.conv2d(np.asarray(x), np.asarray(k), strides, padding)
    g = random(*y.shape, seed=2)
    dx, dk = references.conv2d_gradients(
        np.asarray(x), np.asarray(k), strides, padding, np.asarray(g, np.float64)
    )
    return (x, k, b, g), (y, 1 / (1 + np.exp(-y - np.asarray(b, np.float64))), dx, dk)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.usefixtures("onednn_or_not")
def test_every_algorithm_matches_float64(shape, monkeypatch):
    (_, size, _, _, window, strides, padding) = shape
    geometry = Geometry(size, window, strides, padding)
    given, expected = operands(shape)

    def all_passes(x, k, b, g):
        return (
            select.forward(x, k, geometry),
            select.forward_sigmoid(x, k, b, geometry),
            select.images_gradient(g, k, geometry),
            select.kernel_gradient(x, g, geometry),
        )

    seen = set()
    for setting in SETTINGS.values():
        monkeypatch.setattr(limits, "CURRENT", setting)
        lowered = jax.jit(lambda *args: all_passes(*args)).lower(*given)
        if (text := lowered.as_text()) not in seen:  # else the same algorithms as before
            seen.add(text)
            for actual, exact in zip(lowered.compile()(*given), expected, strict=True):
                assert actual.dtype == jnp.float32
                assert np.abs(actual - exact).max() <= 1e-5 * np.abs(exact).max()


@pytest.mark.parametrize("run", [1, 2, 3, 4, 7])
def test_runs_of_any_length_match_float64(run, monkeypatch):
    monkeypatch.setattr(gemm, "_run", lambda *_: run)
    monkeypatch.setattr(limits, "CURRENT", SETTINGS["runs"])
    for shape in SHAPES[run % 3 :: 3]:
        (_, size, _, _, window, strides, padding) = shape
        (x, _, _, g), (*_, exact) = operands(shape)
        actual = jax.jit(gemm.by_runs, static_argnums=2)(
            x, g, Geometry(size, window, strides, padding)
        )
        assert np.abs(actual - exact).max() <= 1e-5 * np.abs(exact).max()


def test_the_settings_reach_every_algorithm(monkeypatch):
    """So that no row of the tables goes without the test above."""
    monkeypatch.setattr(probe, "available", lambda: True)
    monkeypatch.setattr(probe, "bfloat16_available", lambda: True)
    tables = (select.FORWARD, select.CONV, select.IMAGES_GRADIENT, select.KERNEL_GRADIENT)
    chosen, choose = set(), select.choose

    def remember(table, work):
        algorithm = choose(table, work)
        chosen.add((tables.index(table), algorithm))
        return algorithm

    monkeypatch.setattr(select, "choose", remember)
    dtypes = jnp.float32, jnp.float16, jnp.bfloat16
    for shape, setting, dtype in itertools.product(SHAPES, SETTINGS.values(), dtypes):
        monkeypatch.setattr(limits, "CURRENT", setting)
        n, size, i, o, window, strides, padding = shape
        geometry = Geometry(size, window, strides, padding)
        x, k, g = (
            jax.ShapeDtypeStruct(s, dtype)
            for s in ((n, *size, i), (*window, i, o), (n, *geometry.output, o))
        )
        for function, args in (
            (select.forward, (x, k)),
            (select.images_gradient, (g, k)),
            (select.kernel_gradient, (x, g)),
        ):
            jax.eval_shape(partial(function, geometry=geometry), *args)
    every = {(i, rule.algorithm) for i, table in enumerate(tables) for rule in table}
    assert chosen == every - {
        (0, select.FORWARD[0].algorithm),  # for empty arrays and without oneDNN: tested below
        (2, select.IMAGES_GRADIENT[0].algorithm),
    }


def test_the_first_matching_rule_decides():
    rules = [
        select.Rule(lambda name=name: name, suits)
        for name, suits in (
            ("few", lambda work, limit: work.channels < 4),
            ("small", lambda work, limit: work.banded_work < limit.banded_work),
            ("rest", select.otherwise),
        )
    ]
    for size, channels, expected in ((8, 3, "few"), (8, 5, "small"), (224, 5, "rest")):
        geometry = Geometry((size, size), (3, 3), (1, 1), (1, 1))
        work = select.Work(1, channels, 4, geometry, is_empty=False, in_bfloat16=False)
        assert select.choose(rules, work)() == expected


@pytest.mark.parametrize("channels", [1, 4])  # a product's sigmoid and a convolution's
@pytest.mark.usefixtures("onednn_or_not")
def test_sigmoid_of_the_largest_the_smallest_and_no_number(channels):
    inf = np.inf
    before = jnp.array([-inf, -3e38, -200, -88.5, -20, -1e-30, 0, 1, 20, 200, 3e38, inf, np.nan])
    images, kernel = jnp.ones((2, 4, 4, channels)), jnp.zeros((3, 3, channels, before.size))
    y = ops.conv2d(images, kernel, before, activation=nn.sigmoid)
    expected = np.broadcast_to(jax.nn.sigmoid(before), y.shape)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize(
    ("image", "padding"), [((3, 3), (1, 1)), ((7, 9), (0, 2)), ((4, 13), (2, 1)), ((3, 5), (0, 0))]
)
def test_winograds_convolution_is_exact(image, padding, transpose, monkeypatch):
    monkeypatch.setattr(probe, "available", lambda: False)
    with jax.enable_x64(True):
        x, k = (jnp.asarray(random(*s), jnp.float64) for s in ((5, *image, 3), (3, 3, 3, 4)))
        expected = xla.forward(x, k, Geometry(image, (3, 3), (1, 1), padding))
        given = k.swapaxes(2, 3) if transpose else k
        y = jax.jit(winograd.by_tiles, static_argnums=(2, 3))(
            x, given, tuple((p, p) for p in padding), transpose
        )
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-12)


def uses(function, *args, platform=None):
    """Return the names of the primitives and the text of the compiled-for-`platform` module."""
    traced = jax.jit(function).trace(*args)
    text = traced.lower(lowering_platforms=platform and (platform,)).as_text()
    return f"{traced.jaxpr}", text


def sigmoid(x, k, **options):
    bias = jnp.zeros(k.shape[3], k.dtype)
    return ops.conv2d(x, k, bias, padding=1, activation=nn.sigmoid, **options)


def test_the_platform_of_the_program_decides():
    if not probe.available():
        pytest.skip(cpu.status())
    x, k = random(2, 8, 8, 3), random(3, 3, 3, 4)
    grad = jax.grad(lambda x, k: ops.conv2d(x, k).sum(), (0, 1))
    for function in (ops.conv2d, grad, sigmoid):
        assert "__onednn$" in uses(function, x, k)[1]
        for platform in ("tpu", "cuda"):
            text = uses(function, x, k, platform=platform)[1]
            assert "onednn" not in text
            assert "stablehlo.convolution" in text


def test_other_dtypes_and_the_switch_take_xla(monkeypatch):
    x, k = random(2, 8, 8, 3), random(3, 3, 3, 4)
    with jax.enable_x64(True):
        for function in (ops.conv2d, sigmoid):
            found, _ = uses(function, *(operand.astype(jnp.float64) for operand in (x, k)))
            assert "conv_general_dilated" in found
    assert "conv_general_dilated" not in uses(ops.conv2d, x, k)[0]
    monkeypatch.setenv("JAXCNN_IMPLEMENTATION", "xla")
    jax.clear_caches()
    for function in (ops.conv2d, sigmoid):
        assert "conv_general_dilated" in uses(function, x, k)[0]
    monkeypatch.setenv("JAXCNN_IMPLEMENTATION", "fast")
    with pytest.raises(ValueError, match="JAXCNN_IMPLEMENTATION must be auto or xla, got 'fast'"):
        ops.conv2d(x, k)


def test_dilation_and_groups_take_xla():
    x = random(2, 8, 8, 4)
    for options, k in (
        ({"dilation": (1, 2)}, random(3, 3, 4, 4)),
        ({"groups": 2}, random(3, 3, 2, 4)),
    ):
        assert "conv_general_dilated" in uses(partial(ops.conv2d, **options), x, k)[0]


def test_the_switch_as_an_argument(monkeypatch):
    x, k = random(2, 8, 8, 3), random(3, 3, 3, 4)
    assert "conv_general_dilated" in uses(partial(ops.conv2d, implementation="xla"), x, k)[0]
    monkeypatch.setenv("JAXCNN_IMPLEMENTATION", "xla")
    assert "conv_general_dilated" not in uses(partial(ops.conv2d, implementation="auto"), x, k)[0]
    grads = {
        name: uses(jax.grad(lambda x, name=name: ops.max_pool(x, 2, implementation=name).sum()), x)
        for name in ("auto", "xla")
    }
    assert ["select_and_scatter" in grads[name][1] for name in ("auto", "xla")] == [False, True]
    for op in (ops.max_pool, ops.avg_pool):
        with pytest.raises(ValueError, match="implementation must be auto or xla, got 'fast'"):
            op(x, 3, strides=1, implementation="fast")


def test_no_image_at_all(monkeypatch):
    monkeypatch.setattr(limits, "CURRENT", Limits(small_work=0))
    y, vjp = jax.vjp(ops.conv2d, jnp.zeros((0, 5, 5, 2)), random(3, 3, 2, 4))
    assert y.shape == (0, 3, 3, 4)
    assert not vjp(y)[1].any()
    assert sigmoid(jnp.zeros((0, 3, 3, 2)), random(3, 3, 2, 4)).shape == (0, 3, 3, 4)


GEOMETRY = Geometry((6, 5), (3, 2), (2, 1), (1, 0))
OPERANDS = {"x": (3, 6, 5, 2), "k": (3, 2, 2, 4), "g": (3, 3, 4, 4), "b": (4,)}
PASSES = {  # primitive, the same by XLA's own convolution, operands
    "forward": (primitives.forward_p, xla.forward, "xk"),
    "images_gradient": (primitives.images_gradient_p, xla.images_gradient, "gk"),
    "kernel_gradient": (primitives.kernel_gradient_p, xla.kernel_gradient, "xg"),
    "forward_bias": (primitives.forward_bias_p, xla.forward_bias, "xkb"),
    "forward_sigmoid": (primitives.forward_sigmoid_p, xla.forward_sigmoid, "xkb"),
}


def loss(f, *args):
    return (f(*args) ** 3).sum()


def gradients(f, args):
    return jax.grad(partial(loss, f), tuple(range(len(args))))


def jvp_along(i, f, args, tangents, many):
    """The derivative along one operand."""
    return jax.jvp(lambda x: f(*args[:i], x, *args[i + 1 :]), args[i : i + 1], tangents[i : i + 1])


def grad_by(i, f, args, tangents, many):
    """The gradient with respect to one operand."""
    return jax.grad(partial(loss, f), i)(*args)


def vmap_over(mapped, f, args, tangents, many, axis=0):
    """Map over some of the operands."""
    axes = [axis if i in mapped else None for i in range(len(args))]
    given = (jnp.moveaxis(many[i], 0, axis) if i in mapped else x for i, x in enumerate(args))
    return jax.vmap(f, axes, axis)(*given)


def vmap_of_vmap(f, args, tangents, many):
    def inner(x):
        return vmap_over((1,), lambda _, *rest: f(x, *rest), args, tangents, many)

    return jax.vmap(inner)(many[0])


def vmap_of_gradients(f, args, tangents, many):
    return vmap_over((0,), gradients(f, args), args, tangents, many)


def grad_of_jvp(f, args, tangents, many):
    def slope(x):
        return jax.jvp(partial(loss, f), (x, *args[1:]), tangents)[1]

    return jax.grad(slope)(args[0])


def scan_of_sums(f, args, tangents, many):
    return jax.lax.scan(lambda c, x: (c + f(x, *args[1:]), None), f(*args) * 0, many[0])[0]


def transformations(count):
    """Every transformation of a function of `count` operands, by name."""
    every = range(count)
    subsets = [c for n in every for c in itertools.combinations(every, n + 1)]
    return {
        "call": lambda f, args, tangents, many: f(*args),
        "jvp": lambda f, args, tangents, many: jax.jvp(f, args, tangents),
        **{f"jvp along operand {i}": partial(jvp_along, i) for i in every},
        "gradients": lambda f, args, tangents, many: gradients(f, args)(*args),
        **{f"gradient by operand {i}": partial(grad_by, i) for i in every},
        "jvp of gradients (Hessian-vector)": lambda f, args, tangents, many: jax.jvp(
            gradients(f, args), args, tangents
        ),
        "vjp of gradients": lambda f, args, tangents, many: jax.vjp(gradients(f, args), *args)[1](
            tangents
        ),
        "gradient of jvp": grad_of_jvp,
        **{f"vmap over operands {subset}": partial(vmap_over, subset) for subset in subsets},
        "vmap over axis 1": partial(vmap_over, (0,), axis=1),
        "vmap of vmap": vmap_of_vmap,
        "vmap of gradients": vmap_of_gradients,
        "pmap": lambda f, args, tangents, many: jax.pmap(f)(*many),
        "scan": scan_of_sums,
        "gradients of checkpoint (remat)": lambda f, args, tangents, many: gradients(
            jax.checkpoint(f), args
        )(*args),
        "linearize": lambda f, args, tangents, many: jax.linearize(f, *args)[1](*tangents),
    }


CASES = [
    pytest.param(name, transform, id=f"{name}-{title}")
    for name, (_, _, names) in PASSES.items()
    for title, transform in transformations(len(names)).items()
]


@pytest.fixture(scope="class")
def without_onednn():
    """Once for all tests of a class, so that they share what is compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "available", lambda: False)
        patch.setattr(limits, "CURRENT", Limits(small_work=0))
        jax.clear_caches()
        yield
    jax.clear_caches()


@pytest.mark.usefixtures("without_onednn")
class TestTransformations:
    """Each against the same transformation of XLA's own convolution."""

    @pytest.mark.parametrize(("name", "transform"), CASES)
    def test_transformation(self, name, transform):
        primitive, everywhere, names = PASSES[name]
        given = [
            tuple(random(*lead, *OPERANDS[name], seed=seed) for name in names)
            for seed, lead in ((1, ()), (2, ()), (3, (4,)))
        ]
        ours, theirs = (partial(f, geometry=GEOMETRY) for f in (primitive.bind, everywhere))
        pair = transform(ours, *given), transform(theirs, *given)
        for x, y in zip(*map(jax.tree.leaves, pair), strict=True):
            np.testing.assert_allclose(x, y, atol=2e-5 * np.abs(y).max(), rtol=0)

    @pytest.mark.parametrize("name", PASSES)
    def test_jit(self, name):
        primitive, everywhere, names = PASSES[name]
        given = [random(*OPERANDS[name], seed=1) for name in names]
        ours, theirs = (
            jax.jit(partial(f, geometry=GEOMETRY))(*given) for f in (primitive.bind, everywhere)
        )
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max(), rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize(
    "conv",
    [
        partial(ops.conv2d, padding=1),
        lambda x, k: ops.conv2d(x, k, k[0, 0, 0], padding=1, activation=nn.sigmoid),
    ],
    ids=["conv", "sigmoid"],
)
@pytest.mark.usefixtures("onednn_or_not")
def test_shard_map_averages_gradients_over_devices(conv, check_vma, monkeypatch):
    monkeypatch.setattr(limits, "CURRENT", Limits(small_work=0))
    x, k = random(32, 24, 24, 8), random(3, 3, 8, 8, seed=1)
    mesh = Mesh(np.array(jax.devices()[:2]), ("batch",))

    def grads(x, k):
        return jax.grad(lambda k: (conv(x, k) ** 2).sum())(k)

    def mapped(x, k):
        total = grads(x, k)  # where variance is checked, JAX adds the devices' gradients itself
        return total if check_vma else jax.lax.psum(total, "batch")

    specs = {"in_specs": (PartitionSpec("batch"), PartitionSpec()), "out_specs": PartitionSpec()}
    actual = jax.jit(jax.shard_map(mapped, mesh=mesh, check_vma=check_vma, **specs))(x, k)
    expected = grads(x, k)
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


LARGE_PRODUCTS = """
import jax, jax.numpy as jnp
from jax import lax
from jaxcnn.ops import cpu

def repeated(a, b):
    return lax.fori_loop(0, 100, lambda _, y: cpu.product(a + 1e-9 * y.max(), b), cpu.product(a, b))

a, b = jnp.ones((8, 49, 2304)), jnp.ones((8, 2304, 64))
print(jax.jit(repeated)(a, b).mean())
"""


@pytest.mark.slow
def test_many_large_products_end(run_python):
    """As in the gradient of ResNet18's first kernel; one call for all of them could hang."""
    assert run_python("-c", LARGE_PRODUCTS, timeout=60).stdout.startswith("2304.")


@pytest.mark.parametrize("allowed", [False, True])
def test_many_products_take_one_call_only_where_that_is_allowed(allowed, monkeypatch):
    monkeypatch.setattr(probe, "available", lambda: True)
    monkeypatch.setattr(
        probe, "verdict", lambda: "in use" if allowed else f"in use{probe._ONE_PRODUCT}"
    )
    for shapes, is_one_call in ((((4, 5), (5, 6)), True), (((3, 4, 5), (3, 5, 6)), allowed)):
        a, b = (jnp.ones(shape) for shape in shapes)
        for function, left in ((cpu.product, a), (products.transposed_product, a.mT)):
            text = jax.jit(lambda *ab, function=function: function(*ab)).lower(left, b).as_text()
            assert ("onednn$matmul" in text) == is_one_call


def test_what_onednn_says_of_its_algorithms_is_read():
    line = "onednn_verbose,v1,primitive,exec,cpu,matmul,{},undef,src:f32 wei:f32,,,{},0.01"
    shapes = [f"{n}x{m}x{k}:{n}x{k}x{columns}" for n, m, k, columns in probe._MANY_PRODUCTS]
    once = [line.format("brg_matmul:avx512_core", shape) for shape in shapes]
    twice = line.format("gemm:jit:f32", shapes[1])
    assert probe._shares_out_once(["right", *once, line.format("gemm:jit:f32", "5x7:7x3")])
    for lines in ([], once[1:], [*once, twice], [twice, *once]):
        assert not probe._shares_out_once(lines)


@pytest.fixture
def no_home(monkeypatch):
    """As in a container whose user has no HOME and no entry in passwd."""

    def unknown(_):
        raise KeyError

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)


@pytest.mark.usefixtures("no_home")
def test_without_a_home_the_probe_runs_and_its_verdict_is_not_kept(monkeypatch):
    assert probe._verdict_file() is None
    monkeypatch.setattr(probe, "_run_probe", lambda: "in use")
    assert probe.verdict.__wrapped__() == "in use"


@pytest.mark.parametrize("content", [b"", b"in us", b"\xff\xfe", None])
def test_a_verdict_that_cannot_be_read_is_found_again(content, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", f"{tmp_path}")
    monkeypatch.setattr(probe, "_run_probe", lambda: "in use")
    file = probe._verdict_file()
    file.parent.mkdir()
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    assert probe.verdict.__wrapped__() == "in use"
    assert content is None or file.read_text() == "in use"


def test_a_verdict_is_of_one_jaxlib_one_source_and_what_onednn_reads(monkeypatch, tmp_path):
    files = [probe._verdict_file()]
    for change, arguments in (
        (monkeypatch.setenv, ("ONEDNN_MAX_CPU_ISA", "SSE41")),
        (monkeypatch.setattr, (jaxlib, "__version__", "0.0.1")),
        (monkeypatch.setattr, (probe, "_CALLS", tmp_path / "onednn.py")),
    ):
        (tmp_path / "onednn.py").write_text("other calls")
        change(*arguments)
        files.append(probe._verdict_file())
    assert len(set(files)) == 4


def test_a_probe_that_could_not_run_is_run_again_next_time(monkeypatch, tmp_path):
    def run():
        raise subprocess.TimeoutExpired("probe.py", 120)

    monkeypatch.setenv("XDG_CACHE_HOME", f"{tmp_path}")
    monkeypatch.setattr(probe, "_run_probe", run)
    expected = "not in use: the probe could not run (TimeoutExpired)"
    assert probe.verdict.__wrapped__() == expected
    assert not probe._verdict_file().exists()


def test_the_probe_runs_without_the_users_settings_of_jax(monkeypatch):
    """The verdict is kept for every other process."""
    names = ("XLA_FLAGS", "JAX_ENABLE_X64", "JAX_COMPILATION_CACHE_DIR", "PYTHONOPTIMIZE")
    given = {}

    def run(command, *, env, **options):
        given.update(env)
        return subprocess.CompletedProcess(command, 0, stdout="begun\nright\n")

    monkeypatch.setattr(subprocess, "run", run)
    for name in names:
        monkeypatch.setenv(name, "1")
    assert probe._run_probe() == f"in use{probe._ONE_PRODUCT}"
    assert given["JAX_PLATFORMS"] == "cpu"
    assert not given.keys() & names


@pytest.mark.parametrize(
    ("status", "printed"), [(1, ""), (0, ""), (-6, ""), (-9, "begun\n"), (-15, "begun\nright\n")]
)
def test_what_says_nothing_of_the_calls_is_not_kept(monkeypatch, tmp_path, status, printed):
    """As where memory is short, or JAX cannot be imported in another process."""
    monkeypatch.setenv("XDG_CACHE_HOME", f"{tmp_path}")
    done = subprocess.CompletedProcess("probe.py", status, stdout=printed)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    words = "not in use: the probe was ended before it had tried the calls"
    assert probe.verdict.__wrapped__() == words
    assert not probe._verdict_file().exists()


def test_without_source_files_xla_computes(monkeypatch, tmp_path):
    def fail():
        raise AssertionError("the probe is run")

    monkeypatch.setattr(probe, "_run_probe", fail)
    for change in (
        (sys, "frozen", True),
        (probe, "_CALLS", tmp_path / "onednn.py"),
        (probe, "__file__", str(tmp_path / "archive.zip" / "probe.pyc")),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(*change, raising=False)
            assert probe.verdict.__wrapped__().startswith("not in use: jaxcnn is not there as sour")


LATE = (  # after all was right; without the calls that take long
    "import atexit, os, sys; atexit.register(lambda: (sys.stdout.flush(), os._exit(3)));"
    "_probe_conv = _probe_grouped_conv = _probe_loop = lambda *_: None"
)


def broken_probe(folder, line):
    """Write a copy of the probe with a line in place of the first call; return its file."""
    if not probe.available():
        pytest.skip(cpu.status())
    source = Path(probe.__file__).read_text()
    call = "    _probe_matmul(calls, random)\n"
    assert call in source
    broken = folder / "probe.py"
    broken.write_text(source.replace(call, f"    _conv = calls.conv\n    {line}\n"))
    shutil.copy(Path(probe.__file__).with_name("onednn.py"), folder)
    return broken


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("raise SystemExit(0)", "the probe ended with 0"),
        (LATE, "the probe ended with 3"),
        ("calls.conv = lambda *args, **options: 2 * _conv(*args, **options)", "ended with 1"),
    ],
)
def test_a_probe_that_fails_is_told(line, words, tmp_path, monkeypatch):
    broken = broken_probe(tmp_path, line)
    monkeypatch.setattr(probe, "__file__", f"{broken}")
    monkeypatch.setenv("XDG_CACHE_HOME", f"{tmp_path}")
    verdict = probe.verdict.__wrapped__()
    assert verdict.startswith("not in use: ")
    assert words in verdict
    assert f"jaxlib {jaxlib.__version__}" in verdict


@pytest.mark.slow
def test_a_probe_that_aborts_leaves_xla(run_python, tmp_path):
    broken = broken_probe(tmp_path, "import os; os.abort()")  # as oneDNN does
    code = (
        "from jaxcnn.ops import conv2d, cpu; from jaxcnn.ops.cpu import probe;"
        f"import jax.numpy as jnp; probe.__file__ = {str(broken)!r};"
        "x, k = jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1));"
        "print(cpu.why_slower()); print(conv2d(x, k).sum())"
    )
    done = run_python("-c", code, XDG_CACHE_HOME=f"{tmp_path}")
    verdict, value = done.stdout.splitlines()
    assert "the probe ended with -6" in verdict
    assert f"jaxlib {jaxlib.__version__}" in verdict
    assert value == "36.0"
    assert not done.stderr


def kind_of_call(operands, target, shape, legacy_backend_config):
    """What a call's configuration says, apart from sizes; whether of many products; the dtypes."""
    ((_, config),) = json.loads(legacy_backend_config).items()
    config |= {"window": "window" in config, "feature_groups": config.get("feature_groups") != "1"}
    of_many = target.endswith("matmul") and len(shape.shape) > 2
    dtypes = *(str(operand.dtype) for operand in operands), str(shape.dtype)
    return target, of_many, dtypes, json.dumps(config)


def test_the_probe_makes_every_kind_of_call(monkeypatch):
    """Of those that the engine makes of the shapes above, under every setting."""
    made, ffi_call = {"engine": set(), "probe": set()}, jax.ffi.ffi_call

    def calls_by(whom):
        def call(target, shape, *, custom_call_api_version, legacy_backend_config):
            config = {"legacy_backend_config": legacy_backend_config}

            def made_of(*operands):
                made[whom].add(kind_of_call(operands, target, shape, **config))
                options = config | {"custom_call_api_version": custom_call_api_version}
                return ffi_call(target, shape, **options)(*operands)

            return made_of

        return call

    for name in ("available", "many_products_available", "bfloat16_available"):
        monkeypatch.setattr(probe, name, lambda: True)
    monkeypatch.setattr(jax.ffi, "ffi_call", calls_by("engine"))
    dtypes = jnp.float32, jnp.bfloat16
    for shape, setting, dtype in itertools.product(SHAPES, SETTINGS.values(), dtypes):
        monkeypatch.setattr(limits, "CURRENT", setting)
        n, size, i, o, window, strides, padding = shape
        geometry = Geometry(size, window, strides, padding)
        x, k, g, b = (
            jax.ShapeDtypeStruct(s, dtype)
            for s in ((n, *size, i), (*window, i, o), (n, *geometry.output, o), (o,))
        )
        jax.eval_shape(partial(select.forward, geometry=geometry), x, k)
        jax.eval_shape(partial(select.forward_bias, geometry=geometry), x, k, b)
        jax.eval_shape(partial(select.forward_sigmoid, geometry=geometry), x, k, b)
        jax.eval_shape(partial(select.images_gradient, geometry=geometry), g, k)
        jax.eval_shape(partial(select.kernel_gradient, geometry=geometry), x, g)
    monkeypatch.setattr(jax.ffi, "ffi_call", calls_by("probe"))
    monkeypatch.setattr(jax, "jit", lambda f, **options: partial(trace, f))
    monkeypatch.setattr(probe, "_assert_close", lambda *args: None)
    loops = []
    monkeypatch.setattr(probe, "_probe_loop", lambda *args: loops.append(args))
    with jax.numpy_rank_promotion("allow"):  # as in its own process
        monkeypatch.setattr(probe, "_BFLOAT16_FLAGS", {"processor"})  # in every /proc/cpuinfo
        probe._probe()
    assert len(loops) == 2
    assert made["engine"] <= made["probe"]
    assert {dtypes[0] for *_, dtypes, _ in made["engine"]} == {"float32", "bfloat16"}
    assert len(made["engine"]) > 5


def trace(f, *args, **options):
    """Return the shape of f's result, with booleans as they are."""
    arrays = [x for x in args if not isinstance(x, bool)]
    return jax.eval_shape(lambda *xs: f(*xs, *args[len(arrays) :], **options), *arrays)


def test_a_run_says_that_it_could_be_faster(monkeypatch):
    monkeypatch.setattr(probe, "available", lambda: True)
    assert cpu.why_slower() == ""
    monkeypatch.setattr(probe, "available", lambda: False)
    monkeypatch.setattr(probe, "verdict", lambda: "not in use: why")
    setup = prepare(small_config())
    assert "\nnote: convolutions are XLA's own" in report.describe(setup, Path("runs/x"))
    assert report.describe(setup, Path("runs/x")).endswith(": oneDNN not in use: why")
    setup = dataclasses.replace(setup, config=small_config(implementation="xla"))
    assert report.describe(setup, Path("runs/x")).endswith(": implementation 'xla' was chosen")


def test_options_that_the_compiler_does_not_know_are_left_out(monkeypatch):
    def refuse(*args, **options):
        raise RuntimeError("No such compile option")

    assert cpu.compiler_options.__wrapped__()
    monkeypatch.setattr(jax, "jit", refuse)
    assert cpu.compiler_options.__wrapped__() == {}


def test_info_tells_what_is_in_use(capsys, monkeypatch):
    assert __main__.main(["info"]) == 0
    assert cpu.status() in capsys.readouterr().out
    monkeypatch.setenv("JAXCNN_IMPLEMENTATION", "xla")
    assert __main__.main(["info"]) == 0
    assert "convolution  xla" in capsys.readouterr().out


@pytest.mark.slow
def test_the_same_bits_in_every_process(run_python):
    code = (
        "import jax, jax.numpy as jnp, numpy as np, hashlib; from jaxcnn import ops;"
        "r = np.random.default_rng(0).standard_normal;"
        "x, k = r((64, 24, 24, 32), np.float32), r((3, 3, 32, 64), np.float32);"
        "f = jax.jit(jax.value_and_grad(lambda x, k: "
        "(ops.conv2d(x, k, padding=1) ** 2).sum(), (0, 1)));"
        "digest = lambda: hashlib.sha256(b''.join(np.asarray(y).tobytes() for y in "
        "jax.tree.leaves(f(x, k)))).hexdigest();"
        "print({digest() for _ in range(5)})"
    )
    first, second = (run_python("-c", code).stdout for _ in range(2))
    assert first == second
    assert len(first.split(",")) == 1
    assert len(first) > 64


POOLS = [
    (ops.max_pool, (4, 8, 6, 2), (2, None, 0)),
    (ops.max_pool, (2, 7, 9, 3), ((3, 2), None, 0)),
    (ops.max_pool, (2, 8, 6, 2), (3, 2, 1)),
    (ops.avg_pool, (4, 8, 6, 2), (2, None, 0)),
    (ops.avg_pool, (2, 7, 9, 3), ((4, 2), None, 0)),
    (ops.avg_pool, (2, 20, 17, 3), ((4, 8), None, 0)),
]


def pooled(op, window, implementation):
    """Pooling, and the sum of the cubes of what it gives."""
    pool = partial(op, implementation=implementation)
    return (lambda x: pool(x, *window)), (lambda x: (pool(x, *window) ** 3).sum())


def whole_numbers(*shape, dtype="float32", seed=1):
    """There are ties among them, and every sum is exact."""
    return jnp.round(2 * random(*shape, seed=seed)).astype(dtype)


@pytest.mark.slow
@pytest.mark.parametrize(("op", "shape", "window"), POOLS)
def test_every_transformation_of_pooling(op, shape, window):
    x, dx = (whole_numbers(3, *shape, seed=seed) for seed in (1, 2))

    def results(implementation):
        pool, loss = pooled(op, window, implementation)

        def transformed(x, dx):
            hvp = jax.jvp(jax.grad(loss), (x[0],), (dx[0],))
            return (
                jax.jvp(pool, (x[0],), (dx[0],)),
                (jax.grad(loss)(x[0]), hvp),
                (jax.vmap(pool)(x), jax.vmap(jax.grad(loss))(x), jax.pmap(jax.grad(loss))(x)),
                jax.grad(jax.checkpoint(loss))(x[0]),
                jax.lax.scan(lambda c, x: (c + jax.grad(loss)(x), None), x[0] * 0, x)[0],
            )

        return jax.grad(loss)(x[0]), jax.jit(transformed)(x, dx)

    jax.tree.map(np.testing.assert_array_equal, results("auto"), results("xla"))


@pytest.mark.parametrize(("op", "shape", "window"), POOLS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_pooling_of_other_dtypes_and_its_gradient(op, shape, window, dtype):
    with jax.enable_x64(dtype == "float64"):
        x = whole_numbers(*shape, dtype=dtype)

        def results(implementation):
            pool, loss = pooled(op, window, implementation)
            return jax.jit(lambda x: (pool(x), jax.grad(loss)(x)))(x)

        ours, xlas = results("auto"), results("xla")
        assert {y.dtype for y in ours} == {x.dtype}
        jax.tree.map(np.testing.assert_array_equal, ours, xlas)


def test_the_platform_decides_whose_pooling_it_is():
    def has(words, call):
        texts = (uses(call, random(2, 4, 4, 1), platform=x)[1] for x in ("cpu", "cuda", "tpu"))
        return [words in text for text in texts]

    assert has("reduce_window", lambda x: ops.avg_pool(x, 2)) == [False, True, True]
    for window in ((2,), (3, 2, 1)):
        grad = jax.grad(lambda x, window=window: ops.max_pool(x, *window).sum())
        assert has("select_and_scatter", grad) == [False, False, True]


@pytest.mark.parametrize("window", [(2,), (3, 2, 1)], ids=["tiles", "halves"])
def test_the_derivative_of_a_maximum_that_is_nan_is_of_that_pixel(window):
    for place in ((0, 0), (0, 1), (1, 1)):
        x = jnp.arange(16.0).reshape(1, 4, 4, 1).at[0, *place, 0].set(jnp.nan)
        y, dx = jax.value_and_grad(lambda x: ops.max_pool(x, *window)[0, 0, 0, 0])(x)
        assert jnp.isnan(y)
        assert np.argwhere(dx[0, :, :, 0]).tolist() == [list(place)]


def test_the_counts_of_windows_are_no_constant_as_large_as_the_batch():
    pool = partial(ops.avg_pool, window=3, strides=1, padding=1, count_include_pad=False)
    x = jnp.zeros((64, 32, 32, 64))
    assert len(jax.jit(pool).lower(x).as_text()) < 30_000
    (n,) = jax.export.symbolic_shape("n")
    free = jax.ShapeDtypeStruct((n, 4, 4, 1), jnp.float32)
    called = jax.export.export(jax.jit(pool))(free).call(random(2, 4, 4, 1))
    np.testing.assert_allclose(called, pool(random(2, 4, 4, 1)), rtol=1e-6)


@pytest.mark.parametrize(
    ("size", "kernel", "strides", "padding"),
    [(1, 1, 5, 2), (3, 1, 7, 2), (2, 2, 6, 5), (1, 3, 9, 4)],
)
def test_images_that_few_windows_meet_have_a_gradient(size, kernel, strides, padding):
    x, k = random(1, size, size, 16), random(kernel, kernel, 16, 8)

    def gradient(implementation):
        conv = partial(ops.conv2d, strides=strides, padding=padding, implementation=implementation)
        return jax.jit(jax.grad(lambda x: (conv(x, k) ** 2).sum()))(x)

    np.testing.assert_allclose(gradient("auto"), gradient("xla"), rtol=1e-4, atol=1e-4)


def test_results_are_as_firm_in_their_dtype_as_xlas():
    images, kernel, bias = jnp.full((1, 8, 8, 1), 0.5), random(3, 3, 1, 4), random(4)
    assert images.weak_type
    for given in ((images, kernel), (images, kernel, bias), (images, images[0, :3, :3, :, None])):
        for activation in (None, nn.sigmoid):
            ours, xlas = (
                ops.conv2d(*given, activation=activation, implementation=word)
                for word in ("auto", "xla")
            )
            assert (ours.dtype, ours.weak_type) == (xlas.dtype, xlas.weak_type)


def test_max_pool_in_a_fused_step_has_one_winner_in_each_window():
    """Where XLA computes the pixels again for the gradient, it may round them otherwise."""
    x = random(8, 24, 24, 16)

    def windows_total(shift, x):
        normal = (x - x.mean()) * jax.lax.rsqrt(x.var() + 1e-5)
        return ops.max_pool(jax.nn.sigmoid(normal) * 3.3 + shift, 2).sum()

    received = jax.grad(windows_total)  # each window's maximum receives 1
    gradient = jax.jit(received)(jnp.zeros_like(x), x).reshape(8, 12, 2, 12, 2, 16)
    assert (gradient.sum((2, 4)) == 1).all()


def test_the_work_is_counted_with_xlas_own_operations():
    x, k = random(8, 24, 24, 32), random(3, 3, 32, 32)
    lowered = jax.jit(partial(ops.conv2d, implementation="xla")).lower(x, k)
    multiply_adds = 8 * 22 * 22 * 32 * 32 * 9
    assert lowered.cost_analysis()["flops"] == pytest.approx(2 * multiply_adds, rel=0.01)


@pytest.fixture
def compilation_cache(request, tmp_path):
    """JAX's settings of it as the test asks."""
    names = ("jax_compilation_cache_dir", "jax_enable_compilation_cache")
    before = [getattr(jax.config, name) for name in names]
    directory, enabled = request.param
    for values in ((directory and f"{tmp_path}", enabled), before):
        jax.clear_caches()
        for name, value in zip(names, values, strict=True):
            jax.config.update(name, value)
        reset_cache()  # which goes on with its folder until then
        if values is not before:
            yield bool(directory and enabled)


@pytest.mark.parametrize(
    "compilation_cache", [("on", True), ("on", False), (None, True)], indirect=True
)
def test_programs_that_are_kept_on_disk_have_none_of_onednns_calls(compilation_cache):
    if not probe.available():
        pytest.skip(cpu.status())
    x, k = random(2, 8, 8, 3), random(3, 3, 3, 4)
    assert ("onednn" in uses(ops.conv2d, x, k)[1]) != compilation_cache
    assert cpu.suits_loops(ops.conv2d, x, k) != compilation_cache
    assert ("cache is on" in cpu.why_slower()) == compilation_cache
