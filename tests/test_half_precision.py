"""The engine for CPUs in bfloat16 and float16: in float32 rounded once, or by oneDNN as it is."""

import subprocess
from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from test_cpu_engine import SETTINGS, SHAPES, operands, random, uses

from jaxcnn import ops
from jaxcnn.ops import cpu, xla
from jaxcnn.ops.cpu import limits, onednn, probe, select
from jaxcnn.ops.cpu.half import as_bits, from_bits
from jaxcnn.ops.geometry import Geometry

# The steps between two numbers of a dtype, relative to the larger.
EPSILON = {dtype: float(ml_dtypes.finfo(dtype).eps) for dtype in ("bfloat16", "float16")}


def rounded(dtype, *arrays):
    return [jnp.asarray(x).astype(dtype) for x in arrays]


def passes(geometry, x, k, b, g):
    return (
        select.forward(x, k, geometry),
        select.forward_sigmoid(x, k, b, geometry),
        select.forward_bias(x, k, b, geometry),
        select.images_gradient(g, k, geometry),
        select.kernel_gradient(x, g, geometry),
    )


def geometry_of(shape):
    _, size, _, _, window, strides, padding = shape
    return Geometry(size, window, strides, padding)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("shape", SHAPES[1::3], ids=str)
def test_half_precision_is_float32_rounded_in_the_end(shape, dtype, monkeypatch):
    monkeypatch.setattr(probe, "bfloat16_available", lambda: False)
    given = rounded(dtype, *operands(shape)[0])
    compute = jax.jit(partial(passes, geometry_of(shape)))
    expected = rounded(dtype, *compute(*rounded("float32", *given)))
    actual = compute(*given)
    assert [y.dtype for y in actual] == 5 * [dtype]
    for ours, theirs in zip(actual, expected, strict=True):
        # Within a program, XLA may leave out a rounding or multiply and add at once.
        step = EPSILON[dtype] * np.abs(theirs.astype(jnp.float32)).max()
        assert np.abs((ours - theirs).astype(jnp.float32)).max() <= step


@pytest.fixture
def native(monkeypatch):
    """Calls of oneDNN in bfloat16; where the processor has none, XLA's own in their place."""
    if not probe.available():
        pytest.skip(cpu.status())
    if probe.bfloat16_available():
        return

    def conv(x, k, strides, padding, transpose_kernel=False, sigmoid_bias=None, bias=None):
        assert x.dtype == k.dtype == jnp.bfloat16
        assert sigmoid_bias is None
        numbers = ("NHWC", "HWOI" if transpose_kernel else "HWIO", "NHWC")
        x, k = x.astype(jnp.float32), k.astype(jnp.float32)
        y = jax.lax.conv_general_dilated(x, k, strides, padding, dimension_numbers=numbers)
        bias = None if bias is None else bias.astype(jnp.float32)
        return xla.finish(y, bias, None).astype(jnp.bfloat16)

    def matmul(a, b, transpose_a=False, transpose_b=False, sigmoid_bias=None, dtype=jnp.float32):
        assert a.dtype == b.dtype
        assert a.ndim == b.ndim == 2
        assert sigmoid_bias is None
        a, b = (x.astype(jnp.float32) for x in (a, b))
        return ((a.T if transpose_a else a) @ (b.T if transpose_b else b)).astype(dtype)

    def by_dtype(standing_in, real):
        def call(x, *args, **options):
            return (standing_in if x.dtype == jnp.bfloat16 else real)(x, *args, **options)

        return call

    monkeypatch.setattr(probe, "available", lambda: True)
    monkeypatch.setattr(probe, "bfloat16_available", lambda: True)
    monkeypatch.setattr(onednn, "conv", by_dtype(conv, onednn.conv))
    monkeypatch.setattr(onednn, "matmul", by_dtype(matmul, onednn.matmul))
    last = select.Rule(onednn.conv, select.otherwise)
    monkeypatch.setattr(select, "CONV", (*select.CONV[:-1], last))


