"""Ops: d2l's printed numbers, loop-only references over a grid, jit and maps, errors."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

import references
from jaxcnn import ops
from jaxcnn.layers import flatten, global_avg_pool, global_max_pool


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


X = jnp.arange(9.0).reshape(3, 3)
K = jnp.arange(4.0).reshape(2, 2)


def test_d2l_cross_correlation():
    assert ops.corr2d(X, K).tolist() == [[19, 25], [37, 43]]


def test_d2l_edge_detection():
    image = jnp.ones((6, 8)).at[:, 2:6].set(0)
    kernel = jnp.array([[1.0, -1.0]])
    assert ops.corr2d(image, kernel).tolist() == [[0, 1, 0, 0, 0, -1, 0]] * 6
    assert not ops.corr2d(image.T, kernel).any()


def test_d2l_multiple_channels():
    x, k = jnp.stack([X, X + 1]), jnp.stack([K, K + 1])
    assert ops.corr2d_multi_in(x, k).tolist() == [[56, 72], [104, 120]]
    assert ops.corr2d_multi_in_out(x, jnp.stack([k, k + 1, k + 2])).tolist() == [
        [[56, 72], [104, 120]],
        [[76, 100], [148, 172]],
        [[96, 128], [192, 224]],
    ]


def test_d2l_1x1_convolution_is_a_matrix_product():
    x, k = random(3, 3, 3), random(2, 3, 1, 1, seed=1)
    difference = ops.corr2d_multi_in_out_1x1(x, k) - ops.corr2d_multi_in_out(x, k)
    assert float(jnp.abs(difference).sum()) < 1e-6


def test_d2l_pooling():
    assert ops.pool2d(X, (2, 2)).tolist() == [[4, 5], [7, 8]]
    assert ops.pool2d(X, (2, 2), "avg").tolist() == [[2, 3], [5, 6]]
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    assert ops.max_pool(x, 3).ravel().tolist() == [10]
    for options in (
        {"window": 2},
        {"window": 3, "padding": 1, "strides": 2},
        {"window": (2, 3), "strides": (2, 3), "padding": (0, 1)},
    ):
        assert ops.max_pool(x, **options)[0, :, :, 0].tolist() == [[5, 7], [13, 15]]
    two = jnp.concatenate([x, x + 1], axis=3)
    pooled = ops.max_pool(two, 3, padding=1, strides=2)[0]
    assert pooled[:, :, 1].tolist() == [[6, 8], [14, 16]]


@pytest.mark.parametrize(
    ("kernel", "padding", "stride", "expected"),
    [
        (3, 1, 1, (8, 8)),
        ((5, 3), (2, 1), 1, (8, 8)),
        (3, 1, 2, (4, 4)),
        ((3, 5), (0, 1), (3, 4), (2, 2)),
    ],
)
def test_d2l_padding_and_stride(kernel, padding, stride, expected):
    kh, kw = (kernel, kernel) if isinstance(kernel, int) else kernel
    y = ops.conv2d(
        jnp.ones((1, 8, 8, 1)), jnp.ones((kh, kw, 1, 1)), strides=stride, padding=padding
    )
    assert y.shape[1:3] == expected


@pytest.mark.parametrize("shape", [(3, 3), (5, 7), (8, 3)])
@pytest.mark.parametrize("kernel", [(1, 1), (1, 3), (3, 2), (3, 3)])
def test_corr2d_matches_the_reference(shape, kernel):
    x, k = random(*shape), random(*kernel, seed=1)
    np.testing.assert_allclose(ops.corr2d(x, k), references.corr2d(x, k), rtol=1e-5, atol=1e-5)
    stacked = ops.corr2d_multi_in_out(np.stack([x, -x, x]), np.stack([[k, k, k], [k, -k, 2 * k]]))
    expected = references.corr2d_multi_in_out(
        np.stack([x, -x, x]), np.stack([[k, k, k], [k, -k, 2 * k]])
    )
    np.testing.assert_allclose(stacked, expected, rtol=1e-5, atol=1e-5)


DTYPES = {"float32": 1e-5, "float64": 1e-10}


def assert_close(actual, expected, dtype):
    """Compare relative to the largest value: sums of both signs cancel here and there."""
    assert actual.dtype == dtype
    scale = max(np.abs(expected).max(), 1e-3)
    actual, expected = np.asarray(actual) / scale, expected / scale
    np.testing.assert_allclose(actual, expected, rtol=0, atol=DTYPES[dtype])


def draw_conv(data, dtype):
    """Draw operands and options of a convolution, dilation and groups included."""
    window = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)), "window")
    strides = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)), "strides")
    padding = data.draw(st.tuples(*(st.integers(0, k // 2) for k in window)), "padding")
    dilation = data.draw(st.sampled_from([(1, 1), (2, 1), (1, 3)]), "dilation")
    groups = data.draw(st.sampled_from([1, 1, 2, 3]), "groups")
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, window, strict=True)]
    size = data.draw(st.tuples(*(st.integers(r, 10) for r in reach)), "size")
    channels, features = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2)) * groups
    x = random(2, *size, channels * groups).astype(dtype)
    k = random(*window, channels, features, seed=1).astype(dtype)
    return x, k, {"strides": strides, "padding": padding, "dilation": dilation, "groups": groups}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_conv2d_and_its_gradients_match_the_references(dtype, data):
    x, k, options = draw_conv(data, dtype)
    bias = random(k.shape[3], seed=3).astype(dtype)
    with jax.enable_x64(dtype == "float64"):
        expected = references.conv2d(x, k, **options) + bias
        g = random(*expected.shape, seed=2).astype(dtype)

        @jax.jit
        def conv2d_and_its_gradients(g, *args):
            y, vjp = jax.vjp(lambda *args: ops.conv2d(*args, **options), *args)
            return y, *vjp(g)

        actual = conv2d_and_its_gradients(*map(jnp.array, (g, x, k, bias)))
        gradients = references.conv2d_gradients(x, k, cotangent=g, **options)
        for one, reference in zip(actual, (expected, *gradients, g.sum((0, 1, 2))), strict=True):
            assert_close(one, reference, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_pooling_and_its_gradients_match_the_references(dtype, data):
    window = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)), "window")
    strides = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)), "strides")
    padding = data.draw(st.tuples(*(st.integers(0, k // 2) for k in window)), "padding")
    ceil_mode = data.draw(st.booleans(), "ceil_mode")
    dilation = data.draw(st.sampled_from([(1, 1), (2, 1), (1, 3)]), "dilation")
    count_include_pad = data.draw(st.booleans(), "count_include_pad")
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, window, strict=True)]
    size = data.draw(st.tuples(*(st.integers(r, 10) for r in reach)), "size")
    x = random(2, *size, 2).astype(dtype)
    if data.draw(st.booleans(), "ties"):  # equal pixels: which of them is the maximum?
        x = np.round(x)
    options = {"strides": strides, "padding": padding, "ceil_mode": ceil_mode}
    with jax.enable_x64(dtype == "float64"):
        for mode, pool, more in (
            ("max", ops.max_pool, {"dilation": dilation}),
            ("avg", ops.avg_pool, {"count_include_pad": count_include_pad}),
        ):
            call = partial(pool, window=window, **options, **more)
            expected = references.pool(x, window, mode=mode, **options, **more)
            g = random(*expected.shape, seed=2).astype(dtype)
            y, gradient = jax.jit(value_and_gradient, static_argnums=0)(call, x, g)
            assert_close(y, expected, dtype)
            expected = references.pool_gradient(
                x, window, mode=mode, cotangent=g, **options, **more
            )
            assert_close(gradient, expected, dtype)


@pytest.mark.parametrize(
    ("size", "window", "options"),
    [
        ((5, 4), (2, 2), {"strides": (2, 2), "padding": (0, 0), "ceil_mode": True}),
        ((7, 8), (2, 3), {"strides": (2, 3), "padding": (0, 0)}),
        ((8, 8), (2, 2), {"strides": (2, 2), "padding": (0, 0), "dilation": (2, 1)}),
        ((6, 6), (3, 3), {"strides": (2, 2), "padding": (1, 1), "ceil_mode": True}),
        ((5, 6), (3, 3), {"strides": (2, 2), "padding": (1, 1)}),
        ((6, 5), (3, 3), {"strides": (2, 2), "padding": (1, 1)}),
        ((6, 6), (3, 3), {"strides": (2, 2), "padding": (1, 1), "dilation": (1, 2)}),
    ],
)
def test_pooling_where_windows_almost_tile_or_halve_the_image(size, window, options):
    """The engine has a faster way for windows that do."""
    x = np.round(random(2, *size, 2).astype("float32"), 1)
    for mode, pool in (("max", ops.max_pool), ("avg", ops.avg_pool)):
        if mode == "avg":
            options = {k: v for k, v in options.items() if k != "dilation"}
        expected = references.pool(x, window, mode=mode, **options)
        g = random(*expected.shape, seed=2).astype("float32")
        y, gradient = value_and_gradient(partial(pool, window=window, **options), x, g)
        assert_close(y, expected, "float32")
        expected = references.pool_gradient(x, window, mode=mode, cotangent=g, **options)
        assert_close(gradient, expected, "float32")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("implementation", ["auto", "xla"])
def test_means_in_half_precision_are_of_sums_in_float32(dtype, implementation):
    """The sum of four numbers of 20,000 is beyond float16; bfloat16 would round pixels away."""
    x = random(1, 32, 32, 2, seed=4)
    x = jnp.asarray(2e4 + 1e3 * x, dtype)
    for window, strides, options in (
        (2, 2, {}),
        (16, 16, {}),
        (3, 1, {}),
        ((32, 32), 1, {}),
        (3, 2, {"padding": 1, "count_include_pad": False}),
        (2, 2, {"divisor_override": 3}),
    ):
        y = ops.avg_pool(x, window, strides, implementation=implementation, **options)
        exact = ops.avg_pool(x.astype("float32"), window, strides, **options)
        assert y.dtype == dtype
        np.testing.assert_array_equal(y, exact.astype(dtype))
    y = global_avg_pool(x)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, global_avg_pool(x.astype("float32")).astype(dtype))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 5, 4), (3, 7, 7, 2), (1, 20, 30, 3)])
def test_pixels_that_are_the_maximum_share_its_gradient(shape, dtype):
    """Of integers, of which many are equal; NumPy's by a loop."""
    x = np.random.default_rng(5).integers(-4, 3, shape).astype(np.float32)
    g = random(shape[0], shape[3], seed=6)
    y, vjp = jax.vjp(global_max_pool, jnp.asarray(x, dtype))
    assert y.dtype == dtype
    np.testing.assert_array_equal(y.astype("float32"), x.max(axis=(1, 2)))
    (found,) = vjp(jnp.asarray(g, dtype))
    expected = np.zeros(shape)
    for n, c in np.ndindex(shape[0], shape[3]):
        image = x[n, :, :, c]
        expected[n, :, :, c] = (image == image.max()) / (image == image.max()).sum() * g[n, c]
    np.testing.assert_allclose(found.astype("float32"), expected, rtol=2e-2, atol=1e-3)


