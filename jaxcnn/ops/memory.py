"""What a program on CPU keeps in memory and what it computes again, where XLA chooses badly.

Values and derivatives are what they would be without: bit for bit with `materialize`, up to rounding with
`remat_in_chunks`, which adds up what comes of each chunk. On GPU and TPU neither does anything.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_CHUNK_BYTES = 8 << 20  # of feature maps; about what the caches hold


@jax.custom_jvp
def materialize(x: jax.Array) -> jax.Array:
    """Return x, a floating-point array, computed once even if several operations read it.

    What is made of one array by cheap operations, XLA computes anew for each reader, and keeps that
    array for all of them, for the backward pass as well, often beside x itself. What is made of
    several arrays of one size it computes once. A choice among two of them is such an operation,
    even one with a known answer: NaN alone differs from itself, and stays NaN.

    >>> materialize(jnp.array([1.0, -2.0])).tolist()
    [1.0, -2.0]
    """
    return lax.platform_dependent(x, cpu=lambda x: jnp.where(x == x, x, -x), default=lambda x: x)


@materialize.defjvp
def _materialize_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return materialize(*primals), tangents[0]


def remat_in_chunks(
    function: Callable[[jax.Array], Any], images: jax.Array, image_bytes: int
) -> jax.Array:
    """Return what `function` makes of images, by small chunks of the batch, and forget the rest.

    What it computes on the way stays in the processor's caches, and takes little memory: the
    backward pass computes it again, chunk by chunk. That is faster where it is large and cheap.

    Args:
        function: from [N, ...] to [N, ...], of each image by itself; with convolutions only where
            they are `fast_in_loops`.
        images: [N, ...].
        image_bytes: of the largest array that the function makes of one image.

    >>> remat_in_chunks(lambda x: x + 1, jnp.zeros((4, 2)), image_bytes=5_000_000).shape
    (4, 2)
    """
    batch = len(images)
    sizes = (n for n in range(batch, 1, -1) if batch % n == 0 and n * image_bytes <= _CHUNK_BYTES)
    size = next(sizes, 1)
    if size >= batch:
        return function(images)

    def on_cpu(images: jax.Array) -> Any:
        chunks = images.reshape(batch // size, size, *images.shape[1:])
        y = lax.map(jax.checkpoint(function), chunks)
        return y.reshape(batch, *y.shape[2:])

    return lax.platform_dependent(images, cpu=on_cpu, default=function)
