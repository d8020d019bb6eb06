"""What is kept and what is computed again: the same values and derivatives, in less memory."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxcnn.layers import flatten, image_by_image
from jaxcnn.models import VGG, ResNet, VGGBlock
from jaxcnn.ops import conv2d, cpu, map_images, materialize, max_pool, relu
from jaxcnn.ops.cpu import limits, probe
from jaxcnn.ops.cpu.limits import Limits
from jaxcnn.train import create_train_state, train_step

EDGES = np.array([-np.inf, -2.5, -0.0, 0.0, 1e-40, 3.0, np.inf, np.nan])
on_cpu_with_onednn = pytest.mark.skipif(
    not probe.available(), reason="without oneDNN XLA orders and fuses otherwise"
)


def derivatives(function, x, direction):
    """Return the value, the gradient, and both along a direction, all under jit."""

    def value_and_gradient(x):
        y, vjp = jax.vjp(function, x)
        return y, vjp(jnp.cos(y))

    return jax.jit(partial(jax.jvp, value_and_gradient))((x,), (direction,))


def assert_equal(actual, expected):
    def compare(a, b):
        np.testing.assert_array_equal(np.asarray(a, np.float64), np.asarray(b, np.float64))

    jax.tree.map(compare, actual, expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_materialize_changes_nothing(dtype):
    with jax.enable_x64(dtype == "float64"):
        x, direction = jnp.asarray(EDGES, dtype), jnp.arange(8).astype(dtype)
        assert_equal(derivatives(materialize, x, direction), derivatives(lambda x: x, x, direction))
        assert materialize(x).dtype == x.dtype


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_relu_is_jaxs(dtype):
    with jax.enable_x64(dtype == "float64"):
        x, direction = jnp.asarray(EDGES, dtype), jnp.arange(8).astype(dtype)
        expected = derivatives(jax.nn.relu, x, direction)
        assert_equal(derivatives(relu, x, direction), expected)
        assert_equal(jax.vmap(relu)(x), jax.nn.relu(x))
        assert relu(x).dtype == x.dtype


class Blocks(nn.Module):
    """Three of VGG's blocks, without its large dense layers."""

    @nn.compact
    def __call__(self, x, train=True):
        return flatten(nn.Sequential([VGGBlock(2, channels) for channels in (16, 32, 64)])(x))


@pytest.mark.slow
@on_cpu_with_onednn
@pytest.mark.parametrize(
    ("model", "replaced", "replacement"),
    [
        (
            ResNet(((2, 64),)),
            "jaxcnn.layers.materialize",
            lambda x, implementation: x,
        ),  # centred maps
        (Blocks(), "jaxcnn.ops.cpu.relu", jax.nn.relu),  # what a ReLU was made of
    ],
    ids=["batch_norm", "relu"],
)
def test_a_step_keeps_no_maps_twice(model, replaced, replacement, monkeypatch):
    optimizer = optax.sgd(0.1)
    state = jax.eval_shape(partial(create_train_state, model, optimizer, (64, 64, 1)))
    batch = jnp.ones((32, 64, 64, 1)), jnp.zeros(32, jnp.int32)

    def temporary_bytes():
        # A function of its own each time: JAX would trace the same one only once.
        step = lambda *args: train_step(*args, model=model, optimizer=optimizer)  # noqa: E731
        program = jax.jit(step, donate_argnums=0).lower(state, *batch)
        return program.compile(cpu.compiler_options()).memory_analysis().temp_size_in_bytes

    once = temporary_bytes()
    monkeypatch.setattr(replaced, replacement)
    assert once < 0.95 * temporary_bytes()


def block(images, kernel):
    """Return what a convolution, a bias and a pooling make of images [N, H, W, C]."""
    y = jnp.tanh(conv2d(images, kernel, padding=1) + 0.1)
    return y.reshape(len(y), -1, 2).max(axis=2)


def by_two(monkeypatch, image_bytes):
    """Let two images of so many bytes be computed at a time."""
    monkeypatch.setattr(limits, "CURRENT", Limits(remat_bytes=2 * image_bytes))


@pytest.mark.slow
@on_cpu_with_onednn
@pytest.mark.parametrize("batch", [1, 2, 7, 12])
@pytest.mark.parametrize("images_at_a_time", [1, 3, 12])
def test_map_images_changes_nothing(batch, images_at_a_time, monkeypatch):
    random = np.random.default_rng(0)
    images, along_images = random.standard_normal((2, batch, 6, 4, 3)).astype(np.float32)
    kernel, along_kernel = random.standard_normal((2, 3, 3, 3, 5)).astype(np.float32)
    largest = 4 * 6 * 4 * 5  # bytes of the convolution's output
    monkeypatch.setattr(limits, "CURRENT", Limits(remat_bytes=images_at_a_time * largest))

    def results(block):
        loss = lambda images, kernel: (block(images, kernel) ** 2).sum()  # noqa: E731
        gradients = jax.grad(loss, argnums=(0, 1))
        along = jax.jvp(gradients, (images, kernel), (along_images, along_kernel))
        ensemble = jax.vmap(block, (None, 0))(images, jnp.stack([kernel, along_kernel]))
        return block(images, kernel), along, ensemble

    def mapped(images, kernel):
        return map_images(partial(block, kernel=kernel), images)

    is_looped = "scan" in str(jax.make_jaxpr(mapped)(images, kernel))
    assert is_looped == (batch > images_at_a_time)
    for actual, expected in zip(
        *map(
            jax.tree.leaves,
            (jax.jit(partial(results, mapped))(), jax.jit(partial(results, block))()),
        ),
        strict=True,
    ):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(actual / scale, expected / scale, rtol=0, atol=1e-5)