@pytest.mark.slow
@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    "name", ["as chosen", "banded", "shifted", "runs", "runs of one", "columns"]
)
def test_bfloat16_by_onednn_matches_float64(shape, name, monkeypatch):
    monkeypatch.setattr(limits, "CURRENT", SETTINGS[name]._replace(product_chunk_bytes=1 << 14))
    given, (y, *others) = operands(shape)
    expected = y, others[0], y + np.asarray(given[2], np.float64), *others[1:]
    actual = jax.jit(partial(passes, geometry_of(shape)))(*rounded("bfloat16", *given))
    for ours, exact in zip(actual, expected, strict=True):
        assert ours.dtype == jnp.bfloat16
        error = np.abs(np.asarray(ours, np.float64) - exact)
        assert error.max() <= 2 * EPSILON["bfloat16"] * np.abs(exact).max()


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("setting", ["as chosen", "banded", "shifted", "runs", "columns"])
def test_sums_of_bfloat16_are_float32s(setting, monkeypatch):
    """In bfloat16, 256 + 1 is 256."""
    monkeypatch.setattr(limits, "CURRENT", SETTINGS[setting]._replace(product_chunk_bytes=1))
    geometry = Geometry((5, 5), (3, 3), (1, 1), (0, 0))
    x, g = jnp.ones((300, 5, 5, 36), jnp.bfloat16), jnp.ones((300, 3, 3, 303), jnp.bfloat16)
    k = jnp.ones((3, 3, 36, 303), jnp.bfloat16)
    assert (select.kernel_gradient(x, g, geometry) == jnp.bfloat16(2700)).all()
    assert (select.forward(x, k, geometry) == 324).all()
    in_the_middle = select.images_gradient(g, k, geometry)[:, 2, 2]
    assert (in_the_middle == jnp.bfloat16(9 * 303)).all()  # of which each 303 would be 304


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("setting", ["shifted", "runs"])
def test_loops_over_chunks_take_bfloat16_as_bits(setting, monkeypatch):
    """XLA would convert all of the images to float32 before the loop."""
    monkeypatch.setattr(limits, "CURRENT", SETTINGS[setting]._replace(product_chunk_bytes=1))
    geometry = Geometry((6, 6), (3, 3), (1, 1), (1, 1))
    x, g = (jnp.ones((4, 6, 6, 8), jnp.bfloat16) for _ in range(2))
    program = uses(partial(select.kernel_gradient, geometry=geometry), x, g)[1]
    (loop,) = (line for line in program.splitlines() if "stablehlo.while" in line)
    assert "4x6x6x8xui16" in loop
    assert "bf16" not in loop


def test_the_gradient_of_a_bias_reads_what_is_rounded_anyway():
    """XLA would write it in float32 as well, for the sum."""
    for dtype, platform, is_kept in (
        ("bfloat16", "cpu", True),
        ("float16", "cpu", True),
        ("float32", "cpu", False),
        ("bfloat16", "tpu", False),
    ):
        x, k, b = (jnp.ones(s, dtype) for s in ((2, 6, 6, 3), (3, 3, 3, 4), 4))
        grad = jax.grad(lambda *args: ops.conv2d(*args).astype(jnp.float32).sum(), (0, 1, 2))
        assert ("optimization_barrier" in uses(grad, x, k, b, platform=platform)[1]) == is_kept


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_takes_the_engine_and_its_derivatives_stay_in_it(dtype):
    x, k = rounded(dtype, random(2, 8, 8, 3), random(3, 3, 3, 4))
    conv = partial(ops.conv2d, padding=1)
    assert "stablehlo.convolution" in uses(conv, x, k, platform="tpu")[1]

    def of(convolve):
        def loss(x, k):
            return (convolve(x, k).astype(jnp.float32) ** 2).mean()

        grad = jax.grad(loss, (0, 1))
        return grad(x, k), jax.jvp(grad, (x, k), (k[0, 0].mean() * x, k))[1]

    def squares(x, k):
        return (conv(x, k).astype(jnp.float32) ** 2).mean()

    for function in (conv, jax.grad(squares, (0, 1))):
        assert "conv_general_dilated" not in uses(function, x, k)[0]
    xlas = partial(xla.forward, geometry=Geometry((8, 8), (3, 3), (1, 1), (1, 1)))
    for ours, theirs in zip(*map(jax.tree.leaves, (of(conv), of(xlas))), strict=True):
        assert ours.dtype == dtype
        ours, theirs = (np.asarray(y, np.float32) for y in (ours, theirs))
        np.testing.assert_allclose(ours, theirs, atol=3 * EPSILON[dtype] * np.abs(theirs).max())


