"""Pooling: the book's single-image form and the batched form that the models use."""

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxcnn.ops.implementation import choose_implementation
from jaxcnn.ops.sizes import IntOrPair, as_pair, conv_output_size


def max_pool(
    images: jax.Array,
    window: IntOrPair,
    strides: IntOrPair | None = None,
    padding: IntOrPair = 0,
    implementation: str | None = None,
) -> jax.Array:
    """Return the maximum of each window.

    Args:
        images: [N, H, W, C].
        window: pixels, one number or (height, width).
        strides: pixels from one window to the next; as large as the window unless given.
        padding: pixels added on each side, below every number; at most half the window.
        implementation: 'auto', 'xla' or None, as for `conv2d`.

    Returns:
        [N, H', W', C] with H' = conv_output_size(H, window, padding, stride), dtype unchanged.

    Raises:
        ValueError: if the rank is not 4, the window does not fit, the padding exceeds half of the
            window, or the implementation is unknown.

    Source: d2l 7.5.2; semantics of PyTorch's `MaxPool2d`.

    >>> x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    >>> max_pool(x, 3, strides=2, padding=1)[0, :, :, 0]
    Array([[ 5.,  7.],
           [13., 15.]], dtype=float32)
    """
    places = _check(images, window, strides, padding)
    is_fast = choose_implementation(implementation) != "xla"
    if is_fast and jnp.issubdtype(images.dtype, jnp.floating):
        return _max_pool(images, places)
    return _xla_max_pool(images, places)


def avg_pool(
    images: jax.Array,
    window: IntOrPair,
    strides: IntOrPair | None = None,
    padding: IntOrPair = 0,
    implementation: str | None = None,
) -> jax.Array:
    """Return the mean of each window; padded pixels count as zeros.

    Args:
        images: [N, H, W, C].
        window: pixels, one number or (height, width).
        strides: pixels from one window to the next; as large as the window unless given.
        padding: zeros added on each side; at most half the window.
        implementation: 'auto', 'xla' or None, as for `conv2d`.

    Returns:
        [N, H', W', C] with H' = conv_output_size(H, window, padding, stride), in the dtype of the
        input (float32 for integers).

    Raises:
        ValueError: if the rank is not 4, the window does not fit, the padding exceeds half of the
            window, or the implementation is unknown.

    Source: d2l 7.5 and 7.6; semantics of PyTorch's `AvgPool2d`.

    >>> avg_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), 2)[0, :, :, 0]
    Array([[ 2.5,  4.5],
           [10.5, 12.5]], dtype=float32)
    """
    if not jnp.issubdtype(images.dtype, jnp.inexact):
        images = images.astype(jnp.float32)
    places = _check(images, window, strides, padding)
    height, width = places.window
    is_fast = choose_implementation(implementation) != "xla"
    if is_fast and places.tile:
        total = _tile_sums(images, places)
    else:
        total = _reduce_windows(images, 0.0, lax.add, places)
    return total / (height * width)


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

    Source: d2l 7.5.1.

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


class _Places(NamedTuple):
    """Where a window goes; pairs are (vertical, horizontal)."""

    window: tuple[int, int]
    strides: tuple[int, int]
    padding: tuple[int, int]

    @property
    def tile(self) -> bool:
        """Whether the windows lie side by side."""
        return self.window == self.strides and self.padding == (0, 0)


TILES_OF_2 = _Places((2, 2), (2, 2), (0, 0))
HALVING = _Places((3, 3), (2, 2), (1, 1))  # of ResNet's stem
_MAX_PIXELS = 16  # of a window; each is a slice of its own to compile


def _check(
    images: jax.Array, window: IntOrPair, strides: IntOrPair | None, padding: IntOrPair
) -> _Places:
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
    return _Places(window, strides, padding)


def _reduce_windows(
    images: jax.Array, initial: float | int, reduce: Callable, places: _Places
) -> jax.Array:
    return lax.reduce_window(
        images,
        np.array(initial, images.dtype),  # a constant: only then does JAX know the derivative
        reduce,
        window_dimensions=(1, *places.window, 1),
        window_strides=(1, *places.strides, 1),
        padding=((0, 0), *((p, p) for p in places.padding), (0, 0)),
    )


def _xla_max_pool(images: jax.Array, places: _Places) -> jax.Array:
    """Return the maxima; XLA's derivative is slow on CPU."""
    is_float = jnp.issubdtype(images.dtype, jnp.inexact)
    lowest = -jnp.inf if is_float else jnp.iinfo(images.dtype).min
    return _reduce_windows(images, lowest, lax.max, places)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _max_pool(images: jax.Array, places: _Places) -> jax.Array:
    """Return the maxima; on CPU, their derivative is that of the pixels they were taken from."""
    if not _is_halving(images, places):
        return _xla_max_pool(images, places)
    return lax.platform_dependent(
        images, cpu=_halving, default=partial(_xla_max_pool, places=places)
    )