def test_as_many_images_at_a_time_as_fit_and_divide_the_batch(monkeypatch):
    def sizes(batch, fit, channels=1):
        seen = []

        def function(images):
            seen.append(len(images))
            return images + 1

        monkeypatch.setattr(limits, "CURRENT", Limits(remat_bytes=int(4 * channels * fit)))
        jax.eval_shape(partial(map_images, function), jnp.ones((batch, 1, 1, channels)))
        return min(seen[1:], default=seen[0]) if batch > 1 and channels <= 4 else min(seen)

    assert [sizes(batch, 6) for batch in (0, 1, 5, 6, 12, 14, 13)] == [0, 1, 5, 6, 6, 2, 1]
    assert sizes(4, 0.1) == 1
    assert sizes(12, 6, channels=5) == 12  # maps of many channels are dear to compute again


def test_map_images_by_xla_takes_the_whole_batch(monkeypatch):
    monkeypatch.setattr(limits, "CURRENT", Limits(remat_bytes=1))
    call = partial(map_images, lambda x: x + 1, implementation="xla")
    assert "scan" not in str(jax.make_jaxpr(call)(jnp.ones((4, 2, 2, 1))))


SMALL_VGG = VGG(arch=((1, 4), (1, 6)), hidden_features=32, dropout_rate=0.0)
MAP_BYTES = 4 * 12 * 9 * 4  # of its first block, from 12 x 9 pixels


def loops(model, variables, images):
    """Return how many loops the model has in training."""
    call = partial(model.apply, train=True)
    return str(jax.make_jaxpr(call)(variables, images)).count("scan[")


@pytest.mark.slow
@on_cpu_with_onednn
def test_vgg_computes_its_first_block_a_few_images_at_a_time(monkeypatch):
    random = np.random.default_rng(0)
    images = random.random((6, 12, 9, 1), np.float32)
    variables = SMALL_VGG.init(jax.random.key(0), images)

    def gradients():
        loss = lambda v: (SMALL_VGG.apply(v, images, train=True) ** 2).sum()  # noqa: E731
        return jax.jit(jax.grad(loss))(variables)

    whole = gradients()
    assert loops(SMALL_VGG, variables, images) == 0
    by_two(monkeypatch, MAP_BYTES)
    chunks = gradients()
    assert loops(SMALL_VGG, variables, images) == 1
    for a, b in zip(*map(jax.tree.leaves, (whole, chunks)), strict=True):
        np.testing.assert_allclose(a / np.abs(b).max(), b / np.abs(b).max(), rtol=0, atol=1e-5)


def test_no_convolution_is_in_a_loop_where_it_would_be_slow(monkeypatch):
    by_two(monkeypatch, MAP_BYTES)
    images = jnp.ones((6, 12, 9, 1))
    variables = SMALL_VGG.init(jax.random.key(0), images)
    assert loops(SMALL_VGG.clone(implementation="xla"), variables, images) == 0
    monkeypatch.setenv("JAXCNN_IMPLEMENTATION", "xla")
    assert loops(SMALL_VGG, variables, images) == 0


@on_cpu_with_onednn
@pytest.mark.parametrize("dtype", ["bfloat16", jnp.bfloat16, jnp.float16])
def test_half_precision_is_float32_within_chunks(dtype, monkeypatch):
    """In the caches it saves nothing; on the whole batch each layer rounds."""
    block = VGGBlock(2, 8)
    images = jnp.asarray(np.random.default_rng(0).random((6, 12, 9, 1), np.float32))
    variables = block.init(jax.random.key(0), images)
    compute = jax.jit(lambda images: block.clone(dtype=dtype).apply(variables, images))
    expected = jax.jit(block.apply)(variables, images).astype(dtype)
    assert (compute(images) != expected).any()
    jax.clear_caches()
    by_two(monkeypatch, 4 * 12 * 9 * 8)
    assert compute(images).dtype == dtype
    # In half precision, XLA would write all of the result anew with each chunk.
    program = compute.lower(images).as_text()
    (loop,) = (line for line in program.splitlines() if "stablehlo.while" in line)
    assert "3x2x6x4x8xf32" in loop
    assert "f16" not in loop
    np.testing.assert_array_equal(*(x.astype(jnp.float32) for x in (compute(images), expected)))