@pytest.mark.parametrize("shape", [(3, 4), (2, 5, 6), (2, 0), (4, 3), (0, 2)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_bits_are_those_of_the_numbers(shape, dtype):
    x = random(*shape).astype(dtype)
    bits = as_bits(x)
    assert bits.dtype == ("float32" if dtype == "float32" else "uint16")
    back = from_bits(bits, x.dtype)
    assert (back.shape, back.dtype) == (x.shape, x.dtype)
    assert np.asarray(back).tobytes() == np.asarray(x).tobytes()


FLOAT32 = "begun\nright\n"


@pytest.mark.parametrize(
    ("status", "printed", "in_bfloat16"),
    [
        (0, FLOAT32, False),
        (0, f"{FLOAT32}begun in bfloat16\nright in bfloat16\n", True),
        (1, f"{FLOAT32}begun in bfloat16\n", False),
        (-6, f"{FLOAT32}begun in bfloat16\n", False),  # as oneDNN does
        (None, f"{FLOAT32}begun in bfloat16\n", False),  # hangs
    ],
)
def test_where_bfloat16_fails_float32_stays_in_use(monkeypatch, status, printed, in_bfloat16):
    def run(command, **options):
        if status is None:
            raise subprocess.TimeoutExpired(command, 120, output=printed.encode())
        return subprocess.CompletedProcess(command, status, stdout=printed)

    monkeypatch.setattr(subprocess, "run", run)
    verdict = probe._run_probe()
    monkeypatch.setattr(probe, "verdict", lambda: verdict)
    assert probe.available()
    assert probe.bfloat16_available() == in_bfloat16
    assert ("bfloat16" in cpu.status()) == in_bfloat16
    assert not probe.many_products_available()


@pytest.mark.parametrize("printed", ["begun\n", FLOAT32])
def test_a_probe_that_hangs_in_float32_could_not_run(monkeypatch, tmp_path, printed):
    def run(command, **options):
        raise subprocess.TimeoutExpired(command, 120, output=printed.encode())

    monkeypatch.setenv("XDG_CACHE_HOME", f"{tmp_path}")
    monkeypatch.setattr(subprocess, "run", run)
    assert probe.verdict.__wrapped__() == "not in use: the probe could not run (TimeoutExpired)"


def test_a_probe_that_ends_badly_after_all_was_right_is_not_used(monkeypatch):
    printed = f"{FLOAT32}begun in bfloat16\nright in bfloat16\n"
    done = subprocess.CompletedProcess("probe.py", 3, stdout=printed)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    assert "the probe ended with 3" in probe._run_probe()


def test_a_probe_that_is_stopped_within_bfloat16_says_nothing(monkeypatch):
    done = subprocess.CompletedProcess("probe.py", -15, stdout=f"{FLOAT32}begun in bfloat16\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    assert probe._run_probe() is None


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("shape", [(4, 7), (2, 3, 7), (0, 7), (4, 0), (7,)])
def test_dense_in_half_precision(shape, dtype):
    x, k, b = rounded(dtype, random(*shape), random(shape[-1], 5, seed=1), random(5, seed=2))
    y, vjp = jax.vjp(jax.jit(ops.dense), x, k, b)
    g = random(*y.shape, seed=3).astype(dtype)
    xs, ks, bs, gs = (np.asarray(a, np.float64) for a in (x, k, b, g))
    of_rows = gs.reshape(-1, 5)
    rows = xs.reshape(len(of_rows), shape[-1])
    expected = xs @ ks + bs, gs @ ks.T, rows.T @ of_rows, of_rows.sum(axis=0)
    for actual, exact in zip((y, *vjp(g)), expected, strict=True):
        assert (actual.shape, actual.dtype) == (exact.shape, dtype)
        error = np.abs(np.asarray(actual, np.float64) - exact).max(initial=0)
        assert error <= 2 * EPSILON[dtype] * np.abs(exact).max(initial=0)
    assert "conv_forward" in uses(ops.dense, x, k, b)[0]
    xlas = partial(ops.dense, implementation="xla")
    assert "conv_forward" not in uses(xlas, x, k, b)[0]


@pytest.mark.parametrize("implementation", ["auto", "xla"])
def test_the_gradient_of_a_bias_is_summed_in_float32(implementation):
    """In bfloat16, 256 + 1 is 256."""
    options = {"implementation": implementation}
    images, kernel, bias = (jnp.ones(s, jnp.bfloat16) for s in ((20, 10, 10, 1), (1, 1, 1, 2), 2))
    for activation in (None, ops.relu, jnp.abs):
        conv = partial(ops.conv2d, images, kernel, activation=activation, **options)
        dense = partial(ops.dense, images, kernel[0, 0], activation=activation, **options)
        for function in (conv, dense):
            grad = jax.jit(jax.grad(lambda bias, of=function: of(bias).astype(jnp.float32).sum()))
            assert grad(bias).tolist() == [2000, 2000]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_relu_and_materialize_of_every_kind_of_number(dtype):
    info = ml_dtypes.finfo(dtype)
    numbers = [-np.inf, info.min, -1, -info.tiny, -0.0, 0, info.tiny, 3, info.max, np.inf, np.nan]
    x = jnp.asarray(np.array(numbers, dtype))
    for ours, theirs in ((ops.relu, jax.nn.relu), (ops.materialize, lambda x: x)):
        actual, expected = jax.jit(ours)(x), theirs(x)
        assert actual.dtype == dtype
        np.testing.assert_array_equal(*rounded("float32", actual, expected))
        slopes = [jax.vmap(jax.grad(jax.jit(f)))(x[:-1]) for f in (ours, theirs)]
        np.testing.assert_array_equal(*slopes)


def test_vmap_of_dense_in_half_precision_is_a_product():
    x, k = jnp.ones((6, 4, 7), jnp.bfloat16), jnp.ones((6, 7, 5), jnp.bfloat16)
    squares = lambda x, k: (ops.dense(x, k).astype(jnp.float32) ** 2).sum()  # noqa: E731
    for function in (jax.vmap(ops.dense), jax.vmap(jax.grad(squares, (0, 1)))):
        found, text = uses(function, x, k)
        assert "conv_general_dilated" not in found
        assert "stablehlo.convolution" not in text


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "uint16", "float64", "complex64"])
def test_other_numbers_are_added_and_multiplied_as_they_are(dtype):
    with jax.enable_x64(dtype == "float64"):
        x, k, b = (jnp.full(shape, 100, dtype) for shape in ((2, 300), (300, 3), (3,)))
        np.testing.assert_array_equal(ops.dense(x, k, b), jnp.dot(x, k) + b[None])
        if dtype in ("int32", "float64"):
            large = jnp.full(3, 2**24 + 1, dtype)
            assert (ops.dense(x, k, large) == 2**24 + 3_000_001).all()


def test_dense_says_what_does_not_fit():
    x, k = jnp.ones((2, 3)), jnp.ones((3, 4))
    for bias in (jnp.ones(1), jnp.ones(3), jnp.ones((1, 4))):
        with pytest.raises(ValueError, match=r"bias \[O\] for a kernel \[I, O\], got bias"):
            ops.dense(x, k, bias)
    for given in ((jnp.ones((2, 4)), k), (x, jnp.ones(3)), (jnp.ones(()), k)):
        with pytest.raises(ValueError, match=r"dense takes x \[..., I\] and a kernel \[I, O\]"):
            ops.dense(*given)
    for given in ((x.astype(jnp.bfloat16), k), (x, k, jnp.ones(4, jnp.bfloat16))):
        with pytest.raises(TypeError, match=r"of one dtype, got .*bfloat16"):
            ops.dense(*given)
