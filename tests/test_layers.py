"""Layers and blocks: parameters, d2l's learned kernel, references, jit, vmap, pmap."""

import copy
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import references
from jaxcnn.layers import BatchNorm, Conv, Conv2D, Dense, Dropout, relu
from jaxcnn.models import LeNet, Residual, VGGBlock


def test_conv2d_parameters_are_d2ls():
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


def test_d2l_kernel_learned_from_data():
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


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("activation", [nn.sigmoid, nn.tanh])
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_activation_of_conv_is_that_of_its_output(activation, use_bias, dtype):
    images = np.random.default_rng(0).standard_normal((2, 7, 9, 3)).astype(np.float32)
    conv = functools.partial(Conv, 4, (3, 2), (1, 2), padding=1, use_bias=use_bias, dtype=dtype)
    variables = conv().init(jax.random.key(0), images)

    def results(layer, after):
        y, vjp = jax.vjp(lambda v, x: after(layer.apply(v, x)), variables, images)
        return y, vjp(y)

    actual = results(conv(activation=activation), lambda y: y)
    expected = results(conv(), activation)
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    assert actual[0].dtype == expected[0].dtype
    precision = 1e-5 if dtype is None else 2e-2
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, b = (np.asarray(x, np.float32) for x in (a, b))
        np.testing.assert_allclose(a, b, rtol=0, atol=precision * np.abs(b).max())


@pytest.mark.parametrize("activation", [nn.sigmoid, relu])
def test_activation_of_dense_is_that_of_its_output(activation):
    x = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    variables = Dense(4).init(jax.random.key(0), x)
    actual = Dense(4, activation=activation).apply(variables, x)
    np.testing.assert_array_equal(actual, activation(Dense(4).apply(variables, x)))


@pytest.mark.parametrize(("features", "groups"), [(6, 4), (5, 2), (6, 0), (6, 8)])
def test_groups_that_do_not_divide_the_channels_are_refused(features, groups):
    with pytest.raises(ValueError, match=f"groups={groups} must divide the 4 channels of the imag"):
        Conv(features, 3, groups=groups).init(jax.random.key(0), jnp.zeros((1, 5, 5, 4)))


def test_conv_takes_dilation_groups_and_named_padding():
    images = np.random.default_rng(0).standard_normal((2, 9, 9, 4)).astype(np.float32)
    layer = Conv(6, (3, 2), padding="same", dilation=(1, 2), groups=2)
    y, variables = layer.init_with_output(jax.random.key(0), images)
    kernel, bias = (np.asarray(variables["params"][name]) for name in ("kernel", "bias"))
    assert kernel.shape == (3, 2, 2, 6)
    assert np.abs(bias).max() <= 1 / np.sqrt(3 * 2 * 2)  # the fan-in of a group
    expected = references.conv2d(images, kernel, padding=(1, 1), dilation=(1, 2), groups=2) + bias
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)


