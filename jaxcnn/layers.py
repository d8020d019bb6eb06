"""Linen modules around `jaxcnn.ops`: the book's from-scratch layer and the models' layers.

The models' layers start as d2l's do: weights are Xavier uniform (d2l's `init_cnn`), biases are
uniform in ±1/sqrt(fan_in), as PyTorch draws them (`init_cnn` leaves them alone).
"""

import contextlib
import dataclasses
import functools
import importlib
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from jaxcnn.ops import avg_pool, conv2d, corr2d, dense, map_images, materialize, max_pool, relu
from jaxcnn.ops.sharding import on_explicit_mesh
from jaxcnn.ops.sizes import IntOrPair, as_pair

__all__ = [
    "BatchNorm",
    "CanPickle",
    "Conv",
    "Conv2D",
    "Dense",
    "Dropout",
    "Recomputed",
    "at_least_float32",
    "avg_pool",
    "flatten",
    "global_avg_pool",
    "global_max_pool",
    "image_by_image",
    "max_pool",
    "relu",
]

DROPOUT_OF_BATCH = "dropout_of_batch"  # a key that all devices have alike; see `Dropout`

_is_mapped: ContextVar[bool] = ContextVar("within the function of map_images", default=False)
_weights: ContextVar[jax.Array | None] = ContextVar("weights of the examples", default=None)
_kernel_init = nn.initializers.xavier_uniform()


def check_floating(layer: nn.Module, x: jax.Array) -> None:
    """Refuse pixels that nobody has scaled, which promotion would take as they are.

    Not at `init`, which asks for their shape alone.
    """
    if not (layer.is_initializing() or jnp.issubdtype(x.dtype, jnp.floating)):
        name = " ".join(filter(None, (type(layer).__name__, layer.name)))
        raise ValueError(
            f"{name} takes floating point, got {x.dtype} {list(x.shape)}; models take images in "
            "[0, 1], which jaxcnn.data.preprocess makes of uint8"
        )


