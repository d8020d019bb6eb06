"""Winograd's kernel gradient: a quarter to a half of the products, and some sums around them.

Along one row of pixels, a kernel of 3 values has the gradient y[a] = sum over i < m of x[i + a]
g[i]: 3 m products. As polynomials they take one for each of m + 2 points: G g holds the values of g
there, B x what weighs with them, and A adds them up,

    y = A ((G g) * (B x)).

In two dimensions the tiles are m x m pixels of g with (m + 2) x (m + 2) pixels of x, and A, G and B
apply to rows and columns. With channels, each of the products is one of two matrices, in which the
sum over tiles and images is taken as well.

Sources: Winograd, Arithmetic complexity of computations, 1980; Lavin and Gray, Fast algorithms for
convolutional neural networks, 2015. The points were chosen by trial among multiples of 1/16 for the
least loss of precision: relative errors are 1e-6 where those of the plain sum are 3e-7.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcnn.ops.geometry import Geometry
from jaxcnn.ops.products import transposed_product

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


def products(images: jax.Array, g: jax.Array, geometry: Geometry) -> jax.Array:
    """Return the products [points, I, O] of the transforms of both, summed over the tiles.

    Args:
        images: [N, H, W, I].
        g: [N, H', W', O].
        geometry: of windows of 3 x 3 pixels at stride 1.
    """
    cuts = cut(g.shape[1]), cut(g.shape[2])
    weights = _tiles(images, geometry.padding, cuts, [c.points for c in cuts], "B")
    values = _tiles(g, (0, 0), cuts, [c.m for c in cuts], "G")
    return transposed_product(weights, values)


def kernel_gradient(products: jax.Array, g: jax.Array) -> jax.Array:
    """Return the gradient [3, 3, I, O] by the kernel, from the sum of all `products`."""
    back = _transform((cut(g.shape[1]), cut(g.shape[2])), "A", products.dtype)
    total = back @ products.reshape(len(products), -1)
    return total.reshape(WINDOW, WINDOW, *products.shape[1:])


def _tiles(
    x: jax.Array, padding: tuple[int, int], cuts: tuple[Cut, Cut], size: list[int], name: str
) -> jax.Array:
    """Return a transform of all tiles of `size` pixels of x [N, H, W, C]: [points, tiles, C]."""
    beyond = [
        (p, (c.tiles - 1) * c.m + n - p - length, 0)
        for p, c, n, length in zip(padding, cuts, size, x.shape[1:3], strict=True)
    ]
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *beyond, (0, 0, 0)))
    (s, t), (rows, columns) = (c.m for c in cuts), ((c.tiles - 1) * c.m + 1 for c in cuts)
    pixels = jnp.stack(
        [
            x[:, a : a + rows : s, b : b + columns : t]
            for a in range(size[0])
            for b in range(size[1])
        ]
    )
    transform = _transform(cuts, name, x.dtype)
    return (transform @ pixels.reshape(len(pixels), -1)).reshape(len(transform), -1, x.shape[3])


def _transform(cuts: tuple[Cut, Cut], name: str, dtype: jnp.dtype) -> jax.Array:
    """Return A, G or B for tiles, of rows and columns together."""
    rows, columns = (_matrices(c.m)[name] for c in cuts)
    return jnp.asarray(np.kron(rows, columns), dtype)


@functools.cache
def _matrices(m: int) -> dict[str, np.ndarray]:
    """Return A [3, m + 2], G [m + 2, m] and B [m + 2, m + 2]."""

    def values(count: int) -> np.ndarray:
        """Return what the values at the points are of the `count` coefficients."""
        at_infinity = [0.0] * (count - 1) + [1.0]
        return np.array([[p**i for i in range(count)] for p in _POINTS[m]] + [at_infinity])

    return {
        "A": values(WINDOW).T,
        "G": values(m),
        "B": np.linalg.inv(values(m + WINDOW - 1)).T,
    }
