"""Layers and blocks: parameters, the notebook's learned kernel, references, jit, vmap, pmap."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import references
from jaxcnn.layers import Conv, Conv2D, Dense
from jaxcnn.models import Residual, VGGBlock


def test_conv2d_parameters_are_the_notebooks():
    variables = Conv2D(kernel_size=(30, 40)).init(jax.random.key(0), jnp.ones((50, 50)))
    kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
    assert kernel.shape == (30, 40)
    assert bias.tolist() == [0]
    assert 0 <= kernel.min() < 0.01
    assert 0.99 < kernel.max() < 1
    assert abs(float(kernel.mean()) - 0.5) < 0.03


def test_conv2d_adds_its_bias():
    params = {"kernel": jnp.ones((1, 2)), "bias": jnp.array([10.0])}
    assert Conv2D((1, 2)).apply({"params": params}, jnp.ones((1, 3))).tolist() == [[12, 12]]


def test_notebook_kernel_learned_from_data():
    x = jnp.ones((6, 8)).at[:, 2:6].set(0)
    y = jnp.zeros((6, 7)).at[:, 1].set(1).at[:, 5].set(-1)
    layer = Conv(features=1, kernel_size=(1, 2), use_bias=False)
    images, targets = x[None, :, :, None], y[None, :, :, None]
    variables = layer.init(jax.random.key(0), images)
    loss_fn = jax.jit(jax.value_and_grad(lambda v: ((layer.apply(v, images) - targets) ** 2).sum()))
    losses = []
    for _ in range(10):
        loss, grads = loss_fn(variables)
        losses.append(float(loss))
        variables = jax.tree.map(lambda p, g: p - jnp.float32(3e-2) * g, variables, grads)
    assert losses == sorted(losses, reverse=True)
    np.testing.assert_allclose(variables["params"]["kernel"].ravel(), [1, -1], atol=0.15)


@pytest.mark.parametrize("kernel_size", [1, (3, 2), 5])
@pytest.mark.parametrize("strides", [1, (2, 3)])
@pytest.mark.parametrize("padding", [0, (1, 2)])
def test_conv_matches_the_reference(kernel_size, strides, padding):
    images = np.random.default_rng(0).standard_normal((2, 7, 9, 3)).astype(np.float32)
    layer = Conv(4, kernel_size, strides, padding)
    variables = layer.init(jax.random.key(0), images)
    params = {**variables["params"], "bias": jnp.arange(4.0)}
    as_pair = lambda v: (v, v) if isinstance(v, int) else v  # noqa: E731
    expected = references.conv2d(
        images, np.asarray(params["kernel"]), as_pair(strides), as_pair(padding)
    ) + np.arange(4)
    actual = layer.apply({"params": params}, images)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_conv_is_xavier_uniform():
    layer = Conv(features=64, kernel_size=5)
    kernel = layer.init(jax.random.key(0), jnp.ones((1, 8, 8, 32)))["params"]["kernel"]
    bound = np.sqrt(6 / (5 * 5 * 32 + 5 * 5 * 64))  # sqrt(6 / (fan_in + fan_out))
    assert 0.99 * bound < float(jnp.abs(kernel).max()) <= bound
    assert abs(float(kernel.std()) - bound / np.sqrt(3)) < 0.01 * bound


def test_conv_computes_in_its_dtype_and_keeps_float32_parameters():
    layer = Conv(features=2, kernel_size=3, dtype=jnp.bfloat16)
    y, variables = layer.init_with_output(jax.random.key(0), jnp.ones((1, 4, 4, 1)))
    assert y.dtype == jnp.bfloat16
    assert variables["params"]["kernel"].dtype == jnp.float32


LAYERS = {  # layer, shape of its input
    "Conv2D": (Conv2D((2, 3)), (5, 7)),
    "Conv": (Conv(4, (3, 2), strides=(2, 1), padding=1), (2, 7, 5, 3)),
    "Dense": (Dense(4), (2, 5)),
    "VGGBlock": (VGGBlock(1, 4), (2, 7, 5, 3)),
    "Residual": (Residual(3), (2, 5, 3, 3)),
}


def value_and_gradients(layer, variables, x):
    y, vjp = jax.vjp(layer.apply, variables, x)
    return y, vjp(y)


def assert_close(actual, expected, dtype):
    """Compare two trees, each array relative to its largest value."""

    def compare(a, b):
        assert a.dtype == b.dtype == dtype
        scale = max(np.abs(b).max(), 1e-3)
        bound = {"float32": 1e-5, "float64": 1e-10}[dtype]
        np.testing.assert_allclose(a / scale, b / scale, rtol=0, atol=bound)

    jax.tree.map(compare, jax.device_get(actual), jax.device_get(expected))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", LAYERS)
def test_jit_vmap_and_pmap_agree_with_the_plain_call(name, dtype):
    layer, shape = LAYERS[name]
    random = np.random.default_rng(0)
    template = jax.eval_shape(layer.init, jax.random.key(0), jnp.zeros(shape))
    call = functools.partial(value_and_gradients, layer)
    with jax.enable_x64(dtype == "float64"):
        variables = jax.tree.map(
            lambda x: jnp.array(random.uniform(0.5, 1.5, x.shape), dtype), template
        )
        xs = random.standard_normal((3, *shape)).astype(dtype)
        plain = jax.tree.map(lambda *x: np.stack(x), *(call(variables, x) for x in xs))
        for mapped in (jax.jit(jax.vmap(call, (None, 0))), jax.pmap(call, in_axes=(None, 0))):
            assert_close(mapped(variables, xs), plain, dtype)
