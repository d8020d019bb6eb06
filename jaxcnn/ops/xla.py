"""Convolution, its gradients and pooling as XLA computes them, on every platform."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcnn.ops.geometry import Geometry, Windows

Activation = Callable[[jax.Array], jax.Array]


def is_half(x: jax.Array) -> bool:
    """Return whether an array is in half precision.

    >>> is_half(jnp.ones(2, jnp.bfloat16)), is_half(jnp.ones(2))
    (True, False)
    """
    return x.dtype in (jnp.bfloat16, jnp.float16)


def forward(images: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Return the convolution [N, H', W', O].

    Args:
        images: [N, H, W, I].
        kernel: [kh, kw, I / groups, O], of the same dtype.
        geometry: of the convolution.
    """
    if is_half(images) and geometry.is_product:  # those of `dense`
        y = jnp.dot(images[:, 0, 0], kernel[0, 0], precision=geometry.precision)
        return y[:, None, None]
    return lax.conv_general_dilated(
        images,
        kernel,
        window_strides=geometry.strides,
        padding=[(p, p) for p in geometry.padding],
        rhs_dilation=geometry.dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=geometry.groups,
        precision=geometry.precision,
    )


def forward_sigmoid(
    images: jax.Array, kernel: jax.Array, bias: jax.Array, geometry: Geometry
) -> jax.Array:
    """Return sigmoid(y + bias) [N, H', W', O] of y, `forward`'s result, and bias [O]."""
    return finish(forward(images, kernel, geometry), bias, jax.nn.sigmoid)


def forward_bias(
    images: jax.Array, kernel: jax.Array, bias: jax.Array, geometry: Geometry
) -> jax.Array:
    """Return y + bias [N, H', W', O] of y, `forward`'s result, and bias [O]."""
    return add_bias(forward(images, kernel, geometry), bias)


def finish(y: jax.Array, bias: jax.Array | None, activation: Activation | None) -> jax.Array:
    """Return activation(y + bias) of y [..., O] and bias [O]; None stands for nothing to do."""
    y = y if bias is None else add_bias(y, bias)
    return y if activation is None else activation(y)


def add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
    """Return y [..., O] + bias [O], both of the same dtype."""
    of_each = broadcast_bias(bias, y)
    return (y.astype(of_each.dtype) + of_each).astype(y.dtype) if is_half(y) else y + of_each


def broadcast_bias(bias: jax.Array, y: jax.Array) -> jax.Array:
    """Return a bias [O] in the shape of y [..., O]; half precision in float32.

    The gradient of a bias is a sum over all of y, of which half precision would lose most.
    """
    bias = bias.astype(jnp.float32) if is_half(bias) else bias
    return jnp.broadcast_to(bias, y.shape)  # explicit: rank promotion may be forbidden


def images_gradient(g: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Return the gradient of <forward, g> with respect to the images, [N, H, W, I]."""
    channels = kernel.shape[2] * geometry.groups
    images = jax.ShapeDtypeStruct((g.shape[0], *geometry.image, channels), g.dtype)
    return jax.linear_transpose(lambda x: forward(x, kernel, geometry), images)(g)[0]


def kernel_gradient(images: jax.Array, g: jax.Array, geometry: Geometry) -> jax.Array:
    """Return the gradient of <forward, g> with respect to the kernel, [kh, kw, I / groups, O]."""
    channels = images.shape[3] // geometry.groups
    kernel = jax.ShapeDtypeStruct((*geometry.window, channels, g.shape[3]), g.dtype)
    return jax.linear_transpose(lambda k: forward(images, k, geometry), kernel)(g)[0]


def max_pool(images: jax.Array, windows: Windows) -> jax.Array:
    """Return the maxima [N, H', W', C] of images [N, H, W, C]; padding is below every number."""
    is_float = jnp.issubdtype(images.dtype, jnp.inexact)
    lowest = -jnp.inf if is_float else jnp.iinfo(images.dtype).min
    if windows.dilation != (1, 1):
        return _dilated_max_pool(images, lowest, windows)
    return _reduce_windows(images, lowest, lax.max, windows)


def _dilated_max_pool(images: jax.Array, lowest: float | int, windows: Windows) -> jax.Array:
    """Return the maxima by slices: JAX has no gradient for windows with gaps."""
    x = jnp.pad(images, ((0, 0), *windows.pads, (0, 0)), constant_values=lowest)
    (kh, kw), (d, e), (s, t) = windows.size, windows.dilation, windows.strides
    rows, columns = (n - 1 for n in windows.output)
    pixels = (
        x[:, a : a + s * rows + 1 : s, b : b + t * columns + 1 : t]
        for a in range(0, d * kh, d)
        for b in range(0, e * kw, e)
    )
    return functools.reduce(_larger, pixels)


def _larger(x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the larger of each two numbers, or NaN; of equal ones x has the whole gradient."""
    return jnp.where((y > x) | (y != y), y, x)


def sum_pool(images: jax.Array, windows: Windows) -> jax.Array:
    """Return the sums [N, H', W', C] of images [N, H, W, C]; padding is zero."""
    return _reduce_windows(images, 0.0, lax.add, windows)


def _reduce_windows(
    images: jax.Array, initial: float | int, reduce: Callable, windows: Windows
) -> jax.Array:
    return lax.reduce_window(
        images,
        np.array(initial, images.dtype),  # a constant: only then does JAX know the derivative
        reduce,
        window_dimensions=(1, *windows.size, 1),
        window_strides=(1, *windows.strides, 1),
        padding=((0, 0), *windows.pads, (0, 0)),
        window_dilation=(1, *windows.dilation, 1),
    )
