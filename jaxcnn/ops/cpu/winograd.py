"""Winograd's convolution: a quarter to a half of the products, and some sums around them.

Along one row of pixels, a kernel of 3 values k makes of m + 2 pixels x the m pixels y[i] = sum over
a < 3 of x[i + a] k[a]: 3 m products. As polynomials they take one for each of m + 2 points: G k
holds the values of k there, B x what weighs with them, and A adds them up,

    y = A ((G k) * (B x)).

The kernel's gradient, y[a] = sum over i < m of x[i + a] g[i], is the same with 3 and m exchanged.
In two dimensions the tiles are m x m pixels of y or g with (m + 2) x (m + 2) pixels of x, and A, G
and B apply to rows and columns. With channels, each of the products is one of two matrices, in
which the sum over channels, or that over tiles and images, is taken as well. In one dimension, down
the columns of pixels, each is a convolution along the rows: more products, but sums of whole rows.

Sources: Winograd, Arithmetic complexity of computations, 1980; Lavin and Gray, Fast algorithms for
convolutional neural networks, 2015. The points were chosen by trial among multiples of 1/16 for the
least loss of precision: relative errors are 1e-6 where those of the plain sum are 3e-7.
"""

import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcnn.ops.cpu import limits, onednn
from jaxcnn.ops.cpu.chunks import map_over_chunks, sum_over_chunks
from jaxcnn.ops.cpu.products import product, then_sigmoid, transposed_product
from jaxcnn.ops.geometry import Geometry

WINDOW = 3  # pixels of the kernel, each way

# By m, the points besides the one at infinity.
_POINTS = {2: (0, 1, -1), 3: (0, 3 / 4, -3 / 4, 2), 4: (0, 5 / 8, -5 / 8, 3 / 2, -3 / 2)}


class Cut(NamedTuple):
    """How an axis of g is cut into tiles.

    Attributes:
        m: pixels of g in a tile.
        tiles: how many; they may reach beyond the end.
    """

    m: int
    tiles: int

    @property
    def points(self) -> int:
        """As many as there are pixels of x in a tile."""
        return self.m + WINDOW - 1

    @property
    def size(self) -> int:
        """The points of all tiles."""
        return self.tiles * self.points


