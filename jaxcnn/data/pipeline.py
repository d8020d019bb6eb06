"""From uint8 arrays on the device to batches of floats, inside the compiled program."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxcnn.keys import Purpose, derive_key


def epoch_batches(
    seed: int | jax.Array, epoch: int | jax.Array, num_examples: int, batch_size: int
) -> tuple[jax.Array, jax.Array]:
    """Return a fresh permutation of the examples, cut into batches.

    It depends on (seed, epoch) alone, so the place in the data is known from the step number.

    Args:
        seed: of the run.
        epoch: from 0.
        num_examples: in the training set.
        batch_size: of every batch but the last.

    Returns:
        int32 indices of the full batches, [num_examples // batch_size, batch_size], and of the
        last, smaller batch, [1, num_examples % batch_size] ([0, 0] if the batches come out even).

    >>> full, last = epoch_batches(seed=0, epoch=0, num_examples=10, batch_size=4)
    >>> full.shape, last.shape, sorted(full.ravel().tolist() + last.ravel().tolist())
    ((2, 4), (1, 2), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    """
    order = jax.random.permutation(derive_key(seed, Purpose.SHUFFLE, epoch), num_examples)
    steps, rest = divmod(num_examples, batch_size)
    full = order[: steps * batch_size].reshape(steps, batch_size)
    return full, order[steps * batch_size :].reshape(1 if rest else 0, rest)


def preprocess(
    images: jax.Array, image_size: int | None = None, dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """Resize images and scale them to [0, 1].

    The resize is d2l's, torchvision's on a PIL image: bilinear, antialiased when it
    shrinks, along the rows and then along the columns, rounded to whole grey levels after each.
    Halves are rounded up, where Pillow's fixed-point sums may fall just below: from 28 to 96 pixels
    0.7 % of the pixels of Fashion-MNIST differ by one grey level (0.004), from 28 to 224 none.

    Args:
        images: uint8 [N, H, W, C].
        image_size: pixels of the square result; unchanged if it is None or already H and W.
        dtype: of the result.

    Returns:
        [N, image_size, image_size, C].

    >>> preprocess(jnp.full((1, 28, 28, 1), 255, jnp.uint8), image_size=96).shape
    (1, 96, 96, 1)
    """
    x = images.astype(jnp.float32)
    if image_size is not None and images.shape[1:3] != (image_size, image_size):
        batch, height, _, channels = images.shape
        for size in ((height, image_size), (image_size, image_size)):
            x = jax.image.resize(x, (batch, *size, channels), method="bilinear", antialias=True)
            x = jnp.floor(x + 0.5)
    return (x / 255.0).astype(dtype)
