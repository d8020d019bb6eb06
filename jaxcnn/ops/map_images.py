"""Functions that treat each image of a batch by itself."""

from collections.abc import Callable

import jax
import jax.numpy as jnp  # noqa: F401 (the example)

from jaxcnn.ops import cpu


def map_images(
    function: Callable[[jax.Array], jax.Array],
    images: jax.Array,
    implementation: str | None = None,
    widened: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Return function(images), of a function that treats each image by itself.

    Such a function may be computed a few images at a time, which saves memory where it makes large
    feature maps. Values and derivatives are equal up to rounding.

    Args:
        function: from [N, ...] to [N, ...], for any N.
        images: [N, H, W, C].
        implementation: 'auto', 'xla' (always the whole batch) or None, as for `conv2d`.
        widened: the same function computed in float32, if it computes in half precision. It is
            taken for a few images at a time: in the processor's caches, half precision saves
            nothing.

    Returns:
        [N, ...], as the function returns for the whole batch.

    >>> map_images(lambda x: x + 1, jnp.zeros((4, 2, 2, 1))).shape
    (4, 2, 2, 1)
    """
    if cpu.choose_implementation(implementation) == "xla":
        return function(images)
    return cpu.remat_in_chunks(function, images, widened)