def cut(length: int) -> Cut:
    """Return the cut with the fewest products.

    >>> cut(12), cut(6)
    (Cut(m=4, tiles=3), Cut(m=3, tiles=2))
    """
    cuts = [Cut(m, -(-length // m)) for m in _POINTS]
    return min(cuts, key=lambda cut: cut.size)


def counts(size: Sequence[int]) -> tuple[int, int]:
    """Return how many points a tile has, and how many tiles an image of y or g of `size` pixels.

    >>> counts((12, 6))
    (30, 6)
    """
    rows, columns = _cuts(size)
    return rows.points * columns.points, rows.tiles * columns.tiles


def _cuts(size: Sequence[int]) -> tuple[Cut, Cut]:
    return cut(size[0]), cut(size[1])


def by_tiles(
    images: jax.Array,
    kernel: jax.Array,
    padding: tuple[tuple[int, int], tuple[int, int]],
    transpose_kernel: bool = False,
    sigmoid_bias: jax.Array | None = None,
) -> jax.Array:
    """Convolve at stride 1 by tiles in two dimensions.

    Args:
        images: [N, H, W, I].
        kernel: [3, 3, I, O], or [3, 3, O, I] if `transpose_kernel`.
        padding: zeros ((above, below), (left, right)), none below zero.
        transpose_kernel: whether to exchange the kernel's last two axes.
        sigmoid_bias: [O]; if given, return sigmoid(the convolution + it).

    Returns:
        [N, H', W', O].
    """
    size = _output_size(images, padding)
    points, tiles = counts(size)
    values = kernel_values(kernel, size)
    conv = partial(
        conv_of_tiles,
        values=values,
        padding=(padding[0][0], padding[1][0]),
        size=size,
        transpose_kernel=transpose_kernel,
    )
    return _map(conv, images, 4 * points * tiles * sum(kernel.shape[2:]), values, sigmoid_bias)


def by_rows(
    images: jax.Array,
    kernel: jax.Array,
    padding: tuple[tuple[int, int], tuple[int, int]],
    transpose_kernel: bool = False,
    sigmoid_bias: jax.Array | None = None,
) -> jax.Array:
    """Convolve at stride 1 by tiles of rows; arguments and result as for `by_tiles`."""
    height, _ = size = _output_size(images, padding)
    kernel = kernel.swapaxes(2, 3) if transpose_kernel else kernel
    values = kernel_values_of_rows(kernel, height)
    conv = partial(conv_of_rows, values=values, padding=padding, height=height)
    return _map(conv, images, row_bytes(size, *kernel.shape[2:]), values, sigmoid_bias)


def _map(
    conv: Callable[[jax.Array], jax.Array],
    images: jax.Array,
    image_bytes: int,
    values: jax.Array,
    sigmoid_bias: jax.Array | None,
) -> jax.Array:
    # The kernel's values are read for each chunk, so a chunk is at least as large.
    chunk_bytes = max(limits.CURRENT.large_chunk_bytes, 4 * values.size)
    return then_sigmoid(map_over_chunks(conv, images, image_bytes, chunk_bytes), sigmoid_bias)


def row_bytes(size: Sequence[int], channels: int, features: int) -> int:
    """Return the bytes that `by_rows` lays out for an image with outputs of `size` pixels."""
    return 4 * cut(size[0]).size * size[1] * (channels + features)


def _output_size(
    images: jax.Array, padding: tuple[tuple[int, int], tuple[int, int]]
) -> tuple[int, int]:
    height, width = (
        length + sum(pads) - WINDOW + 1
        for length, pads in zip(images.shape[1:3], padding, strict=True)
    )
    return height, width


def kernel_gradient(images: jax.Array, g: jax.Array, geometry: Geometry) -> jax.Array:
    """Return the kernel gradient [3, 3, I, O] at stride 1, by tiles in two dimensions."""
    channels, features = images.shape[3], g.shape[3]
    points, tiles = counts(g.shape[1:3])
    image_bytes = 4 * points * tiles * (channels + features)
    # The sum over chunks is read and written for each, so a chunk is at least as large.
    chunk_bytes = max(limits.CURRENT.large_chunk_bytes, 4 * points * channels * features)
    total = sum_over_chunks(products, images, g, geometry, image_bytes, chunk_bytes)
    add = _both(_cuts(g.shape[1:3]), lambda m: _evaluate(m, WINDOW), total.dtype).T
    gradient = add @ total.reshape(len(total), -1)
    return gradient.reshape(WINDOW, WINDOW, *total.shape[1:])


def kernel_values(kernel: jax.Array, size: Sequence[int]) -> jax.Array:
    """Return the transform [points, I, O] of a kernel [3, 3, I, O] for outputs of `size` pixels."""
    values = _both(_cuts(size), lambda m: _evaluate(m, WINDOW), kernel.dtype)
    return (values @ kernel.reshape(WINDOW**2, -1)).reshape(-1, *kernel.shape[2:])


def conv_of_tiles(
    images: jax.Array,
    values: jax.Array,
    padding: tuple[int, int],
    size: Sequence[int],
    transpose_kernel: bool = False,
) -> jax.Array:
    """Convolve at stride 1.

    Args:
        images: [N, H, W, I].
        values: [points, I, O], or [points, O, I] if `transpose_kernel`; see `kernel_values`.
        padding: zeros above and on the left; as many below and on the right as `size` asks for.
        size: (H', W').
        transpose_kernel: whether the kernel was [3, 3, O, I].

    Returns:
        [N, H', W', O].
    """
    cuts = _cuts(size)
    (m, rows), (n, columns) = cuts
    weights = _tiles(images, padding, cuts, [c.points for c in cuts], _weights)
    products = product(weights, values, transpose_b=transpose_kernel)
    add = _both(cuts, lambda m: _evaluate(m, m), images.dtype).T
    y = (add @ products.reshape(len(products), -1)).reshape(m, n, len(images), rows, columns, -1)
    y = y.transpose(2, 3, 0, 4, 1, 5).reshape(len(images), rows * m, columns * n, -1)
    return y[:, : size[0], : size[1]]


def kernel_values_of_rows(kernel: jax.Array, height: int) -> jax.Array:
    """Return the transform [1, 3, I, points O] of a kernel [3, 3, I, O] for `height` rows."""
    values = jnp.asarray(_evaluate(cut(height).m, WINDOW), kernel.dtype)
    values = jnp.tensordot(values, kernel, axes=1).transpose(1, 2, 0, 3)
    return values.reshape(1, *values.shape[:2], -1)


def conv_of_rows(
    images: jax.Array,
    values: jax.Array,
    padding: tuple[tuple[int, int], tuple[int, int]],
    height: int,
) -> jax.Array:
    """Convolve at stride 1 by tiles of some rows, only where oneDNN is in use.

    Args:
        images: [N, H, W, I].
        values: [1, 3, I, points O]; see `kernel_values_of_rows`.
        padding: zeros ((above, below), (left, right)), none below zero.
        height: H', rows of the result.

    Returns:
        [N, H', W', O].
    """
    (above, _), sides = padding
    m, tiles = cut(height)
    points = m + WINDOW - 1
    rows = (tiles - 1) * m
    below = rows + points - above - images.shape[1]  # tiles may reach beyond the end
    x = jnp.pad(images, ((0, 0), (above, below), (0, 0), (0, 0)))
    pixels = [x[:, a : a + rows + 1 : m] for a in range(points)]
    weights = jnp.concatenate(_sums(_weights(m), pixels), axis=3)
    products = onednn.conv(weights, values, (1, 1), ((0, 0), sides), groups=points)
    y = jnp.stack(_sums(_evaluate(m, m).T, jnp.split(products, points, axis=3)), axis=2)
    return y.reshape(len(images), tiles * m, *y.shape[3:])[:, :height]


def _sums(matrix: np.ndarray, parts: Sequence[jax.Array]) -> list[jax.Array]:
    """Return for each row of the matrix the sum of all parts, each times its number there."""
    numbers = [[(float(a), x) for a, x in zip(row, parts, strict=True) if a] for row in matrix]
    return [functools.reduce(jnp.add, [a * x for a, x in row]) for row in numbers]


def products(images: jax.Array, g: jax.Array, geometry: Geometry) -> jax.Array:
    """Return the products [points, I, O] of the transforms of both, summed over the tiles.

    Args:
        images: [N, H, W, I].
        g: [N, H', W', O].
        geometry: of windows of 3 x 3 pixels at stride 1.
    """
    cuts = _cuts(g.shape[1:3])
    weights = _tiles(images, geometry.padding, cuts, [c.points for c in cuts], _weights)
    values = _tiles(g, (0, 0), cuts, [c.m for c in cuts], lambda m: _evaluate(m, m))
    return transposed_product(weights, values)


def _tiles(
    x: jax.Array,
    padding: tuple[int, int],
    cuts: tuple[Cut, Cut],
    size: list[int],
    matrix: Callable[[int], np.ndarray],
) -> jax.Array:
    """Return a transform of all tiles of `size` pixels of x [N, H, W, C]: [points, tiles, C].

    The rows are transformed, then the columns: fewer sums than for the pixels of a tile all at
    once, and half as many pieces to lay side by side, each of which takes time to compile. An image
    of one tile has too few pixels to be read twice.
    """
    beyond = [
        (p, (c.tiles - 1) * c.m + n - p - length, 0)
        for p, c, n, length in zip(padding, cuts, size, x.shape[1:3], strict=True)
    ]
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *beyond, (0, 0, 0)))
    rows, columns = cuts
    if rows.tiles == columns.tiles == 1:
        pixels = jnp.stack([x[:, a, b] for a in range(size[0]) for b in range(size[1])])
        y = _both(cuts, matrix, x.dtype) @ pixels.reshape(len(pixels), -1)
        return y.reshape(len(y), *pixels.shape[1:])
    y = _transform(matrix(rows.m), x, 1, rows)  # [points, N, tiles, W, C]
    y = _transform(matrix(columns.m), y, 3, columns)
    return y.reshape(y.shape[0] * y.shape[1], -1, y.shape[5])


def _transform(matrix: np.ndarray, x: jax.Array, axis: int, cut: Cut) -> jax.Array:
    """Transform the pixels of each tile along an axis; the points become the first axis."""
    last = (cut.tiles - 1) * cut.m
    pixels = jnp.stack(
        [lax.slice_in_dim(x, i, last + i + 1, cut.m, axis) for i in range(matrix.shape[1])]
    )
    y = jnp.asarray(matrix, x.dtype) @ pixels.reshape(len(pixels), -1)
    return y.reshape(len(y), *pixels.shape[1:])


def _both(
    cuts: tuple[Cut, Cut], matrix: Callable[[int], np.ndarray], dtype: jnp.dtype
) -> jax.Array:
    """Return what takes the pixels of a tile, row by row, to its points, column by column.

    The points are in that order since `_tiles` transforms the columns last. In one dimension, the
    matrix is given by m.
    """
    of_rows, of_columns = (matrix(cut.m) for cut in cuts)
    both = np.einsum("pa,qb->qpab", of_rows, of_columns)
    return jnp.asarray(both.reshape(len(of_rows) * len(of_columns), -1), dtype)


def _evaluate(m: int, count: int) -> np.ndarray:
    """Return what takes `count` coefficients to the values at the points: [m + 2, count]."""
    at_infinity = [0.0] * (count - 1) + [1.0]
    return np.array([[p**i for i in range(count)] for p in _POINTS[m]] + [at_infinity])


def _weights(m: int) -> np.ndarray:
    """Return what takes m + 2 pixels to what weighs with the values at the points."""
    points = m + WINDOW - 1
    return np.linalg.inv(_evaluate(m, points)).T
