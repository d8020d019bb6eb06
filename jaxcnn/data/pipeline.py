"""From uint8 arrays on the device to batches of floats, inside the compiled program."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxcnn.keys import Purpose, derive_key


def epoch_batches(
    seed: int | jax.Array, epoch: int | jax.Array, num_examples: int, batch_size: int
) -> tuple[jax.Array, jax.Array]:
    """Shuffle the examples anew and cut them into batches.

    The order depends on (seed, epoch) alone, so the step number tells the position in the data.

    Args:
        seed: the seed of the run.
        epoch: from 0.
        num_examples: the size of the training set.
        batch_size: the size of every batch but the last.

    Returns:
        int32 indices of the full batches, [num_examples // batch_size, batch_size], and of the
        last, smaller batch, [1, num_examples % batch_size], or [0, 0] if there is none.

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

    The resize is d2l's, which is torchvision's on a PIL image: bilinear, antialiased when it
    shrinks, along the rows and then along the columns, rounded to whole grey levels after each.
    Halves are rounded up here, where Pillow's fixed-point sums may fall just below: from 28 to 96
    pixels, 0.7 % of Fashion-MNIST's pixels differ by one grey level (0.004); from 28 to 224, none.

    Args:
        images: uint8 [N, H, W, C].
        image_size: height and width of the result, in pixels; None keeps the size.
        dtype: the dtype of the result.

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


def no_augmentation(key: jax.Array, images: jax.Array) -> jax.Array:
    """Return the images as they are.

    >>> no_augmentation(jax.random.key(0), jnp.ones((1, 2, 2, 1))).shape
    (1, 2, 2, 1)
    """
    return images


# What `config.augmentation` may be. Each function takes a typed key (`jax.random.key`) and the
# images of a batch after `preprocess`, [N, H, W, C], floating point in [0, 1]; it returns images of
# the same shape and dtype. It runs inside the compiled training step, with another key at every
# step, and never in evaluation. Add an augmentation here.
AUGMENTATIONS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "none": no_augmentation,
}
