"""The passes of a convolution on CPU, float32: what is faster there than XLA's own, and when.

| pass            | how                                               | otherwise                |
|-----------------|---------------------------------------------------|--------------------------|
| forward         | oneDNN; Winograd's products for 3 x 3 at stride 1 | XLA's                    |
|                 | from 128 channels on, by rows from 64 on in small |                          |
|                 | images; banded for one channel of smaller ones    |                          |
| forward_sigmoid | as forward, with the sigmoid in oneDNN's own pass | XLA's sigmoid            |
| images_gradient | as forward, of g with the kernel turned; at       | XLA's                    |
|                 | strides above 1, once for each kind of pixel;     |                          |
|                 | banded for few channels of small images           |                          |
| kernel_gradient | matrix products (oneDNN's where it is there):     | XLA's: large windows,    |
|                 | banded for small images, by pixel for one         | small work where oneDNN  |
|                 | channel, Winograd's for 3 x 3 at stride 1 from 16 | is not there             |
|                 | channels on, of shifted images and shifted g for  |                          |
|                 | others from 32 on, by row for the rest            |                          |

XLA's kernel gradient is a convolution whose kernel is as large as the image, which is where its
time goes: on two Zen 5 cores it runs at a fifth to a half of the rate of the same work as matrix
products. `benchmarks/conv.py` has the figures, shape by shape.

The signatures are those of `jaxcnn.ops.primitives`, which these functions serve. All are deterministic.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn.ops import onednn, winograd
from jaxcnn.ops.geometry import (
    Geometry,
    then_sigmoid,
    xla_forward,
    xla_images_gradient,
    xla_kernel_gradient,
)
from jaxcnn.ops.products import product, transposed_product

_CHUNK_BYTES = 4 << 20  # of rearranged images: large enough for a fast product, small for caches
_SMALL = 50_000_000  # multiply-adds; below, without oneDNN, XLA's own kernel gradient is faster
_BANDED = 1_000_000  # multiply-adds of an image; below, as in LeNet, one banded product is fastest
_LANES = 16  # channels that fill a vector register
_MAX_SPREAD = 96  # numbers of a block of g to spread; with fewer, spreading costs more
_FEW_CHANNELS = 32  # below, laying both operands out costs more than the larger product gains
_LARGE_CHUNK = 8 << 20  # where the product of a chunk is large too, or an image takes little
_WINOGRAD = 16  # channels and features; below, the sums cost more than the products saved
_WINOGRAD_TILES = 64  # in all; below, the sums after the product do
_WINOGRAD_CONV = 128 * 128  # channels times features, for convolutions: oneDNN has a call for them
_WINOGRAD_ROWS = 64 * 64  # the same, for those by tiles of rows
_ROWS_BYTES = 1 << 20  # of an image in those; with more, a core's cache does not hold them
_LARGEST_WINDOW = 64  # pixels; beyond, the rearranged images would take much memory


def forward(
    images: jax.Array,
    kernel: jax.Array,
    geometry: Geometry,
    sigmoid_bias: jax.Array | None = None,
) -> jax.Array:
    """Return the convolution [N, H', W', O] of images [N, H, W, I] and kernel [kh, kw, I, O].

    From one channel of small images, one banded product, with pixels rearranged as the kernel
    gradient needs them too: a program with both does so once. If `sigmoid_bias` [O] is given,
    return sigmoid(the convolution + it) instead, without another pass over memory if by oneDNN.
    """
    channels, features = kernel.shape[2:]
    if _is_empty(images, kernel):
        return then_sigmoid(xla_forward(images, kernel, geometry), sigmoid_bias)
    if channels == 1 and _banded_work(channels, features, geometry) < _BANDED:
        banded = partial(
            _banded_forward, kernel=kernel, geometry=geometry, sigmoid_bias=sigmoid_bias
        )
        image_bytes = _banded_bytes(channels, features, geometry)
        return _map_over_chunks(banded, images, image_bytes, _LARGE_CHUNK)
    if not onednn.available():
        return then_sigmoid(xla_forward(images, kernel, geometry), sigmoid_bias)
    (p, q) = geometry.padding
    padding = ((p, p), (q, q))
    return _conv(images, kernel, geometry.strides, padding, sigmoid_bias=sigmoid_bias)


def forward_sigmoid(
    images: jax.Array, kernel: jax.Array, bias: jax.Array, geometry: Geometry
) -> jax.Array:
    """Return sigmoid(the convolution + bias [O]); see `forward`."""
    return forward(images, kernel, geometry, sigmoid_bias=bias)


def _conv(
    images: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, int],
    padding: tuple[tuple[int, int], tuple[int, int]],
    transpose_kernel: bool = False,
    sigmoid_bias: jax.Array | None = None,
) -> jax.Array:
    """Convolve by Winograd's products where they are faster, or else as `onednn.conv`."""
    size = [
        length + sum(pads) - window + 1
        for length, pads, window in zip(images.shape[1:3], padding, kernel.shape, strict=False)
    ]
    channels, features = kernel.shape[2:]
    suits = _suits_winograd(kernel.shape[:2], strides, len(images), size)
    by_rows = 4 * winograd.cut(size[0]).size * size[1] * (channels + features)
    conv: Callable
    if suits and channels * features >= _WINOGRAD_CONV:
        points, tiles = winograd.counts(size)
        image_bytes = 4 * points * tiles * (channels + features)
        values = winograd.kernel_values(kernel, size)
        conv = partial(
            winograd.conv,
            values=values,
            padding=(padding[0][0], padding[1][0]),
            size=size,
            transpose_kernel=transpose_kernel,
        )
    elif suits and channels * features >= _WINOGRAD_ROWS and by_rows <= _ROWS_BYTES:
        image_bytes = by_rows
        kernel = kernel.swapaxes(2, 3) if transpose_kernel else kernel
        values = winograd.kernel_values_of_rows(kernel, size[0])
        conv = partial(winograd.conv_of_rows, values=values, padding=padding, height=size[0])
    else:
        return onednn.conv(
            images, kernel, strides, padding, transpose_kernel, sigmoid_bias=sigmoid_bias
        )
    chunk_bytes = max(_LARGE_CHUNK, 4 * values.size)  # they are read for each chunk
    return then_sigmoid(_map_over_chunks(conv, images, image_bytes, chunk_bytes), sigmoid_bias)


