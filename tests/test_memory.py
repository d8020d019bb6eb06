"""What is kept and what is computed again: the same values and derivatives, in less memory."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxcnn.layers import flatten, relu
from jaxcnn.models import VGG, VGGBlock, create_model
from jaxcnn.ops import conv2d, memory, onednn
from jaxcnn.ops.memory import materialize, remat_in_chunks
from jaxcnn.train import create_train_state, train_step
from jaxcnn.train.parallel import compiler_options

EDGES = np.array([-np.inf, -2.5, -0.0, 0.0, 1e-40, 3.0, np.inf, np.nan])
on_cpu_with_onednn = pytest.mark.skipif(
    not onednn.available(), reason="without oneDNN XLA orders and fuses otherwise"
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


@on_cpu_with_onednn
@pytest.mark.parametrize(
    ("model", "replaced", "replacement"),
    [
        (create_model("resnet18"), "jaxcnn.layers.materialize", lambda x: x),  # centred maps
        (Blocks(), "jaxcnn.models.vgg.relu", jax.nn.relu),  # what a ReLU was made of
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
        return program.compile(compiler_options("cpu")).memory_analysis().temp_size_in_bytes

    once = temporary_bytes()
    monkeypatch.setattr(replaced, replacement)
    assert once < 0.95 * temporary_bytes()


def block(images, kernel):
    """Return what a convolution, a bias and a pooling make of images [N, H, W, C]."""
    y = jnp.tanh(conv2d(images, kernel, padding=1) + 0.1)
    return y.reshape(len(y), -1, 2).max(axis=2)


@pytest.mark.parametrize("batch", [1, 2, 7, 12])
@pytest.mark.parametrize("image_bytes", [1, 3 << 20, 9 << 20])
def test_by_chunks_changes_nothing(batch, image_bytes):
    random = np.random.default_rng(0)
    images, along_images = random.standard_normal((2, batch, 6, 4, 3)).astype(np.float32)
    kernel, along_kernel = random.standard_normal((2, 3, 3, 3, 5)).astype(np.float32)

    def results(block):
        loss = lambda images, kernel: (block(images, kernel) ** 2).sum()  # noqa: E731
        gradients = jax.grad(loss, argnums=(0, 1))
        along = jax.jvp(gradients, (images, kernel), (along_images, along_kernel))
        ensemble = jax.vmap(block, (None, 0))(images, jnp.stack([kernel, along_kernel]))
        return block(images, kernel), along, ensemble

    def in_chunks(images, kernel):
        return remat_in_chunks(partial(block, kernel=kernel), images, image_bytes)

    for actual, expected in zip(
        *map(jax.tree.leaves, (jax.jit(partial(results, in_chunks))(), results(block))), strict=True
    ):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(actual / scale, expected / scale, rtol=0, atol=1e-5)


def test_by_chunks_goes_by_as_many_as_fit_and_divide_the_batch():
    def sizes(batch, image_bytes):
        seen = []

        def function(chunk):
            seen.append(len(chunk))
            return chunk

        jax.jit(partial(remat_in_chunks, function, image_bytes=image_bytes))(jnp.ones((batch, 1)))
        return min(seen)

    fits = memory._CHUNK_BYTES // 6
    assert [sizes(batch, fits) for batch in (0, 1, 5, 6, 12, 14, 13)] == [0, 1, 5, 6, 6, 2, 1]
    assert sizes(4, 10 * memory._CHUNK_BYTES) == 1


SMALL_VGG = VGG(arch=((1, 4), (1, 6)), dropout_rate=0.0)


def loops(model, variables, images):
    """Return how many loops the model has in training."""
    call = partial(model.apply, train=True)
    return str(jax.make_jaxpr(call)(variables, images)).count("scan[")


@on_cpu_with_onednn
def test_vgg_trains_its_first_block_in_chunks_to_the_same_gradients(monkeypatch):
    random = np.random.default_rng(0)
    images = random.random((6, 12, 9, 1), np.float32)
    variables = SMALL_VGG.init(jax.random.key(0), images)

    def gradients():
        loss = lambda v: (SMALL_VGG.apply(v, images, train=True) ** 2).sum()  # noqa: E731
        return jax.jit(jax.grad(loss))(variables)

    whole = gradients()
    assert loops(SMALL_VGG, variables, images) == 0
    monkeypatch.setattr(memory, "_CHUNK_BYTES", 2 * 12 * 9 * 4 * 4)
    chunks = gradients()
    assert loops(SMALL_VGG, variables, images) == 1
    for a, b in zip(*map(jax.tree.leaves, (whole, chunks)), strict=True):
        np.testing.assert_allclose(a / np.abs(b).max(), b / np.abs(b).max(), rtol=0, atol=1e-5)


def test_no_convolution_is_in_a_loop_where_it_would_be_slow(monkeypatch):
    monkeypatch.setattr(memory, "_CHUNK_BYTES", 1)
    images = jnp.ones((6, 12, 9, 1))
    variables = SMALL_VGG.init(jax.random.key(0), images)
    assert loops(SMALL_VGG.clone(dtype=jnp.bfloat16), variables, images) == 0
    monkeypatch.setenv("JAXCNN_IMPLEMENTATION", "xla")
    assert loops(SMALL_VGG, variables, images) == 0


def test_what_is_captured_in_vgg_is_of_the_whole_batch(monkeypatch):
    monkeypatch.setattr(memory, "_CHUNK_BYTES", 1)
    images = jnp.ones((6, 12, 9, 1))
    variables = SMALL_VGG.init(jax.random.key(0), images)
    _, captured = SMALL_VGG.apply(variables, images, train=True, capture_intermediates=True)
    maps = captured["intermediates"]["block1"]["conv1"]["__call__"]
    assert [x.shape for x in maps] == [(6, 12, 9, 4)]