def test_infinities_have_a_maximum():
    x = np.array([[[[-np.inf], [-np.inf]]], [[[np.inf], [1.0]]]], np.float32)
    np.testing.assert_array_equal(global_max_pool(x), [[-np.inf], [np.inf]])
    gradient = jax.grad(lambda x: global_max_pool(x).sum())(x)
    np.testing.assert_array_equal(gradient[0].ravel(), [0.5, 0.5])
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("integer", [np.int64, np.uint8, np.int32])
def test_integers_of_numpy_are_integers(integer):
    x, k = jnp.asarray(random(1, 8, 8, 4)), jnp.asarray(random(3, 3, 2, 4))
    for function, numbers in (
        (partial(ops.conv2d, x, k), {"strides": 2, "padding": 1, "groups": 2}),
        (partial(ops.max_pool, x), {"window": 3, "strides": 2, "padding": 1, "dilation": 2}),
        (partial(ops.avg_pool, x), {"window": 2, "divisor_override": 3}),
    ):
        others = {name: integer(number) for name, number in numbers.items()}
        pairs = {k: v if k in ("groups", "divisor_override") else [v, v] for k, v in others.items()}
        for arguments in (others, pairs):
            np.testing.assert_array_equal(function(**arguments), function(**numbers))


@pytest.mark.parametrize("value", [2.0, True, (1, 2, 3), (1, 2.5), "ab", None, np.ones(3)], ids=str)
def test_what_is_no_integer_or_pair_is_refused(value):
    with pytest.raises(ValueError, match="window must be an integer or a "):
        ops.max_pool(jnp.ones((1, 8, 8, 4)), value)


