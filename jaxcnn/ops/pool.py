"""Pooling of a batch of images, channels last."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.ops import cpu, xla
from jaxcnn.ops.geometry import Windows
from jaxcnn.ops.sizes import IntOrPair, as_pair, conv_output_size


def max_pool(
    images: jax.Array,
    window: IntOrPair,
    strides: IntOrPair | None = None,
    padding: IntOrPair = 0,
    *,
    dilation: IntOrPair = 1,
    ceil_mode: bool = False,
    implementation: str | None = None,
) -> jax.Array:
    """Return the maximum of each window.

    Args:
        images: [N, H, W, C].
        window: elements, one number or (height, width).
        strides: pixels from one window to the next; as large as the window unless given.
        padding: pixels of minus infinity added on each side; at most half the window.
        dilation: pixels from one element of a window to the next.
        ceil_mode: whether to take a last window that reaches beyond the padding, too.
        implementation: 'auto', 'xla' or None, as for `conv2d`.

    Returns:
        [N, H', W', C] with H' = pool_output_size(H, window, padding, stride, dilation, ceil_mode),
        dtype unchanged.

    Raises:
        ValueError: if the rank is not 4, the window does not fit, the padding exceeds half of the
            window, or the implementation is unknown.

    Source: d2l 7.5.2; semantics of PyTorch's `MaxPool2d`.

    >>> x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    >>> max_pool(x, 3, strides=2, padding=1)[0, :, :, 0]
    Array([[ 5.,  7.],
           [13., 15.]], dtype=float32)
    """
    windows = _check(images, window, strides, padding, dilation, ceil_mode)
    is_auto = cpu.choose_implementation(implementation) != "xla"
    if is_auto and jnp.issubdtype(images.dtype, jnp.floating):
        return cpu.max_pool(images, windows)
    return xla.max_pool(images, windows)


def avg_pool(
    images: jax.Array,
    window: IntOrPair,
    strides: IntOrPair | None = None,
    padding: IntOrPair = 0,
    *,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Return the mean of each window.

    Args:
        images: [N, H, W, C].
        window: pixels, one number or (height, width).
        strides: pixels from one window to the next; as large as the window unless given.
        padding: zeros added on each side; at most half the window.
        ceil_mode: whether to take a last window that reaches beyond the padding, too. What lies
            beyond never counts.
        count_include_pad: whether padded pixels count as zeros, or not at all.
        divisor_override: what to divide each sum by, instead of the number of pixels.
        implementation: 'auto', 'xla' or None, as for `conv2d`.

    Returns:
        [N, H', W', C] with H' = pool_output_size(H, window, padding, stride, 1, ceil_mode), in the
        dtype of the input (float32 for integers).

    Raises:
        ValueError: if the rank is not 4, the window does not fit, the padding exceeds half of the
            window, the divisor is 0, or the implementation is unknown.

    Source: d2l 7.5 and 7.6; semantics of PyTorch's `AvgPool2d`.

    >>> avg_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), 2)[0, :, :, 0]
    Array([[ 2.5,  4.5],
           [10.5, 12.5]], dtype=float32)
    """
    if divisor_override == 0:
        raise ValueError("divisor_override must not be 0; give another number, or None")
    windows = _check(images, window, strides, padding, 1, ceil_mode)
    dtype = images.dtype if jnp.issubdtype(images.dtype, jnp.inexact) else jnp.float32
    # Sums in half precision could overflow, or round each pixel away.
    images = images.astype(np.promote_types(dtype, np.float32))
    is_auto = cpu.choose_implementation(implementation) != "xla"
    sums = cpu.sum_tiles if is_auto and windows.tile_the_image else xla.sum_pool
    total = sums(images, windows)
    if divisor_override is not None:
        return (total / jnp.asarray(divisor_override, total.dtype)).astype(dtype)
    counts = _counts(windows, count_include_pad)
    if counts.min() == counts.max():
        return (total / int(counts[0, 0])).astype(dtype)
    of_pixels = jnp.asarray(counts[None, :, :, None], total.dtype)
    return (total / jnp.broadcast_to(of_pixels, total.shape)).astype(dtype)


def _counts(windows: Windows, count_include_pad: bool) -> np.ndarray:
    """Return how many pixels each window [H', W'] counts."""
    per_axis = []
    for length, size, stride, padding, count in zip(
        windows.image, windows.size, windows.strides, windows.padding, windows.output, strict=True
    ):
        first, last = (-padding, length + padding) if count_include_pad else (0, length)
        starts = np.arange(count) * stride - padding
        per_axis.append(np.minimum(starts + size, last) - np.maximum(starts, first))
    rows, columns = per_axis
    return np.outer(rows, columns)


def _check(
    images: jax.Array,
    window: IntOrPair,
    strides: IntOrPair | None,
    padding: IntOrPair,
    dilation: IntOrPair,
    ceil_mode: bool,
) -> Windows:
    """Check the arguments; return how the windows move over the images."""
    if images.ndim != 4:
        raise ValueError(f"pooling takes images [N, H, W, C], got {images.shape}")
    size, padding = as_pair(window, "window"), as_pair(padding, "padding")
    strides = size if strides is None else as_pair(strides, "strides")
    dilation = as_pair(dilation, "dilation")
    _, height, width, _ = images.shape
    windows = Windows((height, width), size, strides, padding, dilation, ceil_mode)
    if any(p > reach // 2 for p, reach in zip(padding, windows.reach, strict=True)):
        raise ValueError(  # a window could lie on padding alone
            f"padding must be at most half of the pooling window, got padding {padding} and "
            f"window {windows.reach}"
        )
    for axis in (0, 1):
        conv_output_size(
            windows.image[axis], size[axis], padding[axis], strides[axis], dilation[axis]
        )
    return windows
