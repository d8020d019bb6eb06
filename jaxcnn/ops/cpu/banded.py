"""Convolutions of small images as one product of whole blocks of pixels.

A block is B pixels of a row of the output. It is multiplied with all pixels that it meets, in the
kernel laid out as a band, so most of the products are with zeros; for few channels that is still
faster than what would avoid them. Forward and kernel gradient rearrange the images alike: a program
with both does so once.
"""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn.ops.cpu import limits
from jaxcnn.ops.cpu.chunks import map_over_chunks, sum_over_chunks
from jaxcnn.ops.cpu.half import as_bits, from_bits
from jaxcnn.ops.cpu.products import product, transposed_product
from jaxcnn.ops.geometry import Geometry
from jaxcnn.ops.xla import is_half


def work(channels: int, features: int, geometry: Geometry) -> int:
    """Return the multiply-adds an image, those with zeros included, where rows are whole blocks."""
    height, width = geometry.output
    columns = geometry.image[1] + 2 * geometry.padding[1]
    return geometry.window[0] * height * width * features * columns * channels


def forward(
    images: jax.Array,
    kernel: jax.Array,
    geometry: Geometry,
    sigmoid_bias: jax.Array | None = None,
) -> jax.Array:
    """Return the convolution [N, H', W', O], or sigmoid(it + sigmoid_bias [O])."""
    features = kernel.shape[3]
    banded = partial(_forward, kernel=kernel, geometry=geometry, sigmoid_bias=sigmoid_bias)
    image_bytes = _pixel_bytes(images, features, geometry)
    return map_over_chunks(banded, images, image_bytes, limits.CURRENT.large_chunk_bytes)


def _forward(
    images: jax.Array,
    kernel: jax.Array,
    geometry: Geometry,
    sigmoid_bias: jax.Array | None,
) -> jax.Array:
    features = kernel.shape[3]
    block = _block(geometry.output[1], features)
    pixels = _pixels(images, features, geometry)
    band = _band(kernel, block, geometry)
    y = product(
        pixels.reshape(-1, math.prod(pixels.shape[3:])),
        band.reshape(-1, band.shape[3]),
        sigmoid_bias=None if sigmoid_bias is None else jnp.tile(sigmoid_bias, block),
    )
    return y.reshape(len(images), *geometry.output, features)


def images_gradient(g: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Return the images gradient [N, H, W, I]: blocks of a row of g times the band, then spread."""
    (s, t), (p, q) = geometry.strides, geometry.padding
    (batch, height, width, features), channels = g.shape, kernel.shape[2]
    rows, columns = geometry.image[0] + 2 * p, geometry.image[1] + 2 * q
    block = _block(width, features, limits.CURRENT.spread)
    band = _band(kernel, block, geometry)
    products = product(
        g.reshape(-1, block * features),
        band.reshape(-1, block * features),
        transpose_b=True,
        dtype=jnp.float32 if is_half(g) else None,
    ).reshape(batch, height, width // block, band.shape[0], -1)
    below = rows - s * (height - 1) - 1
    spread = []
    for i, a in itertools.product(*map(range, products.shape[2:4])):
        left = t * block * i
        right = columns - left - band.shape[1]
        sides = (left * channels, right * channels, 0)
        zero = jnp.zeros((), products.dtype)
        spread.append(
            lax.pad(products[:, :, i, a], zero, ((0, 0, 0), (a, below - a, s - 1), sides))
        )
    dx = sum(spread[1:], start=spread[0]).reshape(batch, rows, columns, channels)
    return dx[:, p : rows - p, q : columns - q]


def kernel_gradient(images: jax.Array, g: jax.Array, geometry: Geometry) -> jax.Array:
    """Return the kernel gradient [kh, kw, I, O]: the diagonals of blocks of g times pixels."""
    image_bytes = _pixel_bytes(images, g.shape[3], geometry)
    chunk_bytes = limits.CURRENT.large_chunk_bytes
    total = sum_over_chunks(_kernel_products, images, g, geometry, image_bytes, chunk_bytes)
    t, kw = geometry.strides[1], geometry.window[1]
    diagonals = [block[:, :, t * j : t * j + kw] for j, block in enumerate(total)]
    return sum(diagonals[1:], start=diagonals[0]).transpose(1, 2, 3, 0)


def _kernel_products(images: jax.Array, g: jax.Array, geometry: Geometry) -> jax.Array:
    """Return [B, O, kh, columns, I]: the pixels of each block of g times all that they meet."""
    features = g.shape[3]
    block = _block(geometry.output[1], features)
    pixels = _pixels(images, features, geometry)
    of_blocks = g.reshape(-1, block * features)
    products = transposed_product(of_blocks, pixels.reshape(len(of_blocks), -1))
    return products.reshape(block, features, *pixels.shape[3:])


def _pixels(images: jax.Array, features: int, geometry: Geometry) -> jax.Array:
    """Return [N, H', W' / B, kh, columns, I]: the pixels that each block of the output meets."""
    (kh, _), (s, t), (p, q) = geometry.window, geometry.strides, geometry.padding
    height, width = geometry.output
    block = _block(width, features)
    columns = _columns(block, geometry)
    x = jnp.pad(as_bits(images), ((0, 0), (p, p), (q, q), (0, 0)))
    rows = [x[:, a : a + s * (height - 1) + 1 : s] for a in range(kh)]
    blocks = [
        jnp.stack([row[:, :, left : left + columns] for row in rows], axis=2)
        for left in range(0, t * width, t * block)
    ]
    return from_bits(jnp.stack(blocks, axis=2), images.dtype)


def _pixel_bytes(images: jax.Array, features: int, geometry: Geometry) -> int:
    """Return the bytes of one image's `_pixels`."""
    height, width = geometry.output
    block = _block(width, features)
    columns = _columns(block, geometry)
    pixels = height * (width // block) * geometry.window[0] * columns
    return images.dtype.itemsize * pixels * images.shape[3]


def _band(kernel: jax.Array, block: int, geometry: Geometry) -> jax.Array:
    """Return [kh, columns, I, B O]: the kernel where each of B pixels in a row meets images."""
    kw, t = geometry.window[1], geometry.strides[1]
    columns = _columns(block, geometry)
    zero = jnp.zeros((), kernel.dtype)
    sides = [(t * j, columns - kw - t * j, 0) for j in range(block)]
    places = [lax.pad(kernel, zero, ((0, 0, 0), side, (0, 0, 0), (0, 0, 0))) for side in sides]
    return jnp.concatenate(places, axis=3)


def _block(width: int, features: int, most: float | None = None) -> int:
    """Return B: how many pixels of an output row to multiply at a time; B divides the row.

    A block with its features holds at most `most` numbers, two vector registers unless given: more
    would multiply more zeros.
    """
    most = 2 * limits.CURRENT.lanes if most is None else most
    return max(
        n for n in range(1, width + 1) if width % n == 0 and (n == 1 or n * features <= most)
    )


def _columns(block: int, geometry: Geometry) -> int:
    """Return how many columns of images a block of so many pixels meets."""
    return geometry.strides[1] * (block - 1) + geometry.window[1]
