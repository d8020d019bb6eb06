"""A batch computed in chunks, so that what is made of each stays in the processor's caches."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn.ops.cpu.half import as_bits, from_bits
from jaxcnn.ops.geometry import Geometry


def sum_over_chunks(
    products: Callable[[jax.Array, jax.Array, Geometry], jax.Array],
    images: jax.Array,
    g: jax.Array,
    geometry: Geometry,
    image_bytes: int,
    chunk_bytes: int,
) -> jax.Array:
    """Return the sum of `products` over chunks of the batch.

    The chunks are cut out of the whole within the loop: given to the loop cut up, XLA would compute
    the images once more in that shape. Half precision goes in as bits: before the loop, XLA would
    convert all of it to float32.

    Args:
        products: from (images, g, geometry) to an array of the same shape for every batch.
        images: [N, H, W, I].
        g: [N, H', W', O].
        geometry: passed on.
        image_bytes: that `products` lays out for one image.
        chunk_bytes: that it should lay out at a time.
    """
    batch = len(images)
    chunks = count_chunks(batch, image_bytes, chunk_bytes)
    if chunks == 1:
        return products(images, g, geometry)
    size = batch // chunks
    bits = [as_bits(x) for x in (images, g)]

    def of_chunk(i: jax.Array | int) -> jax.Array:
        some_images, some_g = (lax.dynamic_slice_in_dim(x, i * size, size) for x in bits)
        some_images, some_g = (from_bits(x, images.dtype) for x in (some_images, some_g))
        return products(some_images, some_g, geometry)

    part = jax.eval_shape(of_chunk, 0)
    start = jnp.zeros(part.shape, part.dtype)
    total, _ = lax.scan(lambda sum, i: (sum + of_chunk(i), None), start, jnp.arange(chunks))
    rest = chunks * size
    return total if rest == batch else total + products(images[rest:], g[rest:], geometry)


def map_over_chunks(
    function: Callable[[jax.Array], jax.Array],
    images: jax.Array,
    image_bytes: int,
    chunk_bytes: int,
) -> jax.Array:
    """Return what `function` makes of images [N, ...], image by image, in chunks of the batch.

    Args:
        function: from [n, ...] to [n, ...].
        images: [N, ...].
        image_bytes: that `function` lays out for one image.
        chunk_bytes: that it should lay out at a time.
    """
    chunks = count_chunks(len(images), image_bytes, chunk_bytes)
    if chunks == 1:
        return function(images)
    size = len(images) // chunks

    def of_chunk(_, i):
        return None, function(lax.dynamic_slice_in_dim(images, i * size, size))

    _, y = lax.scan(of_chunk, None, jnp.arange(chunks))
    y = y.reshape(chunks * size, *y.shape[2:])
    rest = images[chunks * size :]
    return jnp.concatenate([y, function(rest)]) if len(rest) else y


def count_chunks(batch: int, image_bytes: int, chunk_bytes: int) -> int:
    """Return into how many chunks of about `chunk_bytes` to cut a batch.

    >>> count_chunks(batch=12, image_bytes=5, chunk_bytes=12)  # 5 would do, but leave a rest
    6
    """
    fewest = min(-(-batch * image_bytes // chunk_bytes), batch)
    even = (n for n in range(fewest, 2 * fewest) if batch % n == 0)
    return next(even, fewest)  # a rest is a second program, so rather some more chunks