@pytest.mark.parametrize("value", [2.0, True, (2, 2), None], ids=str)
def test_groups_are_an_integer(value):
    with pytest.raises(ValueError, match="groups must be an integer"):
        ops.conv2d(jnp.ones((1, 8, 8, 4)), jnp.ones((3, 3, 2, 4)), groups=value)


def test_no_images_give_no_results():
    x, k = jnp.zeros((0, 8, 8, 4)), jnp.ones((3, 3, 4, 2))
    assert ops.conv2d(x, k).shape == (0, 6, 6, 2)
    assert ops.max_pool(x, 2).shape == ops.avg_pool(x, 2).shape == (0, 4, 4, 4)
    assert ops.avg_pool(x, 3, 1, 1).shape == ops.max_pool(x, 3, 1, 1).shape == (0, 8, 8, 4)
    assert flatten(x).shape == (0, 256)
    assert global_avg_pool(x).shape == (0, 4)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int8"])
@pytest.mark.parametrize("dilation", [1, 2])
def test_the_maximum_of_integers_is_exact(dtype, dilation):
    """Padding is below every number: of all negative ones, too."""
    x = np.random.default_rng(0).integers(np.iinfo(dtype).min, 2, (2, 6, 7, 3), dtype)
    options = {"strides": (1, 2), "padding": (1, 1), "dilation": (dilation, dilation)}
    actual = ops.max_pool(jnp.asarray(x), 3, **options)
    assert actual.dtype == dtype
    np.testing.assert_array_equal(actual, references.pool(x, (3, 3), mode="max", **options))


