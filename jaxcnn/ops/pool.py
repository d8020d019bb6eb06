"""Pooling: the book's single-image form and the batched form that the models use."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxcnn.ops.sizes import IntOrPair, as_pair, conv_output_size


def max_pool(
    images: jax.Array, window: IntOrPair, strides: IntOrPair | None = None, padding: IntOrPair = 0
) -> jax.Array:
    """Return the maximum of each window.

    Args:
        images: [N, H, W, C].
        window: pixels, one number or (height, width).
        strides: pixels from one window to the next; as large as the window unless given.
        padding: pixels added on each side, below every number; at most half the window.

    Returns:
        [N, H', W', C] with H' = conv_output_size(H, window, padding, stride), dtype unchanged.

    Raises:
        ValueError: if the rank is not 4, the window does not fit, or the padding exceeds half of
            the window.

    Source: notebook 7.5.2; semantics of PyTorch's `MaxPool2d`.

    >>> x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    >>> max_pool(x, 3, strides=2, padding=1)[0, :, :, 0]
    Array([[ 5.,  7.],
           [13., 15.]], dtype=float32)
    """
    is_float = jnp.issubdtype(images.dtype, jnp.inexact)
    lowest = -jnp.inf if is_float else jnp.iinfo(images.dtype).min
    return _reduce_windows(images, lowest, lax.max, window, strides, padding)


def avg_pool(
    images: jax.Array, window: IntOrPair, strides: IntOrPair | None = None, padding: IntOrPair = 0
) -> jax.Array:
    """Return the mean of each window; padded pixels count as zeros.

    Args:
        images: [N, H, W, C].
        window: pixels, one number or (height, width).
        strides: pixels from one window to the next; as large as the window unless given.
        padding: zeros added on each side; at most half the window.

    Returns:
        [N, H', W', C] with H' = conv_output_size(H, window, padding, stride), in the dtype of the
        input (float32 for integers).

    Raises:
        ValueError: if the rank is not 4, the window does not fit, or the padding exceeds half of
            the window.

    Source: notebook 7.5 and 7.6; semantics of PyTorch's `AvgPool2d`.

    >>> avg_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), 2)[0, :, :, 0]
    Array([[ 2.5,  4.5],
           [10.5, 12.5]], dtype=float32)
    """
    if not jnp.issubdtype(images.dtype, jnp.inexact):
        images = images.astype(jnp.float32)
    height, width = as_pair(window)
    return _reduce_windows(images, 0.0, lax.add, window, strides, padding) / (height * width)


def pool2d(x: ArrayLike, pool_size: IntOrPair, mode: str = "max") -> jax.Array:
    """Pool one image at stride 1, without padding.

    Args:
        x: [H, W].
        pool_size: (ph, pw) in pixels, or one number for both.
        mode: 'max' or 'avg'.

    Returns:
        [H - ph + 1, W - pw + 1].

    Raises:
        ValueError: if the rank is not 2, the mode is unknown or the window does not fit.

    Source: notebook 7.5.1.

    >>> x = jnp.arange(9.0).reshape(3, 3)
    >>> pool2d(x, (2, 2))
    Array([[4., 5.],
           [7., 8.]], dtype=float32)
    >>> pool2d(x, (2, 2), 'avg')
    Array([[2., 3.],
           [5., 6.]], dtype=float32)
    """
    modes = {"max": max_pool, "avg": avg_pool}
    if mode not in modes:
        raise ValueError(f"pool2d takes mode 'max' or 'avg', got {mode!r}")
    x = jnp.asarray(x)
    if x.ndim != 2:
        raise ValueError(f"pool2d takes x [H, W], got {x.shape}")
    return modes[mode](x[None, :, :, None], pool_size, strides=1)[0, :, :, 0]


def _reduce_windows(
    images: jax.Array,
    initial: float | int,
    reduce: Callable,
    window: IntOrPair,
    strides: IntOrPair | None,
    padding: IntOrPair,
) -> jax.Array:
    if images.ndim != 4:
        raise ValueError(f"pooling takes images [N, H, W, C], got {images.shape}")
    window, padding = as_pair(window), as_pair(padding)
    strides = window if strides is None else as_pair(strides)
    for axis in (0, 1):
        if padding[axis] > window[axis] // 2:  # a window could lie on padding alone
            raise ValueError(
                f"padding must be at most half of the pooling window, got padding {padding} and "
                f"window {window}"
            )
        conv_output_size(images.shape[axis + 1], window[axis], padding[axis], strides[axis])
    return lax.reduce_window(
        images,
        np.array(initial, images.dtype),  # a constant: only then does JAX know the derivative
        reduce,
        window_dimensions=(1, *window, 1),
        window_strides=(1, *strides, 1),
        padding=((0, 0), *((p, p) for p in padding), (0, 0)),
    )