@_max_pool.defjvp
def _max_pool_jvp(
    places: _Places, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (images,), (tangent,) = primals, tangents

    def of_xla(images: jax.Array, tangent: jax.Array) -> jax.Array:
        return jax.jvp(partial(_xla_max_pool, places=places), (images,), (tangent,))[1]

    of_cpu: Callable[[jax.Array, jax.Array], jax.Array] = of_xla
    if places.tile:
        of_cpu = partial(_tile_tangent, places=places)
    elif _is_halving(images, places):
        of_cpu = _halving_tangent
    derivative = lax.platform_dependent(images, tangent, cpu=of_cpu, default=of_xla)
    return _max_pool(images, places), derivative


def _tiles(images: jax.Array, places: _Places) -> jax.Array:
    """Cut images [N, H, W, C] into windows side by side: [N, H', kh, W', kw, C]."""
    n, height, width, channels = images.shape
    kh, kw = places.window
    rows, columns = height // kh, width // kw
    return images[:, : rows * kh, : columns * kw].reshape(n, rows, kh, columns, kw, channels)


def _pixels(images: jax.Array, places: _Places) -> list[jax.Array]:
    """Return the pixels of windows side by side, row by row, each as [N, H', W', C]."""
    kh, kw = places.window
    rows, columns = images.shape[1] // kh * kh, images.shape[2] // kw * kw
    return [images[:, a:rows:kh, b:columns:kw] for a in range(kh) for b in range(kw)]


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _tile_sums(images: jax.Array, places: _Places) -> jax.Array:
    """Return the sums of windows side by side, small ones by whole arrays: faster on CPU."""
    if math.prod(places.window) > _MAX_PIXELS:
        return _tiles(images, places).sum(axis=(2, 4))
    images_or_float32 = images.astype(np.promote_types(images.dtype, np.float32))
    return reduce(jnp.add, _pixels(images_or_float32, places)).astype(images.dtype)


@_tile_sums.defjvp
def _tile_sums_jvp(
    places: _Places, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Sum the tangent as cut tiles, whose transpose is one broadcast, not many paddings."""
    return _tile_sums(*primals, places), _tiles(*tangents, places).sum(axis=(2, 4))


def _first_maximum(pixels: Sequence[jax.Array]) -> jax.Array:
    """Return which of several arrays has the maximum, float32, and of equal ones the first, as XLA.

    The arrays are compared with each other, never with a maximum that was computed elsewhere: XLA
    may compute both anew in another place and round them differently.
    """
    best, square = pixels[0], jnp.zeros(pixels[0].shape, jnp.float32)
    for i, pixel in enumerate(pixels[1:], start=1):
        square = jnp.where(pixel > best, jnp.float32(i * i), square)
        best = jnp.maximum(pixel, best)
    # XLA would compute something so cheap anew at each of its uses, pixel by pixel of the window.
    # It counts a square root, which is exact here, as expensive, and keeps its result.
    return lax.sqrt(square)


def _tile_tangent(images: jax.Array, tangent: jax.Array, places: _Places) -> jax.Array:
    """Return the tangents of the maxima of windows side by side; linear in `tangent`."""
    kh, kw = places.window
    index = _first_maximum(_pixels(images, places))
    number = jnp.arange(kh * kw, dtype=index.dtype).reshape(1, 1, kh, 1, kw, 1)
    chosen = index[:, :, None, :, None] == number
    return jnp.where(chosen, _tiles(tangent, places), 0).sum(axis=(2, 4))


def _is_halving(images: jax.Array, places: _Places) -> bool:
    """Return whether these are 3 x 3 windows at stride 2 with padding 1 on images of even size."""
    return places == HALVING and images.shape[1] % 2 == images.shape[2] % 2 == 0


def _halving(images: jax.Array) -> jax.Array:
    """Return the maxima of such windows, by whole arrays."""
    kinds = {(a, b): images[:, a::2, b::2] for a in (0, 1) for b in (0, 1)}
    return reduce(jnp.maximum, _halving_pixels(kinds, -jnp.inf))


def _halving_tangent(images: jax.Array, tangent: jax.Array) -> jax.Array:
    """Return the tangents of the maxima of such windows; linear in `tangent`.

    The windows overlap, but among the pixels of even rows and columns each has one place in them,
    and so on for the other three kinds. A window's rows are an odd one, an even one and an odd one.
    """
    # Image by image, or XLA would find the maximum anew for each of the nine pixels.
    index = lax.map(_halving_index, lax.stop_gradient(images))
    tiles = _tiles(tangent, TILES_OF_2)  # cut so, the transpose is an interleaving
    kinds = {(a, b): tiles[:, :, a, :, b] for a in (0, 1) for b in (0, 1)}
    pixels = enumerate(_halving_pixels(kinds, 0))
    return sum(
        (jnp.where(index == i, pixel, 0) for i, pixel in pixels), start=jnp.zeros((), tangent.dtype)
    )


def _halving_index(image: jax.Array) -> jax.Array:
    """Return which of its nine pixels is each such window's maximum: [H, W, C] to [H', W', C]."""
    height, width, _ = image.shape
    x = jnp.pad(image, ((1, 0), (1, 0), (0, 0)), constant_values=-jnp.inf)
    rows = [x[a : a + height - 1 : 2] for a in range(3)]
    return _first_maximum([row[:, b : b + width - 1 : 2] for row in rows for b in range(3)])


def _halving_pixels(kinds: dict[tuple[int, int], jax.Array], outside: float) -> list[jax.Array]:
    """Return the nine pixels of each such window, row by row, each as [N, H / 2, W / 2, C]."""
    pixels = []
    for row, up in ((1, 1), (0, 0), (1, 0)):
        for column, left in ((1, 1), (0, 0), (1, 0)):
            pixel = kinds[row, column]
            shift = ((0, 0, 0), (up, -up, 0), (left, -left, 0), (0, 0, 0))
            pixels.append(lax.pad(pixel, jnp.asarray(outside, pixel.dtype), shift))
    return pixels
