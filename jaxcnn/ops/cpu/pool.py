"""Pooling by whole arrays, where XLA is slow: sums on CPU, gradients of maxima on GPUs, too."""

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn.ops import xla
from jaxcnn.ops.cpu import limits
from jaxcnn.ops.cpu.half import in_float32
from jaxcnn.ops.cpu.programs import cpu_or_default
from jaxcnn.ops.geometry import Windows
from jaxcnn.ops.sharding import on_explicit_mesh

_MAX_PIXELS = 16  # of a window; each is a slice of its own to compile


def max_pool(images: jax.Array, windows: Windows) -> jax.Array:
    """Return the maxima [N, H', W', C] of floating-point images [N, H, W, C].

    On CPU and CUDA, the derivative is that of the pixels that the maxima are taken from.
    """
    like = partial(xla.max_pool, windows=windows)
    return on_explicit_mesh(partial(_max_pool, windows=windows), like)(images)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _max_pool(images: jax.Array, windows: Windows) -> jax.Array:
    if _halves(windows):
        of_cpu: Callable[..., jax.Array] = _halve
    elif _is_narrow(images, windows):
        of_cpu = partial(_tile_maximum, windows=windows)
    else:
        return xla.max_pool(images, windows)
    return lax.platform_dependent(
        images, cpu=in_float32(of_cpu), default=partial(xla.max_pool, windows=windows)
    )


@_max_pool.defjvp
def _max_pool_jvp(
    windows: Windows, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (images,), (tangent,) = primals, tangents

    def of_xla(images: jax.Array, tangent: jax.Array) -> jax.Array:
        return jax.jvp(partial(xla.max_pool, windows=windows), (images,), (tangent,))[1]

    ours: Callable[[jax.Array, jax.Array], jax.Array] = of_xla
    if windows.tile_the_image and math.prod(windows.size) <= _MAX_PIXELS:
        ours = partial(_tile_tangent, windows=windows)
    elif _halves(windows):
        ours = _halving_tangent
    derivative = lax.platform_dependent(
        images, tangent, cpu=in_float32(ours), cuda=ours, default=of_xla
    )
    return _max_pool(images, windows), derivative


def sum_tiles(images: jax.Array, windows: Windows) -> jax.Array:
    """Return the sums of windows that tile the images, small ones by whole arrays.

    Args:
        images: [N, H, W, C] in float32 at least, or complex.
        windows: with `tile_the_image`.

    Returns:
        [N, H', W', C].
    """
    like = partial(xla.sum_pool, windows=windows)
    return on_explicit_mesh(partial(_sum_tiles, windows=windows), like)(images)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _sum_tiles(images: jax.Array, windows: Windows) -> jax.Array:
    def of_cpu(images: jax.Array) -> jax.Array:
        if math.prod(windows.size) > _MAX_PIXELS:
            return _tiles(images, windows.size).sum(axis=(2, 4))
        return reduce(jnp.add, _pixels(images, windows.size))

    of_xla = partial(xla.sum_pool, windows=windows)
    return lax.platform_dependent(images, cpu=of_cpu, default=of_xla)


@_sum_tiles.defjvp
def _sum_tiles_jvp(
    windows: Windows, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    # The tangent's tiles are cut out at once: the transpose is one broadcast, not many paddings.
    return _sum_tiles(*primals, windows), _tiles(*tangents, windows.size).sum(axis=(2, 4))


def _tiles(images: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Cut images [N, H, W, C] into windows side by side: [N, H', kh, W', kw, C]."""
    n, height, width, channels = images.shape
    kh, kw = size
    rows, columns = height // kh, width // kw
    return images[:, : rows * kh, : columns * kw].reshape(n, rows, kh, columns, kw, channels)


def _pixels(images: jax.Array, size: tuple[int, int]) -> list[jax.Array]:
    """Return the pixels of windows side by side, row by row, each as [N, H', W', C]."""
    kh, kw = size
    rows, columns = images.shape[1] // kh * kh, images.shape[2] // kw * kw
    return [images[:, a:rows:kh, b:columns:kw] for a in range(kh) for b in range(kw)]


def _first_maximum(pixels: Sequence[jax.Array]) -> jax.Array:
    """Return the index of the largest of several arrays, as float32; of equal ones the first.

    NaN counts as the largest, as it is the maximum.

    The arrays are compared with each other, never with a maximum that was computed elsewhere: XLA
    may compute both again in another place and round them differently.
    """
    best, square = pixels[0], jnp.zeros(pixels[0].shape, jnp.float32)
    for i, pixel in enumerate(pixels[1:], start=1):
        is_larger = (pixel > best) | (jnp.isnan(pixel) & ~jnp.isnan(best))
        square = jnp.where(is_larger, jnp.float32(i * i), square)
        best = jnp.maximum(pixel, best)
    # XLA would fuse something so cheap into each of its consumers, pixel by pixel of the window.
    # It counts a square root, which is exact here, as expensive, and keeps its result.
    return lax.sqrt(square)


def _is_narrow(images: jax.Array, windows: Windows) -> bool:
    """Return whether XLA's own maximum would leave most of a vector register empty."""
    is_small = math.prod(windows.size) <= _MAX_PIXELS
    return windows.tile_the_image and is_small and images.shape[-1] < limits.CURRENT.lanes


def _tile_maximum(images: jax.Array, windows: Windows) -> jax.Array:
    """Return the maxima of windows side by side, by whole arrays."""
    return reduce(jnp.maximum, _pixels(images, windows.size))


def _tile_tangent(images: jax.Array, tangent: jax.Array, windows: Windows) -> jax.Array:
    """Return the tangents of the maxima of windows side by side; linear in `tangent`."""
    kh, kw = windows.size
    index = _first_maximum(_pixels(images, windows.size))
    number = jnp.arange(kh * kw, dtype=index.dtype).reshape(1, 1, kh, 1, kw, 1)
    chosen = index[:, :, None, :, None] == number
    return jnp.where(chosen, _tiles(tangent, windows.size), 0).sum(axis=(2, 4))


def _halves(windows: Windows) -> bool:
    """Return whether these are 3 x 3 windows at stride 2 with padding 1 on images of even size."""
    halving = Windows(windows.image, (3, 3), (2, 2), (1, 1))  # as in ResNet's stem
    return windows == halving and windows.image[0] % 2 == windows.image[1] % 2 == 0


def _halve(images: jax.Array) -> jax.Array:
    """Return the maxima of such windows, by whole arrays."""
    kinds = {(a, b): images[:, a::2, b::2] for a in (0, 1) for b in (0, 1)}
    return reduce(jnp.maximum, _halving_pixels(kinds, -jnp.inf))


def _halving_tangent(images: jax.Array, tangent: jax.Array) -> jax.Array:
    """Return the tangents of the maxima of such windows; linear in `tangent`.

    The windows overlap, but among the pixels of even rows and columns each has one place in them,
    and so on for the other three kinds. A window's rows are an odd one, an even one and an odd one.
    """
    # Image by image, or XLA would find the maximum anew for each of the nine pixels.
    index = cpu_or_default(
        lax.stop_gradient(images),
        cpu=partial(lax.map, _halving_index),
        default=jax.vmap(_halving_index),
    )
    tiles = _tiles(tangent, (2, 2))  # cut so, the transpose is an interleaving
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