LAYERS = {  # layer, shape of its input
    "Conv2D": (Conv2D((2, 3)), (5, 7)),
    "Conv": (Conv(4, (3, 2), strides=(2, 1), padding=1), (2, 7, 5, 3)),
    "Conv, groups": (Conv(4, 3, dilation=2, groups=2), (2, 7, 5, 4)),
    "Dense": (Dense(4, activation=nn.sigmoid), (2, 5)),
    "VGGBlock": (VGGBlock(1, 4), (2, 7, 5, 3)),
    "Residual": (Residual(3), (2, 5, 3, 3)),
    "BatchNorm": (BatchNorm(use_running_average=True), (3, 5, 2)),
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("shape", [(5, 3), (4, 7, 5, 3), (2, 3, 1, 4, 6)])
def test_batch_norm_is_flaxs(shape, train):
    """The same values, averages, gradients, and gradients along a direction, by its own formula."""
    random = np.random.default_rng(0)
    settings = {"use_running_average": not train, "momentum": 0.8, "epsilon": 1e-3}
    layers = (BatchNorm(**settings), nn.BatchNorm(**settings, use_fast_variance=False))
    with (
        jax.enable_x64(True),
        jax.numpy_rank_promotion("allow"),  # Flax's adds [C] to [N, ..., C]
        jax.numpy_dtype_promotion("standard"),
    ):
        x, direction, cotangent = 3 + random.standard_normal((3, *shape))
        template = jax.eval_shape(layers[0].init, jax.random.key(0), x)
        assert template == jax.eval_shape(layers[1].init, jax.random.key(0), x)
        variables = jax.tree.map(lambda v: jnp.array(random.uniform(0.5, 2, v.shape)), template)

        def results(layer):
            call = functools.partial(layer.apply, mutable=["batch_stats"])
            gradients = jax.grad(lambda v, x: (call(v, x)[0] * cotangent).sum(), argnums=(0, 1))
            by_params = lambda v, x: (gradients(v, x)[0]["params"], gradients(v, x)[1])  # noqa: E731
            along = jax.jvp(functools.partial(by_params, variables), (x,), (direction,))
            return call(variables, x), along

        actual, expected = map(results, layers)
    assert_close(actual, expected, "float64")


@pytest.mark.parametrize("dtype", ["uint8", "int32", "bool"])
@pytest.mark.parametrize("name", ["Conv", "Dense", "BatchNorm", "VGGBlock", "Residual"])
def test_layers_take_floating_point_alone(name, dtype):
    """In the compiled program it costs nothing: the check is one of dtypes."""
    layer, shape = LAYERS[name]
    x = jax.ShapeDtypeStruct(shape, dtype)
    variables = jax.eval_shape(layer.init, jax.random.key(0), jnp.zeros(shape))
    message = rf"takes floating point, got {dtype} \[.*jaxcnn.data.preprocess makes of uint8"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(layer.apply, variables, x)
    with jax.numpy_dtype_promotion("standard"):  # as users have it
        if name != "BatchNorm":
            jax.eval_shape(layer.init, jax.random.key(0), x)  # asks for the shape alone
        for accepted in ("bfloat16", "float16", "float32"):
            jax.eval_shape(layer.apply, variables, jax.ShapeDtypeStruct(shape, accepted))


def test_batch_norm_keeps_its_digits_where_the_mean_is_large():
    x = np.random.default_rng(0).standard_normal((64, 9, 7, 2)) + np.array([1e4, -3e3])
    y, _ = BatchNorm(use_running_average=False).init_with_output(
        jax.random.key(0), x.astype(np.float32)
    )
    expected, _, _ = references.batch_norm(x.astype(np.float32).astype(np.float64), 0, 1, True)
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-3)  # x itself has an error of 5e-4


def test_batch_norm_of_a_constant_channel_is_its_bias_and_has_finite_gradients():
    layer = BatchNorm(use_running_average=False)
    x = jnp.full((3, 4, 4, 2), 0.1)
    y, variables = layer.init_with_output(jax.random.key(0), x)
    assert jnp.abs(y).max() < 1e-3
    loss = lambda x: (layer.apply(variables, x, mutable=["batch_stats"])[0] ** 2).sum()  # noqa: E731
    assert jnp.isfinite(jax.grad(loss)(x)).all()


@pytest.mark.parametrize("activation", [nn.sigmoid, nn.relu, jnp.tanh, relu, None])
@pytest.mark.parametrize(
    "layer",
    [functools.partial(Dense, 3), functools.partial(Conv, 3, 3), LeNet],
    ids=["Dense", "Conv", "LeNet"],
)
def test_a_module_is_pickled_and_copied_with_any_function_that_has_a_name(layer, activation):
    module = layer(activation=activation, name="mine", implementation="auto")
    for other in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module), copy.copy(module)):
        assert other == module
        assert other.activation is activation  # which convolution recognises
        assert other.name == "mine"


def test_a_function_without_a_name_cannot_be_pickled():
    module = Dense(3, activation=jax.jit(lambda x: x + 1))
    with pytest.raises((AttributeError, pickle.PicklingError), match="pickle"):
        pickle.dumps(module)


def test_dropout_draws_its_first_mask_outside_of_the_devices():
    layer = Dropout(rate=0.5, deterministic=False, axis_name="batch")
    y, _ = layer.init_with_output({"dropout": jax.random.key(0)}, jnp.ones((4, 3)))
    assert y.shape == (4, 3)
