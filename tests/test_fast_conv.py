"""The fast convolution on CPU: against float64, under every transformation, and its fallbacks."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from jaxcnn import __main__, ops
from jaxcnn.ops import cpu, onednn, primitives, winograd
from jaxcnn.ops.geometry import Geometry, xla_forward


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
]


@pytest.fixture(params=["onednn", "no onednn"])
def onednn_or_not(request, monkeypatch):
    """Each test on both, and never on programs that were compiled with the other."""
    if request.param == "onednn" and not onednn.available():
        pytest.skip(f"oneDNN is {onednn.verdict()}")
    monkeypatch.setattr(onednn, "available", lambda: request.param == "onednn")
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("onednn_or_not")
def test_all_passes_match_float64(shape, monkeypatch):
    monkeypatch.setattr(cpu, "_SMALL", 0)  # else XLA has most of these, which need no test
    for limit in ("_BANDED", "_WINOGRAD", "_WINOGRAD_TILES", "_FEW_CHANNELS"):
        monkeypatch.setattr(cpu, limit, 0)
    n, size, i, o, window, strides, padding = shape
    x, k, b = random(n, *size, i), random(*window, i, o, seed=1), random(o, seed=3)
    k = k * k[..., 0].size ** -0.5  # sums of about one, where a sigmoid is not flat

    def results(x, k, b):
        y, vjp = jax.vjp(lambda x, k: ops.conv2d(x, k, strides, padding), x, k)
        sigmoid = partial(ops.conv2d_sigmoid, strides=strides, padding=padding)
        p, sigmoid_vjp = jax.vjp(sigmoid, x, k, b)
        g = jnp.asarray(random(*y.shape, seed=2), x.dtype)
        return y, *vjp(g), p, *sigmoid_vjp(g)

    actual = jax.jit(results)(x, k, b)
    with jax.enable_x64(True):
        expected = jax.jit(results)(*(jnp.asarray(a, jnp.float64) for a in (x, k, b)))
    for a, e in zip(actual, expected, strict=True):
        assert (a.dtype, e.dtype) == (jnp.float32, jnp.float64)
        assert np.abs(a - np.asarray(e)).max() <= 1e-5 * np.abs(e).max()
    g = random(*expected[0].shape, seed=2)
    for limit in ("_WINOGRAD", "_FEW_CHANNELS", "_BANDED"):  # the other kernel gradients
        monkeypatch.setattr(cpu, limit, np.inf)
        dk = cpu.kernel_gradient(x, g, Geometry(size, window, strides, padding))
        assert np.abs(dk - np.asarray(expected[2])).max() <= 1e-5 * np.abs(expected[2]).max()
    monkeypatch.setattr(cpu, "_LANES", np.inf)
    monkeypatch.setattr(cpu, "_LARGE_CHUNK", 1 << 12)
    geometry = Geometry(size, window, strides, padding)
    for rows, tiles in ((np.inf, np.inf), (0, np.inf), (0, 0)):  # oneDNN's, by rows, by tiles
        monkeypatch.setattr(cpu, "_WINOGRAD_ROWS", rows)
        monkeypatch.setattr(cpu, "_WINOGRAD_CONV", tiles)
        for a, e in (
            (cpu.images_gradient(g, k, geometry), expected[1]),
            (cpu.forward(x, k, geometry), expected[0]),
            (cpu.forward_sigmoid(x, k, b, geometry), expected[3]),
        ):
            assert np.abs(a - np.asarray(e)).max() <= 1e-5 * np.abs(e).max()


@pytest.mark.parametrize("channels", [1, 4])  # a product's sigmoid and a convolution's
@pytest.mark.usefixtures("onednn_or_not")
def test_sigmoid_of_the_largest_the_smallest_and_no_number(channels):
    inf = np.inf
    before = jnp.array([-inf, -3e38, -200, -88.5, -20, -1e-30, 0, 1, 20, 200, 3e38, inf, np.nan])
    images, kernel = jnp.ones((2, 4, 4, channels)), jnp.zeros((3, 3, channels, before.size))
    y = ops.conv2d_sigmoid(images, kernel, before)
    expected = np.broadcast_to(jax.nn.sigmoid(before), y.shape)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize(
    ("image", "padding"), [((3, 3), (1, 1)), ((7, 9), (0, 2)), ((4, 13), (2, 1)), ((3, 5), (0, 0))]
)
def test_winograds_convolution_is_exact(image, padding, transpose, monkeypatch):
    monkeypatch.setattr(onednn, "available", lambda: False)
    with jax.enable_x64(True):
        x, k = (jnp.asarray(random(*s), jnp.float64) for s in ((5, *image, 3), (3, 3, 3, 4)))
        expected = xla_forward(x, k, Geometry(image, (3, 3), (1, 1), padding))
        values = winograd.kernel_values(k.swapaxes(2, 3) if transpose else k, expected.shape[1:3])
        y = winograd.conv(x, values, padding, expected.shape[1:3], transpose)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-12)


def uses(function, *args, platform=None):
    """Return the names of the primitives and the text of the compiled-for-`platform` module."""
    traced = jax.jit(function).trace(*args)
    text = traced.lower(lowering_platforms=platform and (platform,)).as_text()
    return f"{traced.jaxpr}", text


def sigmoid(x, k):
    return ops.conv2d_sigmoid(x, k, jnp.zeros(k.shape[3], k.dtype), padding=1)


def test_the_platform_of_the_program_decides():
    if not onednn.available():
        pytest.skip(f"oneDNN is {onednn.verdict()}")
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
    for dtype in (jnp.bfloat16, jnp.float16):
        for function in (ops.conv2d, sigmoid):
            primitives, _ = uses(function, x.astype(dtype), k.astype(dtype))
            assert "conv_general_dilated" in primitives
            assert function(x.astype(dtype), k.astype(dtype)).dtype == dtype
    assert "conv_general_dilated" not in uses(ops.conv2d, x, k)[0]
    monkeypatch.setenv("JAXCNN_IMPLEMENTATION", "xla")
    jax.clear_caches()
    for function in (ops.conv2d, sigmoid):
        assert "conv_general_dilated" in uses(function, x, k)[0]
    monkeypatch.setenv("JAXCNN_IMPLEMENTATION", "fast")
    with pytest.raises(ValueError, match="JAXCNN_IMPLEMENTATION must be auto or xla, got 'fast'"):
        ops.conv2d(x, k)


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
    monkeypatch.setattr(cpu, "_SMALL", 0)
    y, vjp = jax.vjp(ops.conv2d, jnp.zeros((0, 5, 5, 2)), random(3, 3, 2, 4))
    assert y.shape == (0, 3, 3, 4)
    assert not vjp(y)[1].any()
    assert sigmoid(jnp.zeros((0, 3, 3, 2)), random(3, 3, 2, 4)).shape == (0, 3, 3, 4)


GEOMETRY = Geometry((6, 5), (3, 2), (2, 1), (1, 0))
OPERANDS = {"x": (3, 6, 5, 2), "k": (3, 2, 2, 4), "g": (3, 3, 4, 4), "b": (4,)}
PASSES = [
    (primitives.forward_p, cpu.forward, "xk"),
    (primitives.images_gradient_p, cpu.images_gradient, "gk"),
    (primitives.kernel_gradient_p, cpu.kernel_gradient, "xg"),
    (primitives.forward_sigmoid_p, cpu.forward_sigmoid, "xkb"),
]


@pytest.mark.parametrize(
    ("primitive", "plain", "names"), PASSES, ids=["forward", "images", "kernel", "sigmoid"]
)
def test_every_transformation_of_each_pass(primitive, plain, names):
    """Against the same transformation of the plain function, which JAX takes apart by itself."""
    ours = partial(primitive.bind, geometry=GEOMETRY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onednn, "available", lambda: False)
        patch.setattr(cpu, "_SMALL", 0)
        jax.clear_caches()
        _compare(ours, partial(plain, geometry=GEOMETRY), names)


def _compare(ours, plain, names):
    args, tangents, many = (
        tuple(random(*lead, *OPERANDS[name], seed=seed) for name in names)
        for seed, lead in ((1, ()), (2, ()), (3, (4,)))
    )
    every = tuple(range(len(names)))

    def loss(f, *args):
        return (f(*args) ** 3).sum()

    def gradients(f):
        return jax.grad(partial(loss, f), every)

    def vmapped(mapped, f, axis=0):
        axes = [axis if i in mapped else None for i in every]
        given = (jnp.moveaxis(many[i], 0, axis) if i in mapped else args[i] for i in every)
        return jax.vmap(f, axes, axis)(*given)

    def along(i, f):
        return jax.jvp(lambda x: f(*args[:i], x, *args[i + 1 :]), args[i : i + 1], tangents[i:][:1])

    some = [c for n in every for c in itertools.combinations(every, n + 1)]
    transformed = [
        lambda f: f(*args),
        lambda f: jax.jit(f)(*args),
        lambda f: jax.jvp(f, args, tangents),
        *(partial(along, i) for i in every),
        lambda f: gradients(f)(*args),
        *(lambda f, i=i: jax.grad(partial(loss, f), i)(*args) for i in every),
        lambda f: jax.jvp(gradients(f), args, tangents),  # Hessian-vector
        lambda f: jax.vjp(gradients(f), *args)[1](tangents),
        lambda f: jax.grad(lambda a: jax.jvp(partial(loss, f), (a, *args[1:]), tangents)[1])(
            args[0]
        ),
        *(partial(vmapped, mapped) for mapped in some),
        lambda f: vmapped((0,), f, axis=1),
        lambda f: jax.vmap(lambda x: vmapped((1,), lambda _, *rest: f(x, *rest)))(many[0]),
        lambda f: vmapped((0,), gradients(f)),
        lambda f: jax.pmap(f)(*many),
        lambda f: jax.lax.scan(lambda c, x: (c + f(x, *args[1:]), None), f(*args) * 0, many[0])[0],
        lambda f: jax.grad(jax.checkpoint(partial(loss, f)), every)(*args),
        lambda f: jax.linearize(f, *args)[1](*tangents),
    ]
    for transform in transformed:
        actual, expected = jax.tree.leaves(transform(ours)), jax.tree.leaves(transform(plain))
        for x, y in zip(actual, expected, strict=True):
            np.testing.assert_allclose(x, y, atol=2e-5 * np.abs(y).max(), rtol=0)


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize(
    "conv",
    [
        partial(ops.conv2d, padding=1),
        lambda x, k: ops.conv2d_sigmoid(x, k, k[0, 0, 0], padding=1),
    ],
    ids=["conv", "sigmoid"],
)
@pytest.mark.usefixtures("onednn_or_not")
def test_shard_map_averages_gradients_over_devices(conv, check_vma, monkeypatch):
    monkeypatch.setattr(cpu, "_SMALL", 0)
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


def test_a_probe_that_fails_leaves_xla(run_python, tmp_path):
    """With a jaxlib that is not on the list, and where the probe cannot be right."""
    code = (
        "from jaxcnn.ops import onednn, conv2d; import jax.numpy as jnp; {};"
        "x, k = jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1));"
        "print(onednn.verdict()); print(conv2d(x, k).sum())"
    )
    for change, words in (
        ("onednn.TESTED = ('0.0.1',)", "not among 0.0.1"),
        ("onednn.__file__ = '/dev/null'", "ended with 0"),
    ):
        if not onednn.available():
            pytest.skip(f"oneDNN is {onednn.verdict()}")
        done = run_python("-c", code.format(change), XDG_CACHE_HOME=f"{tmp_path}")
        verdict, value = done.stdout.splitlines()
        assert words in verdict
        assert value == "36.0"
        assert not done.stderr


def test_info_tells_what_is_in_use(capsys, monkeypatch):
    assert __main__.main(["info"]) == 0
    assert f"oneDNN       {onednn.verdict()}" in capsys.readouterr().out
    monkeypatch.setenv("JAXCNN_IMPLEMENTATION", "xla")
    assert __main__.main(["info"]) == 0
    assert "convolution  xla" in capsys.readouterr().out


def test_the_same_bits_in_every_process(run_python):
    code = (
        "import jax, jax.numpy as jnp, numpy as np, hashlib; from jaxcnn import ops;"
        "r = np.random.default_rng(0).standard_normal;"
        "x, k = r((64, 24, 24, 32), np.float32), r((3, 3, 32, 64), np.float32);"
        "f = jax.jit(jax.value_and_grad(lambda x, k: (ops.conv2d(x, k, 1, 1) ** 2).sum(), (0, 1)));"
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


@pytest.mark.parametrize(("op", "shape", "window"), POOLS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_every_transformation_of_pooling(op, shape, window, dtype, monkeypatch):
    with jax.enable_x64(dtype == "float64"):
        # whole numbers, so that there are ties and every sum is exact
        x, dx = (jnp.round(2 * random(3, *shape, seed=i)).astype(dtype) for i in (1, 2))

        def pool(x):
            return op(x, *window)

        def loss(x):
            return (pool(x) ** 3).sum()

        def results(x, dx):
            hvp = jax.jvp(jax.grad(loss), (x[0],), (dx[0],))
            return (
                jax.jvp(pool, (x[0],), (dx[0],)),
                (jax.grad(loss)(x[0]), hvp),
                (jax.vmap(pool)(x), jax.vmap(jax.grad(loss))(x), jax.pmap(jax.grad(loss))(x)),
                jax.grad(jax.checkpoint(loss))(x[0]),
                jax.lax.scan(lambda c, x: (c + jax.grad(loss)(x), None), x[0] * 0, x)[0],
            )

        ours = jax.grad(loss)(x[0]), jax.jit(results)(x, dx)
        monkeypatch.setenv("JAXCNN_IMPLEMENTATION", "xla")
        jax.clear_caches()
        theirs = jax.grad(loss)(x[0]), jax.jit(results)(x, dx)
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_max_pool_is_xlas_on_accelerators_and_not_on_cpu():
    grad = jax.grad(lambda x: ops.max_pool(x, 2).sum())
    for platform, expected in (("cpu", False), ("tpu", True), ("cuda", True)):
        _, text = uses(grad, random(2, 4, 4, 1), platform=platform)
        assert ("select_and_scatter" in text) == expected


def test_max_pool_in_a_fused_step_has_one_winner_in_each_window():
    """Where XLA computes the pixels again for the gradient, it may round them otherwise."""
    x = random(8, 24, 24, 16)

    def windows_total(shift, x):
        normal = (x - x.mean()) * jax.lax.rsqrt(x.var() + 1e-5)
        return ops.max_pool(jax.nn.sigmoid(normal) * 3.3 + shift, 2).sum()

    received = jax.grad(windows_total)  # each window's maximum receives 1
    gradient = jax.jit(received)(jnp.zeros_like(x), x).reshape(8, 12, 2, 12, 2, 16)
    assert (gradient.sum((2, 4)) == 1).all()