def _bias_init(fan_in: int) -> nn.initializers.Initializer:
    bound = 1 / math.sqrt(fan_in)

    def init(key: jax.Array, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class CanPickle(nn.Module):
    """A module that `pickle` and `copy` take with one of JAX's own functions in a field.

    Python pickles a function as its name. It refuses those of `jax.jit`, such as `jax.nn.sigmoid`,
    and copies them, which makes others of them. Here a function that can be imported is its name.

    >>> import pickle
    >>> pickle.loads(pickle.dumps(Dense(3, activation=nn.sigmoid))).activation is nn.sigmoid
    True
    """

    def __reduce__(self) -> tuple[Callable, tuple]:
        """Return what makes this module again; unbound, as every module outside of `apply` is."""
        fields = {field.name for field in dataclasses.fields(self)} - {"parent"}
        values = {name: _as_reference(getattr(self, name)) for name in fields}
        return _from_references, (type(self), values)


class _Reference(NamedTuple):
    """Where to import a function from."""

    module: str
    name: str


def _as_reference(value: Any) -> Any:
    where = _Reference(getattr(value, "__module__", ""), getattr(value, "__qualname__", ""))
    is_there = getattr(sys.modules.get(where.module), where.name, None) is value
    return where if is_there and hasattr(value, "__wrapped__") else value


def _from_references(module: type[nn.Module], values: dict[str, Any]) -> nn.Module:
    def resolve(value: Any) -> Any:
        is_reference = isinstance(value, _Reference)
        return getattr(importlib.import_module(value.module), value.name) if is_reference else value

    return module(**{name: resolve(value) for name, value in values.items()})


class Conv2D(nn.Module):
    """The book's from-scratch layer: one kernel, one bias, one image.

    Maps [H, W] to [H - kh + 1, W - kw + 1]. Parameters: `kernel` [kh, kw], uniform in [0, 1), and
    `bias` [1], zero. Source: d2l 7.2.2.

    Attributes:
        kernel_size: (kh, kw) in pixels, or one number for both.

    >>> layer = Conv2D(kernel_size=(1, 2))
    >>> layer.init_with_output(jax.random.key(0), jnp.ones((6, 8)))[0].shape
    (6, 7)
    """

    kernel_size: IntOrPair

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Cross-correlate x [H, W] with the kernel and add the bias."""
        shape, dtype = as_pair(self.kernel_size, "kernel_size"), jnp.float32
        kernel = self.param("kernel", nn.initializers.uniform(1.0), shape, dtype)
        bias = self.param("bias", nn.initializers.zeros, (1,), dtype)
        return corr2d(x, kernel) + bias[0]


class Conv(CanPickle):
    """Convolution over a batch of images, with PyTorch's explicit padding.

    Maps [N, H, W, I] to [N, H', W', features]; see `jaxcnn.ops.conv2d` for sizes and errors.
    Parameters: `kernel` [kh, kw, I / groups, features], Xavier uniform, and `bias` [features],
    uniform in ±1/sqrt(kh kw I / groups). Source: d2l 7.3, 7.4 and 7.6 (`nn.Conv2d` with
    `init_cnn`).

    Attributes:
        features: output channels.
        kernel_size: pixels, one number or (height, width).
        strides: pixels from one output to the next.
        padding: zeros added on each side, or 'same' or 'valid'.
        dilation: pixels from one element of the kernel to the next.
        groups: of channels; each group of features sees its own.
        use_bias: whether to add a bias per output channel.
        activation: of each number of the output; None for none.
        dtype: of the computation and the output; unless given, what the input and the float32
            parameters promote to.
        implementation: 'auto', 'xla' or None, as for `conv2d`.

    >>> layer = Conv(features=6, kernel_size=5, padding=2)
    >>> layer.init_with_output(jax.random.key(0), jnp.ones((1, 28, 28, 1)))[0].shape
    (1, 28, 28, 6)
    """

    features: int
    kernel_size: IntOrPair
    strides: IntOrPair = 1
    padding: IntOrPair | str = 0
    dilation: IntOrPair = 1
    groups: int = 1
    use_bias: bool = True
    activation: Callable[[jax.Array], jax.Array] | None = None
    dtype: Any = None
    implementation: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Convolve images [N, H, W, I] to [N, H', W', features]."""
        check_floating(self, images)
        if self.groups < 1 or images.shape[-1] % self.groups or self.features % self.groups:
            raise ValueError(
                f"groups={self.groups} must divide the {images.shape[-1]} channels of the images "
                f"and the {self.features} of the output"
            )
        channels = images.shape[-1] // self.groups
        shape = (*as_pair(self.kernel_size, "kernel_size"), channels, self.features)
        kernel = self.param("kernel", _kernel_init, shape, jnp.float32)
        bias = None
        if self.use_bias:
            bias = self.param("bias", _bias_init(math.prod(shape[:3])), (self.features,))
        images, kernel, bias = nn.dtypes.promote_dtype(images, kernel, bias, dtype=self.dtype)
        return conv2d(
            images,
            kernel,
            bias,
            strides=self.strides,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            activation=self.activation,
            implementation=self.implementation,
        )


class Dense(CanPickle):
    """Fully connected layer: [..., I] to [..., features].

    Parameters: `kernel` [I, features], Xavier uniform, and `bias` [features], uniform in
    ±1/sqrt(I). Source: d2l 7.6 (`nn.Linear` with `init_cnn`).

    Attributes:
        features: outputs.
        activation: of each output; None for none.
        dtype: of the computation and the output; unless given, what the input and the float32
            parameters promote to.
        implementation: 'auto', 'xla' or None, as for `conv2d`.

    >>> layer = Dense(features=10)
    >>> layer.init_with_output(jax.random.key(0), jnp.ones((2, 84)))[0].shape
    (2, 10)
    """

    features: int
    activation: Callable[[jax.Array], jax.Array] | None = None
    dtype: Any = None
    implementation: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Multiply x [..., I] by the kernel, add the bias and apply the activation."""
        check_floating(self, x)
        fan_in = x.shape[-1]
        kernel = self.param("kernel", _kernel_init, (fan_in, self.features), jnp.float32)
        bias = self.param("bias", _bias_init(fan_in), (self.features,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return dense(
            x, kernel, bias, activation=self.activation, implementation=self.implementation
        )


class Dropout(nn.Module):
    """Dropout with the masks of Flax's in 32-bit mode, on any number of devices those of one.

    For that, devices that share a batch have a common key: 'dropout', or 'dropout_of_batch' if both
    are given. Each draws the mask of the whole batch and takes the rows of its own examples.

    Attributes:
        rate: share of the numbers that are set to 0; the rest are scaled up.
        deterministic: whether to return them as they are, as in evaluation.
        axis_name: mapped axis whose devices share the batch; None under plain `jit`.

    >>> layer = Dropout(rate=0.5, deterministic=False)
    >>> layer.apply({}, jnp.ones(6), rngs={"dropout": jax.random.key(0)}).tolist()
    [0.0, 2.0, 2.0, 0.0, 0.0, 0.0]
    """

    rate: float
    deterministic: bool
    axis_name: str | None = None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Drop some of the numbers of x [N, ...]."""
        if self.deterministic or self.rate == 0:
            return x
        is_shared = self.axis_name is not None and self.has_rng(DROPOUT_OF_BATCH)
        key = self.make_rng(DROPOUT_OF_BATCH if is_shared else "dropout")

        def drop(x: jax.Array, key: jax.Array) -> jax.Array:
            if self.rate == 1:
                return jnp.zeros_like(x)
            return jnp.where(self._mask(key, x.shape), x / (1 - self.rate), jnp.zeros_like(x))

        return on_explicit_mesh(drop, like=lambda x, key: x)(x, key)

    def _mask(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Return which numbers stay, of the device's own examples."""
        stays = jnp.float32(1 - self.rate)  # whose type is that of the numbers that are drawn
        if self.axis_name is None or self.is_initializing():
            return jax.random.bernoulli(key, stays, shape)
        length = shape[0]
        num_devices = lax.psum(1, self.axis_name)
        whole = jax.random.bernoulli(key, stays, (num_devices * length, *shape[1:]))
        return lax.dynamic_slice_in_dim(whole, length * lax.axis_index(self.axis_name), length)


class BatchNorm(nn.Module):
    """Batch normalization of each channel over all other axes: [N, ..., C] to the same shape.

    Maps x to (x - mean) / sqrt(var + epsilon) * scale + bias. Parameters: `scale` [C], one, and
    `bias` [C], zero. State, in the collection `batch_stats`: the running averages `mean` [C] and
    `var` [C] (biased). Names and numbers are those of `flax.linen.BatchNorm`, whose gradient takes
    more passes over memory: with it, a step of ResNet18 takes 5 % longer on CPU.

    Attributes:
        use_running_average: normalize by the running averages (evaluation), not by the batch
            (training, where the averages are updated).
        momentum: weight of the old running average; PyTorch's momentum is one minus this.
        epsilon: added to the variance.
        dtype: of the output (that of x and the parameters together unless given); statistics and
            parameters are float32, and the computation at least that.
        axis_name: mapped axis whose devices share the batch; None under plain `jit`.
        implementation: 'xla' leaves to XLA what stays in memory; 'auto' or None as for `conv2d`.

    Source: Ioffe and Szegedy, Batch normalization, 2015.

    >>> layer = BatchNorm(use_running_average=False)
    >>> y, variables = layer.init_with_output(jax.random.key(0), jnp.array([[1.0], [3.0]]))
    >>> y.round(4).tolist(), sorted(variables["batch_stats"])
    ([[-1.0], [1.0]], ['mean', 'var'])
    """

    use_running_average: bool
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = None
    axis_name: str | None = None
    implementation: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalize x [N, ..., C]."""
        check_floating(self, x)
        channels = x.shape[-1:]
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        scale = self.param("scale", nn.initializers.ones, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        dtype = self.dtype or jnp.result_type(x, scale, bias)
        x = at_least_float32(x)
        per_channel = (1,) * (x.ndim - 1) + channels

        def like_x(a: jax.Array) -> jax.Array:
            return a.reshape(per_channel).astype(x.dtype)

        scale, bias, old_mean, old_var = map(like_x, (scale, bias, mean.value, var.value))
        if self.use_running_average:
            factor = scale * lax.rsqrt(old_var + self.epsilon)
            return ((x - old_mean) * factor + bias).astype(dtype)
        x, shift, x_mean, x_var = self._batch_moments(x)
        if not self.is_initializing():
            for average, old, new in ((mean, old_mean, shift + x_mean), (var, old_var, x_var)):
                moved = self.momentum * old + (1 - self.momentum) * new
                average.value = moved.reshape(channels).astype(average.value.dtype)
        factor = scale * lax.rsqrt(x_var + self.epsilon)
        return (x * factor + (bias - x_mean * factor)).astype(dtype)

    def _batch_moments(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Return x minus a shift, the shift, and mean and variance of what is left.

        One pass over x finds both moments. E[x^2] - E[x]^2 would lose digits where the mean is
        large, so the shift is near it: the mean of one pixel in the middle.
        """
        middle = x[:, *(slice(n // 2, n // 2 + 1) for n in x.shape[1:-1])]
        (shift,) = lax.stop_gradient(self._means(middle, over=[0]))
        x = materialize(x - shift, self.implementation)
        mean, mean_square = self._means(x, jnp.square(x), over=range(x.ndim - 1))
        return x, shift, mean, jnp.maximum(mean_square - jnp.square(mean), 0)

    def _means(self, *arrays: jax.Array, over: Iterable[int]) -> Any:
        """Return means over axes of the whole batch, of which each device has its part."""
        axes, weights = tuple(over), _weights.get()
        is_alone = self.axis_name is None or self.is_initializing()
        if weights is None:
            means = [x.mean(axes, keepdims=True) for x in arrays]
            return means if is_alone else lax.pmean(means, self.axis_name)
        x = arrays[0]
        weights = weights.reshape(-1, *(1,) * (x.ndim - 1)).astype(x.dtype)
        count = weights.sum() * math.prod(x.shape[axis] for axis in axes if axis)
        sums = [(x * weights).sum(axes, keepdims=True) for x in arrays]
        if not is_alone:
            sums, count = lax.psum((sums, count), self.axis_name)
        return [each / count for each in sums]


@contextlib.contextmanager
def weigh_examples(weights: jax.Array | None) -> Iterator[None]:
    """Within this, BatchNorm takes its statistics of examples by their weights.

    Args:
        weights: [N], of the examples that models are called with: 1 for one, 0 for padding; None if
            there is no padding.

    >>> layer = BatchNorm(use_running_average=False)
    >>> variables = layer.init(jax.random.key(0), jnp.ones((1, 1)))
    >>> with weigh_examples(jnp.array([1.0, 1.0, 0.0])):
    ...     x = jnp.array([[1.0], [3.0], [9.0]])
    ...     layer.apply(variables, x, mutable=["batch_stats"])[0].round(4).tolist()
    [[-1.0], [1.0], [7.0]]
    """
    token = _weights.set(weights)
    try:
        yield
    finally:
        _weights.reset(token)


def image_by_image(call: Callable[[Any, jax.Array], jax.Array]) -> Callable:
    """Declare that a module's call treats each image by itself; a decorator for `__call__`.

    Such a call may be computed a few images at a time (see `jaxcnn.ops.map_images`), with the same
    result up to rounding. It may hold parameters, but no BatchNorm in training and no dropout. What
    a caller captures (`capture_intermediates`) is that of the whole batch.

    Args:
        call: from (module, images [N, H, W, C]) to [N, ...]; the module has a field
            `implementation`. Where that is faster, its field `dtype`, if any, is set to float32.
    """

    @functools.wraps(call)
    def wrapped(module: Any, images: jax.Array) -> jax.Array:
        is_captured = module.is_mutable_collection("intermediates")
        if _is_mapped.get() or module.is_initializing() or is_captured:
            return call(module, images)
        unbound, variables = module.clone(parent=None, name=None), module.variables

        def function(images: jax.Array, module: nn.Module = unbound) -> Any:
            token = _is_mapped.set(True)
            try:
                return module.apply(variables, images)
            finally:
                _is_mapped.reset(token)

        def widened(images: jax.Array) -> Any:
            return function(images, unbound.clone(dtype=jnp.float32))

        has_dtype = "dtype" in {field.name for field in dataclasses.fields(module)}
        dtype = module.dtype if has_dtype else None
        is_half = dtype is not None and jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
        return map_images(function, images, module.implementation, widened if is_half else None)

    return wrapped


class Recomputed(functools.partial):
    """A block as a function that keeps nothing but its input for the backward pass.

    What is computed within is computed again when the gradients need it, dropout and all, with the
    same result up to rounding. BatchNorm's running averages move once.

    Made as a `functools.partial` of a module within another's `__call__`, with further arguments of
    its call, such as `train`. On CPU, XLA notices that the same is computed twice and keeps it
    after all, unless the program is compiled with
    `jaxcnn.ops.cpu.compiler_options(recomputes=True)`, as are runs of a model with a field
    `recompute` that is true.

    Source: Chen et al., Training deep nets with sublinear memory cost, 2016.

    >>> class Model(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x):
    ...         return Recomputed(Conv(4, kernel_size=3, padding=1))(x)
    >>> Model().init_with_output(jax.random.key(0), jnp.ones((1, 8, 8, 3)))[0].shape
    (1, 8, 8, 4)
    """

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return what the block makes of feature maps."""
        args, kwargs = self.args, self.keywords
        return nn.remat(lambda block, x: block(*args, x, **kwargs))(self.func, x)


def flatten(x: jax.Array) -> jax.Array:
    """Make one row of each example: [N, ...] to [N, the product of the rest].

    Images are read row by row, channels last: PyTorch reads them channel by channel.

    >>> flatten(jnp.ones((2, 5, 5, 16))).shape
    (2, 400)
    """
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def at_least_float32(x: jax.Array) -> jax.Array:
    """Return x in float32, or in its own dtype if that is more precise: for logits.

    >>> at_least_float32(jnp.ones(3, jnp.bfloat16)).dtype
    dtype('float32')
    """
    return x if jnp.finfo(x.dtype).bits > 32 else x.astype(jnp.float32)


def global_avg_pool(images: jax.Array) -> jax.Array:
    """Return the mean over each image: [N, H, W, C] to [N, C].

    >>> global_avg_pool(jnp.ones((2, 3, 3, 512))).shape
    (2, 512)
    """
    return images.mean(axis=(1, 2))


@jax.custom_jvp
def global_max_pool(images: jax.Array) -> jax.Array:
    """Return the maximum over each image: [N, H, W, C] to [N, C], floating point.

    The pixels that are the maximum share its gradient equally, as for JAX's own `max`. That finds
    them by comparing each pixel with the maximum, and XLA may compute the pixels once for the one
    and once more for the other, rounded otherwise: none may be equal then, and the gradient is
    infinite. So here a pixel within rounding of the maximum counts as one.

    >>> global_max_pool(jnp.ones((2, 3, 3, 512))).shape
    (2, 512)
    """
    return images.max(axis=(1, 2))


@global_max_pool.defjvp
def _global_max_pool_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    images, maximum = primals[0], global_max_pool(*primals)
    least = maximum - jnp.finfo(maximum.dtype).eps * jnp.abs(maximum)
    are_largest = (images >= least[:, None, None]).astype(images.dtype)
    count = jnp.maximum(are_largest.sum(axis=(1, 2)), 1)  # 0 where it is NaN or plus infinity
    return maximum, (are_largest * tangents[0]).sum(axis=(1, 2)) / count