def value_and_gradient(function, x, g):
    y, vjp = jax.vjp(function, x)
    return y, vjp(g)[0]


@pytest.mark.parametrize("window", [(2, 3), (3, 3), (5, 4)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_padding_same_keeps_the_size_and_valid_adds_none(window, dilation):
    x, k = random(2, 11, 12, 2), random(*window, 2, 3, seed=1)
    call = partial(ops.conv2d, x, k, dilation=dilation)
    assert call(padding="same").shape == (2, 11, 12, 3)
    before, after = zip(
        *((d // 2, d - d // 2) for d in (dilation * (n - 1) for n in window)), strict=True
    )
    pads = ((0, 0), *zip(before, after, strict=True), (0, 0))
    expected = references.conv2d(np.pad(x, pads), k, dilation=(dilation, dilation))
    assert_close(call(padding="same"), expected, "float32")
    np.testing.assert_array_equal(call(padding="valid"), call(padding=0))


def test_divisor_override_replaces_the_number_of_pixels():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    for window, strides in ((2, 2), (3, 1)):  # side by side, and overlapping
        sums = ops.avg_pool(x, window, strides, divisor_override=1)
        mean = ops.avg_pool(x, window, strides)
        np.testing.assert_allclose(sums, mean * window**2, rtol=1e-6)
        np.testing.assert_allclose(
            ops.avg_pool(x, window, strides, divisor_override=-2), sums / -2, rtol=1e-6
        )


@pytest.mark.parametrize("activation", [None, jax.nn.sigmoid, jnp.tanh, ops.relu])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("implementation", ["auto", "xla"])
@pytest.mark.parametrize("groups", [1, 2])
def test_conv2d_ends_with_bias_and_activation(activation, with_bias, implementation, groups):
    x, k = random(2, 6, 5, 4), random(3, 2, 4 // groups, 4, seed=1)
    bias = random(4, seed=3) if with_bias else None
    y = ops.conv2d(x, k, bias, groups=groups, activation=activation, implementation=implementation)
    expected = references.conv2d(x, k, groups=groups) + (0 if bias is None else bias)
    expected = expected if activation is None else activation(jnp.asarray(expected, jnp.float32))
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
def test_gradients_that_xla_would_abort_on(run_python):
    """In a process of its own: where one fails, the process is gone."""
    code = """
import jax, jax.numpy as jnp
from jaxcnn import ops
for size, window, strides, padding in (
    ((6, 3), (2, 2), (2, 2), (1, 0)),
    ((7, 4), (4, 2), (2, 2), (1, 1)),
    ((6, 7), (2, 4), (2, 3), (1, 2)),
):
    x, k = jnp.ones((2, *size, 2)), jnp.ones((*window, 2, 3))
    f = lambda x, k: (ops.conv2d(x, k, strides=strides, padding=padding) ** 2).sum()
    jax.grad(f, (0, 1))(x, k)
    jax.jit(jax.grad(f, (0, 1)))(x, k)
    print(size)
"""
    assert run_python("-c", code, JAX_PLATFORMS="cpu").stdout.splitlines() == [
        "(6, 3)",
        "(7, 4)",
        "(6, 7)",
    ]


def test_second_derivatives():
    x, k = jnp.asarray(random(1, 5, 4, 2)), jnp.asarray(random(3, 3, 2, 2, seed=1))
    check_grads(
        lambda x, k: ops.conv2d(x, k, strides=2, padding=1) ** 2,
        (x, k),
        order=2,
        rtol=2e-2,
        atol=2e-2,
    )
    check_grads(lambda x: ops.avg_pool(x, 2, 2, 1) ** 2, (x,), order=2, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("implementation", ["auto", "xla"])
@pytest.mark.parametrize(("rows", "channels", "features"), [(4, 7, 5), (1, 1, 1), (3, 2, 9)])
def test_dense_and_its_gradients_are_the_definitions(rows, channels, features, implementation):
    x, k, b, g = (
        random(*shape, seed=i)
        for i, shape in enumerate(
            ((rows, channels), (channels, features), (features,), (rows, features))
        )
    )
    y, vjp = jax.vjp(jax.jit(partial(ops.dense, implementation=implementation)), x, k, b)
    expected = references.dense(x, k, b), *references.dense_gradients(x, k, g)
    for actual, exact in zip((y, *vjp(jnp.asarray(g))), expected, strict=True):
        np.testing.assert_allclose(actual, exact, rtol=1e-5, atol=1e-5)


OPS = {  # call, shapes of its arguments
    "conv2d": (partial(ops.conv2d, strides=(2, 1), padding=(1, 0)), (3, 7, 5, 2), (2, 3, 2, 4)),
    "conv2d, sigmoid": (
        partial(ops.conv2d, strides=(2, 1), padding=(1, 0), activation=jax.nn.sigmoid),
        *((3, 7, 5, 2), (2, 3, 2, 4), (4,)),
    ),
    "conv2d, dilation and groups": (
        partial(ops.conv2d, strides=(2, 1), dilation=(1, 2), groups=2),
        *((3, 7, 9, 4), (2, 3, 2, 4)),
    ),
    "dense": (ops.dense, (4, 3), (3, 2), (2,)),
    "dense, more axes": (partial(ops.dense, activation=jnp.tanh), (4, 2, 3), (3, 5)),
    "relu": (ops.relu, (3, 5)),
    "materialize": (ops.materialize, (3, 5)),
    "map_images": (partial(ops.map_images, jnp.tanh), (3, 5, 4, 2)),
    "corr2d": (ops.corr2d, (5, 7), (2, 3)),
    "corr2d_multi_in": (ops.corr2d_multi_in, (3, 5, 7), (3, 2, 3)),
    "corr2d_multi_in_out": (ops.corr2d_multi_in_out, (3, 5, 7), (2, 3, 3, 2)),
    "corr2d_multi_in_out_1x1": (ops.corr2d_multi_in_out_1x1, (3, 5, 7), (2, 3, 1, 1)),
    "max_pool": (partial(ops.max_pool, window=3, strides=(2, 1), padding=(1, 0)), (3, 7, 5, 2)),
    "avg_pool": (partial(ops.avg_pool, window=3, strides=(2, 1), padding=(1, 0)), (3, 7, 5, 2)),
    "pool2d": (partial(ops.pool2d, pool_size=(2, 3), mode="avg"), (5, 7)),
}


def test_table_covers_every_op():
    names = {name.split(",")[0] for name in OPS}
    assert names == set(ops.__all__) - {"conv_output_size", "pool_output_size"}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPS)
def test_jit_vmap_and_pmap_agree_with_the_plain_call(name, dtype):
    op, *shapes = OPS[name]

    def value_and_gradients(*args):
        y, vjp = jax.vjp(op, *args)
        return y, *vjp(y)

    with jax.enable_x64(dtype == "float64"):
        three = [random(3, *s, seed=i).astype(dtype) for i, s in enumerate(shapes)]
        plain = [value_and_gradients(*(x[i] for x in three)) for i in range(3)]
        for mapped in (jax.jit(jax.vmap(value_and_gradients)), jax.pmap(value_and_gradients)):
            for actual, *expected in zip(mapped(*three), *plain, strict=True):
                assert_close(actual, np.stack(expected), dtype)


def test_averages_of_bfloat16_are_summed_in_float32():
    x = jnp.array([[256, 1], [1, 1]], jnp.bfloat16)  # in which 256 + 1 is 256
    assert ops.avg_pool(x[None, :, :, None], 2) == 65


def test_integers():
    x = jnp.arange(9).reshape(3, 3)
    assert ops.corr2d(x, x[:2, :2]).tolist() == [[26, 34], [50, 58]]
    assert ops.pool2d(-x, 2).tolist() == [[0, -1], [-3, -4]]
    assert ops.pool2d(x, 2, "avg").tolist() == [[2, 3], [5, 6]]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ops.corr2d(jnp.ones((2, 2)), jnp.ones((3, 1))), ["(2, 2)", "(3, 1)", "larger"]),
        (lambda: ops.corr2d(jnp.ones(2), jnp.ones((1, 1))), ["(2,)", "[H, W]"]),
        (
            lambda: ops.corr2d_multi_in(jnp.ones((2, 3, 3)), jnp.ones((3, 2, 2))),
            ["(2, 3, 3)", "(3, 2, 2)"],
        ),
        (
            lambda: ops.corr2d_multi_in_out(jnp.ones((2, 3, 3)), jnp.ones((1, 3, 2, 2))),
            ["(2, 3, 3)", "(1, 3, 2, 2)"],
        ),
        (
            lambda: ops.corr2d_multi_in_out_1x1(jnp.ones((2, 3, 3)), jnp.ones((1, 2, 2, 2))),
            ["(1, 2, 2, 2)"],
        ),
        (
            lambda: ops.conv2d(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 3, 1))),
            ["(1, 4, 4, 2)", "(3, 3, 3, 1)"],
        ),
        (
            lambda: ops.conv2d(jnp.ones((1, 4, 4, 1)), jnp.ones((7, 7, 1, 1)), padding=1),
            ["7", "4", "padded: 6"],
        ),
        (
            lambda: ops.conv2d(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1)), strides=0),
            ["stride=0"],
        ),
        (
            lambda: ops.conv2d(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1)), dilation=0),
            ["dilation=0"],
        ),
        (
            lambda: ops.conv2d(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1)), dilation=2),
            ["a window of 5 pixels"],
        ),
        (
            lambda: ops.conv2d(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 2)), jnp.ones(1)),
            ["bias (1,)", "(3, 3, 1, 2)", "[O]"],
        ),
        (
            lambda: ops.conv2d(jnp.ones((1, 4, 4, 4)), jnp.ones((3, 3, 2, 3)), groups=2),
            ["(1, 4, 4, 4)", "(3, 3, 2, 3)", "groups 2"],
        ),
        (
            lambda: ops.conv2d(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2)), groups=0),
            ["groups 0"],
        ),
        (
            lambda: ops.conv2d(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1)), padding="full"),
            ["'full'", "'same' or 'valid'"],
        ),
        (
            lambda: ops.conv2d(
                jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1)), strides=2, padding="same"
            ),
            ["(2, 2)", "stride 1"],
        ),
        (
            lambda: ops.avg_pool(jnp.ones((1, 4, 4, 1)), 2, divisor_override=0),
            ["divisor_override", "0"],
        ),
        (lambda: ops.max_pool(jnp.ones((1, 4, 4, 1)), 3, dilation=2), ["a window of 5 pixels"]),
        (lambda: ops.pool2d(X, 2, "mean"), ["'mean'", "'max'", "'avg'"]),
        (lambda: ops.pool2d(X, 4), ["4", "3"]),
        (lambda: ops.pool2d(X[0], 1), ["(3,)", "[H, W]"]),
        (lambda: ops.max_pool(X, 2), ["(3, 3)", "[N, H, W, C]"]),
        (lambda: ops.max_pool(jnp.ones((1, 4, 4, 1)), 2, padding=2), ["half", "(2, 2)"]),
        (lambda: ops.conv_output_size(0, 1), ["input_size=0"]),
        (lambda: ops.conv_output_size(3, 1, padding=-1), ["padding=-1"]),
        (lambda: ops.max_pool(jnp.ones((1, 4, 4, 1)), (2, 2, 2)), ["(2, 2, 2)"]),
    ],
)
def test_errors_name_what_was_given(call, words):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        call()
    for word in words:
        assert word in str(error.value)


def test_a_bias_of_another_dtype_is_refused_as_a_kernel_is():
    images, kernel = jnp.ones((1, 4, 4, 2), jnp.bfloat16), jnp.ones((3, 3, 2, 3), jnp.bfloat16)
    with pytest.raises(TypeError, match="one dtype, got bfloat16, bfloat16 and float32"):
        ops.conv2d(images, kernel, jnp.ones(3))
    assert ops.conv2d(images, kernel, jnp.ones(3, jnp.bfloat16)).dtype == jnp.bfloat16


def test_the_gradient_of_a_large_window_is_a_small_program():
    """As of a global maximum: not a slice for each of its pixels."""
    images = jnp.asarray(np.random.default_rng(0).random((2, 28, 28, 3)), jnp.float32)
    gradient = jax.grad(lambda x: ops.max_pool(x, 28).sum())
    assert str(jax.make_jaxpr(gradient)(images)).count("slice") < 20
    expected = images == images.max(axis=(1, 2), keepdims=True)
    np.testing.assert_array_equal(jax.jit(gradient)(images), expected)