def test_what_is_captured_in_vgg_is_of_the_whole_batch(monkeypatch):
    by_two(monkeypatch, MAP_BYTES)
    images = jnp.ones((6, 12, 9, 1))
    variables = SMALL_VGG.init(jax.random.key(0), images)
    _, captured = SMALL_VGG.apply(variables, images, train=True, capture_intermediates=True)
    maps = captured["intermediates"]["block1"]["conv1"]["__call__"]
    assert [x.shape for x in maps] == [(6, 12, 9, 4)]


class WithDropout(nn.Module):
    """A module that breaks its promise to treat each image by itself."""

    implementation: str | None = None

    @image_by_image
    @nn.compact
    def __call__(self, x):
        return nn.Dropout(0.5, deterministic=False)(x)


def test_randomness_within_image_by_image_is_refused(monkeypatch):
    by_two(monkeypatch, 4)
    rngs = {"dropout": jax.random.key(0)}
    with pytest.raises(Exception, match="dropout"):
        WithDropout().apply({}, jnp.ones((6, 4, 4, 1)), rngs=rngs)


class Convolutions(nn.Module):
    """Four of XLA's convolutions, whose maps take more memory than all else."""

    @nn.compact
    def __call__(self, x, train=True):
        for _ in range(4):
            x = jnp.tanh(nn.Conv(8, (3, 3))(x))
        return nn.Dense(3)(x.mean(axis=(1, 2)))


@pytest.mark.parametrize("suits_loops", [True, False])
def test_accumulating_gradients_takes_the_memory_of_a_part(suits_loops, monkeypatch):
    """In a loop, and where that would be slow, in the same operations one after the other."""
    monkeypatch.setattr("jaxcnn.ops.cpu.memory.suits_loops", lambda *args: suits_loops)
    model, optimizer = Convolutions(), optax.sgd(0.1)
    state = jax.eval_shape(partial(create_train_state, model, optimizer, (32, 32, 1)))
    batch = jnp.ones((16, 32, 32, 1)), jnp.zeros(16, jnp.int32)

    def temporary_bytes(num_parts):
        step = partial(train_step, model=model, optimizer=optimizer)
        step = jax.jit(partial(step, gradient_accumulation_steps=num_parts))
        traced = step.trace(state, *batch)
        lowered, elsewhere = (traced.lower(lowering_platforms=(x,)) for x in ("cpu", "cuda"))
        assert ("stablehlo.while" in lowered.as_text()) == (suits_loops and num_parts > 1)
        assert ("stablehlo.while" in elsewhere.as_text()) == (num_parts > 1)
        return lowered.compile(cpu.compiler_options()).memory_analysis().temp_size_in_bytes

    assert temporary_bytes(4) < 0.4 * temporary_bytes(1)


@pytest.mark.parametrize("suits_loops", [True, False])
def test_scan_is_jaxs(suits_loops, monkeypatch):
    monkeypatch.setattr("jaxcnn.ops.cpu.memory.suits_loops", lambda *args: suits_loops)

    def function(carry, x):
        key, number = x
        y = carry["a"] * number + jax.random.normal(key, (2,))
        return {"a": y, "b": carry["b"] - 1}, (y.sum(), number)

    init = {"a": jnp.array([0.5, jnp.inf]), "b": jnp.zeros(3, jnp.bfloat16)}
    for number in (1.5, jnp.nan):
        xs = jax.random.split(jax.random.key(0), 3), jnp.array([1.0, number, 2.0])
        for call in (cpu.scan, jax.jit(cpu.scan, static_argnums=0)):
            assert_equal(call(function, init, xs), jax.lax.scan(function, init, xs))


SLOW_IN_LOOPS = {
    "flax's convolution": lambda x: nn.Conv(2, (3, 3)).init_with_output(jax.random.key(0), x)[0],
    "groups": lambda x: conv2d(jnp.tile(x, 2), jnp.ones((3, 3, 1, 2)), groups=2),
    "xla": lambda x: conv2d(x, jnp.ones((3, 3, 1, 2)), implementation="xla"),
    "within jit and remat": jax.jit(
        jax.checkpoint(lambda x: conv2d(x, jnp.ones((3, 3, 1, 2)), dilation=2))
    ),
    "large windows": lambda x: conv2d(x, jnp.ones((9, 9, 1, 2))),  # for their gradient
}


@pytest.mark.parametrize("name", SLOW_IN_LOOPS)
def test_xlas_convolutions_do_not_suit_loops(name):
    assert not cpu.suits_loops(SLOW_IN_LOOPS[name], jnp.ones((2, 12, 12, 1)))


def test_others_suit_loops(monkeypatch):
    def function(x):
        return max_pool(relu(conv2d(x, jnp.ones((3, 3, 1, 2)))), 2).reshape(2, -1) @ jnp.ones(50)

    x = jnp.ones((2, 12, 12, 1))
    monkeypatch.setattr(probe, "available", lambda: True)
    assert cpu.suits_loops(function, x)
    assert cpu.suits_loops(jax.grad(lambda x: function(x).sum()), x)
    monkeypatch.setattr(probe, "available", lambda: False)
    assert not cpu.suits_loops(function, x)