def images_gradient(g: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Return the gradient [N, H, W, I] by the images: each g [N, H', W', O] spread by the kernel.

    dx[s i + a - p, t j + b - q] = sum over a, b of g[i, j] k[a, b]^T

    At stride 1 that is a convolution of g with the kernel turned. At stride s, every s-th row of dx
    meets every s-th row of the kernel only: one such convolution for each kind of pixel. A few
    channels of small images would leave most of a vector register empty; there, one product of
    whole rows is faster.
    """
    if _is_empty(g, kernel) or not onednn.available():
        return xla_images_gradient(g, kernel, geometry)
    (height, width), (s, t) = geometry.image, geometry.strides
    channels, features = kernel.shape[2:]
    if channels < _LANES and _banded_work(channels, features, geometry) < _BANDED:
        return _banded_images_gradient(g, kernel, geometry)
    kinds = [[_every_stride(g, kernel, geometry, (i, j)) for j in range(t)] for i in range(s)]
    if s == t == 1:
        return kinds[0][0]
    dx = jnp.stack([jnp.stack(row, axis=3) for row in kinds], axis=2)  # [N, H / s, s, W / t, t, I]
    dx = dx.reshape(len(g), s * dx.shape[1], t * dx.shape[3], kernel.shape[2])
    return dx[:, :height, :width]


def _banded_images_gradient(g: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Return the gradient by the images: blocks of a row of g times a band, then spread."""
    (s, t), (p, q) = geometry.strides, geometry.padding
    (batch, height, width, features), channels = g.shape, kernel.shape[2]
    rows, columns = geometry.image[0] + 2 * p, geometry.image[1] + 2 * q
    block = _block(width, features, _MAX_SPREAD)
    band = _band(kernel, block, geometry)
    products = product(
        g.reshape(-1, block * features), band.reshape(-1, block * features), transpose_b=True
    ).reshape(batch, height, width // block, band.shape[0], -1)
    below = rows - s * (height - 1) - 1
    spread = []
    for i, a in itertools.product(*map(range, products.shape[2:4])):
        left = t * block * i
        right = columns - left - band.shape[1]
        sides = (left * channels, right * channels, 0)
        zero = jnp.zeros((), g.dtype)
        spread.append(
            lax.pad(products[:, :, i, a], zero, ((0, 0, 0), (a, below - a, s - 1), sides))
        )
    dx = sum(spread[1:], start=spread[0]).reshape(batch, rows, columns, channels)
    return dx[:, p : rows - p, q : columns - q]


def _every_stride(
    g: jax.Array, kernel: jax.Array, geometry: Geometry, start: tuple[int, int]
) -> jax.Array:
    """Return dx[:, start[0] :: s, start[1] :: t] of the gradient dx by the images.

    Where the strides do not divide the image, dx has some more rows and columns here.
    """
    sizes = [-(-n // s) for n, s in zip(geometry.image, geometry.strides, strict=True)]
    taps, padding = [], []
    for axis in (0, 1):
        s = geometry.strides[axis]
        # Row `start + s u` meets g's row `first + u - m` by the kernel's row `a + s m`.
        first, a = divmod(start[axis] + geometry.padding[axis], s)
        count = len(range(a, geometry.window[axis], s))
        low = count - 1 - first
        taps.append(slice(a, None, s))
        padding.append((low, sizes[axis] - g.shape[axis + 1] + count - 1 - low))
    turned = kernel[tuple(taps)][::-1, ::-1]
    crop = [(min(low, 0), min(high, 0), 0) for low, high in padding]
    met = lax.pad(g, jnp.zeros((), g.dtype), [(0, 0, 0), *crop, (0, 0, 0)])
    if _is_empty(turned, met):
        return jnp.zeros((len(g), *sizes, kernel.shape[2]), g.dtype)
    rows, columns = ((max(low, 0), max(high, 0)) for low, high in padding)
    return _conv(met, turned, (1, 1), (rows, columns), transpose_kernel=True)


def kernel_gradient(images: jax.Array, g: jax.Array, geometry: Geometry) -> jax.Array:
    """Return the gradient [kh, kw, I, O] by the kernel: products of g and shifted images.

    dk[a, b] = sum over n, i, j of x[n, s i + a - p, t j + b - q] g[n, i, j]^T
    """
    (kh, kw), p = geometry.window, geometry.padding[0]
    (_, height, width, features), channels = g.shape, images.shape[3]
    padded_height = geometry.image[0] + 2 * p
    small = g.size * kh * kw * channels < _SMALL
    if _is_empty(images, g) or kh * kw > _LARGEST_WINDOW or (small and not onednn.available()):
        return xla_kernel_gradient(images, g, geometry)
    if _banded_work(channels, features, geometry) < _BANDED:
        image_bytes = _banded_bytes(channels, features, geometry)
        total = _sum_over_chunks(_banded_product, images, g, geometry, image_bytes, _LARGE_CHUNK)
        t = geometry.strides[1]
        diagonals = [block[:, :, t * j : t * j + kw] for j, block in enumerate(total)]
        return sum(diagonals[1:], start=diagonals[0]).transpose(1, 2, 3, 0)
    if channels == 1:
        image_bytes = 4 * kh * kw * height * width
        total = _sum_over_chunks(_products_by_pixel, images, g, geometry, image_bytes)
        return total.reshape(kh, kw, 1, features)
    if min(channels, features) >= _WINOGRAD and _suits_winograd(
        geometry.window, geometry.strides, len(images), g.shape[1:3]
    ):
        points, tiles = winograd.counts(g.shape[1:3])
        image_bytes = 4 * points * tiles * (channels + features)
        chunk_bytes = max(_LARGE_CHUNK, 4 * points * channels * features)  # as is their sum
        total = _sum_over_chunks(winograd.products, images, g, geometry, image_bytes, chunk_bytes)
        return winograd.kernel_gradient(total, g)
    if geometry.strides[0] == 1 and min(channels, features) >= _FEW_CHANNELS:
        image_bytes = 4 * geometry.image[0] * width * (kw * channels + kh * features)
        total = _sum_over_chunks(_product_of_shifted, images, g, geometry, image_bytes)
        return total.reshape(kw, channels, kh, features).transpose(2, 0, 1, 3)
    image_bytes = 4 * kw * channels * padded_height * width
    total = _sum_over_chunks(_products_by_row, images, g, geometry, image_bytes)
    return total.reshape(kh, kw, channels, features)


def _suits_winograd(
    window: tuple[int, ...], strides: tuple[int, int], batch: int, size: Sequence[int]
) -> bool:
    """Return whether Winograd's products may be the fastest for a batch of outputs of `size`."""
    return (
        window == (winograd.WINDOW, winograd.WINDOW)
        and strides == (1, 1)
        and batch * winograd.counts(size)[1] >= _WINOGRAD_TILES
    )


def _banded_work(channels: int, features: int, geometry: Geometry) -> int:
    """Return the multiply-adds for an image where whole rows are multiplied."""
    height, width = geometry.output
    columns = geometry.image[1] + 2 * geometry.padding[1]
    return geometry.window[0] * height * width * features * columns * channels


def _banded_bytes(channels: int, features: int, geometry: Geometry) -> int:
    """Return the bytes of an image's `_banded_pixels`."""
    height, width = geometry.output
    block = _block(width, features)
    columns = _columns(block, geometry)
    return 4 * height * (width // block) * geometry.window[0] * columns * channels


def _banded_pixels(images: jax.Array, features: int, geometry: Geometry) -> jax.Array:
    """Return [N, H', W' / B, kh, columns, I]: the pixels that each block of the output meets.

    A block is B pixels of a row. Multiplied with whole blocks, of use is only the band of pixels
    that the kernel meets, but for few channels that is faster than what would save the rest.
    """
    (kh, _), (s, t), (p, q) = geometry.window, geometry.strides, geometry.padding
    height, width = geometry.output
    block = _block(width, features)
    columns = _columns(block, geometry)
    x = jnp.pad(images, ((0, 0), (p, p), (q, q), (0, 0)))
    rows = [x[:, a : a + s * (height - 1) + 1 : s] for a in range(kh)]
    blocks = [
        jnp.stack([row[:, :, left : left + columns] for row in rows], axis=2)
        for left in range(0, t * width, t * block)
    ]
    return jnp.stack(blocks, axis=2)


def _banded_forward(
    images: jax.Array,
    kernel: jax.Array,
    geometry: Geometry,
    sigmoid_bias: jax.Array | None,
) -> jax.Array:
    """Return what `forward` does, by one product of the pixels that each block of it meets."""
    features = kernel.shape[3]
    block = _block(geometry.output[1], features)
    pixels = _banded_pixels(images, features, geometry)
    band = _band(kernel, block, geometry)
    y = product(
        pixels.reshape(-1, math.prod(pixels.shape[3:])),
        band.reshape(-1, band.shape[3]),
        sigmoid_bias=None if sigmoid_bias is None else jnp.tile(sigmoid_bias, block),
    )
    return y.reshape(len(images), *geometry.output, features)


def _band(kernel: jax.Array, block: int, geometry: Geometry) -> jax.Array:
    """Return [kh, columns, I, B O]: the kernel where each of B pixels in a row meets images."""
    kw, t = geometry.window[1], geometry.strides[1]
    columns = _columns(block, geometry)
    zero = jnp.zeros((), kernel.dtype)
    sides = [(t * j, columns - kw - t * j, 0) for j in range(block)]
    places = [lax.pad(kernel, zero, ((0, 0, 0), side, (0, 0, 0), (0, 0, 0))) for side in sides]
    return jnp.concatenate(places, axis=3)


def _banded_product(images: jax.Array, g: jax.Array, geometry: Geometry) -> jax.Array:
    """Return [B, O, kh, columns, I]: the pixels of each block of g times all that they meet."""
    features = g.shape[3]
    block = _block(geometry.output[1], features)
    pixels = _banded_pixels(images, features, geometry)
    of_blocks = g.reshape(-1, block * features)
    products = transposed_product(of_blocks, pixels.reshape(len(of_blocks), -1))
    return products.reshape(block, features, *pixels.shape[3:])


def _block(width: int, features: int, most: int = 2 * _LANES) -> int:
    """Return how many pixels of a row of the output to multiply at a time; they divide the row.

    With their features they are at most so many numbers: more would waste more products.
    """
    return max(
        n for n in range(1, width + 1) if width % n == 0 and (n == 1 or n * features <= most)
    )


def _columns(block: int, geometry: Geometry) -> int:
    """Return how many columns of images a block of so many pixels meets."""
    return geometry.strides[1] * (block - 1) + geometry.window[1]


def _product_of_shifted(images: jax.Array, g: jax.Array, geometry: Geometry) -> jax.Array:
    """Return the kernel gradient at vertical stride 1 as [kw I, kh O], by one product.

    dk[a, b] = sum over n, h, j of x[n, h, t j + b - q] g[n, h + p - a, j]^T

    The kw columns of images that meet a column of g are laid side by side, and so are the kh rows
    of g that meet a row of images: [kw I, pixels] times [pixels, kh O].
    """
    (kh, kw), (_, t), (p, q) = geometry.window, geometry.strides, geometry.padding
    (_, rows, _, channels), (_, height, width, features) = images.shape, g.shape
    x = jnp.pad(images, ((0, 0), (0, 0), (q, q), (0, 0)))
    x = jnp.concatenate([x[:, :, b : b + t * (width - 1) + 1 : t] for b in range(kw)], axis=3)
    shifts = (a - p for a in range(kh))
    zero = jnp.zeros((), g.dtype)
    moved = [
        lax.pad(g, zero, ((0, 0, 0), (shift, rows - height - shift, 0), (0, 0, 0), (0, 0, 0)))
        for shift in shifts
    ]
    by_pixel = jnp.concatenate(moved, axis=3).reshape(-1, kh * features)
    return transposed_product(x.reshape(-1, kw * channels), by_pixel)


def _products_by_row(images: jax.Array, g: jax.Array, geometry: Geometry) -> jax.Array:
    """Return the kernel gradient as [kh, kw I, O], by one product for each row of the kernel.

    The kw pixels that it meets are laid side by side first: [kw I, pixels] times [pixels, O].
    """
    (kh, kw), (s, t), (p, q) = geometry.window, geometry.strides, geometry.padding
    _, height, width, features = g.shape
    x = jnp.pad(images, ((0, 0), (p, p), (q, q), (0, 0)))
    x = jnp.concatenate([x[:, :, b : b + t * (width - 1) + 1 : t] for b in range(kw)], axis=3)
    rows = [x[:, a : a + s * (height - 1) + 1 : s].reshape(-1, x.shape[3]) for a in range(kh)]
    by_pixel = g.reshape(-1, features)
    return jnp.stack([transposed_product(row, by_pixel) for row in rows])


def _products_by_pixel(images: jax.Array, g: jax.Array, geometry: Geometry) -> jax.Array:
    """Return the kernel gradient for one channel as [kh kw, O], by one product for each image.

    One value for each pixel of the window, laid side by side, would leave most of a vector register
    empty, so the pixels run along it: [kh kw, pixels] times [pixels, O].
    """
    (kh, kw), (s, t), (p, q) = geometry.window, geometry.strides, geometry.padding
    batch, height, width, features = g.shape
    x = jnp.pad(images[..., 0], ((0, 0), (p, p), (q, q)))
    rows, columns = s * (height - 1) + 1, t * (width - 1) + 1
    shifted = [x[:, a : a + rows : s, b : b + columns : t] for a in range(kh) for b in range(kw)]
    by_pixel = jnp.stack(shifted, axis=1).reshape(batch, kh * kw, height * width)
    return product(by_pixel, g.reshape(batch, height * width, features)).sum(axis=0)


def _sum_over_chunks(
    products: Callable,
    images: jax.Array,
    g: jax.Array,
    geometry: Geometry,
    image_bytes: int,
    chunk_bytes: int = _CHUNK_BYTES,
) -> jax.Array:
    """Return the sum of `products` over chunks of the batch of about `chunk_bytes` each.

    The chunks are cut out of the whole within the loop: given to the loop cut up, XLA would compute
    the images once more in that shape.
    """
    batch = len(images)
    chunks = _chunks(batch, image_bytes, chunk_bytes)
    if chunks == 1:
        return products(images, g, geometry)
    size = batch // chunks

    def of_chunk(i: jax.Array | int) -> jax.Array:
        parts = (lax.dynamic_slice_in_dim(x, i * size, size) for x in (images, g))
        return products(*parts, geometry)

    start = jnp.zeros(jax.eval_shape(of_chunk, 0).shape, g.dtype)
    total, _ = lax.scan(lambda sum, i: (sum + of_chunk(i), None), start, jnp.arange(chunks))
    rest = chunks * size
    return total if rest == batch else total + products(images[rest:], g[rest:], geometry)


def _map_over_chunks(
    function: Callable, images: jax.Array, image_bytes: int, chunk_bytes: int
) -> jax.Array:
    """Return what `function` makes of images, chunk by chunk of about `chunk_bytes` each."""
    chunks = _chunks(len(images), image_bytes, chunk_bytes)
    if chunks == 1:
        return function(images)
    size = len(images) // chunks

    def of_chunk(_, i):
        return None, function(lax.dynamic_slice_in_dim(images, i * size, size))

    _, y = lax.scan(of_chunk, None, jnp.arange(chunks))
    y = y.reshape(chunks * size, *y.shape[2:])
    rest = images[chunks * size :]
    return jnp.concatenate([y, function(rest)]) if len(rest) else y


def _chunks(batch: int, image_bytes: int, chunk_bytes: int) -> int:
    """Return into how many chunks to cut a batch, of about `chunk_bytes` each."""
    fewest = min(-(-batch * image_bytes // chunk_bytes), batch)
    even = (n for n in range(fewest, 2 * fewest) if batch % n == 0)
    return next(even, fewest)  # a rest is a second program, so rather some more chunks


def _is_empty(*arrays: jax.Array) -> bool:
    return 0 in (length for x in arrays for length in x.shape)
