"""From uint8 arrays on the device to batches of floats, inside the compiled program."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxcnn.data.dataset import is_channels_first
from jaxcnn.keys import Purpose, derive_key
from jaxcnn.ops.sizes import as_integer

# What `config.last_batch` may be: the examples that do not fill a batch are one of their own, as
# d2l and PyTorch's DataLoader do it, or join the batch before them.
LAST_BATCH = ("smaller", "merged")

# Halves are rounded up, those too that float32 puts a little lower: programs for other devices or
# other sizes of batch sum in other orders, and have the same grey levels all the same.
_ROUND_UP = 0.5 + 2**-10


def epoch_sizes(num_examples: int, batch_size: int, last_batch: str = "smaller") -> tuple[int, int]:
    """Return how many batches of an epoch are full, and the size of the last one if it is not.

    Args:
        num_examples: the size of the training set.
        batch_size: the size of a full batch.
        last_batch: 'smaller' leaves the rest a batch of its own; 'merged' joins it to the last full
            batch, so that none is smaller than a full one.

    Returns:
        The number of full batches, and the size of the last batch, 0 if there are only full ones.

    Raises:
        ValueError: if a number is not an integer of at least 1, or the word is another.

    >>> epoch_sizes(10, 4), epoch_sizes(10, 4, "merged"), epoch_sizes(8, 4)
    ((2, 2), (1, 6), (2, 0))
    """
    num_examples = as_integer(num_examples, "num_examples")
    batch_size = as_integer(batch_size, "batch_size")
    if min(num_examples, batch_size) < 1 or last_batch not in LAST_BATCH:
        raise ValueError(
            "an epoch takes at least 1 example, a batch_size of at least 1 and a last_batch that "
            f"is 'smaller' or 'merged', got {num_examples}, {batch_size} and {last_batch!r}"
        )
    full, rest = divmod(num_examples, batch_size)
    if last_batch == "merged" and full and rest:
        return full - 1, batch_size + rest
    return full, rest


def batch_sizes(num_examples: int, batch_size: int, last_batch: str = "smaller") -> list[int]:
    """Return the sizes that the batches of an epoch have: that of the full ones, then the last's.

    >>> batch_sizes(10, 4), batch_sizes(8, 4), batch_sizes(5, 4, "merged")
    ([4, 2], [4], [5])
    """
    full, last = epoch_sizes(num_examples, batch_size, last_batch)
    return [batch_size] * bool(full) + [last] * bool(last)


def epoch_batches(
    seed: int | jax.Array,
    epoch: int | jax.Array,
    num_examples: int,
    batch_size: int,
    last_batch: str = "smaller",
) -> tuple[jax.Array, jax.Array]:
    """Shuffle the examples anew and cut them into batches.

    The order depends on (seed, epoch) alone, so the step number tells the position in the data.

    Args:
        seed: the seed of the run.
        epoch: from 0.
        num_examples: the size of the training set.
        batch_size: the size of every batch but the last.
        last_batch: what becomes of the examples that do not fill a batch; see `epoch_sizes`.

    Returns:
        int32 indices of the full batches, [steps, batch_size], and of the last batch of another
        size, [1, size], or [0, 0] if there is none; see `epoch_sizes` for both numbers.

    Raises:
        ValueError: see `epoch_sizes`.

    >>> full, last = epoch_batches(seed=0, epoch=0, num_examples=10, batch_size=4)
    >>> full.shape, last.shape, sorted(full.ravel().tolist() + last.ravel().tolist())
    ((2, 4), (1, 2), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    """
    steps, size = epoch_sizes(num_examples, batch_size, last_batch)
    order = jax.random.permutation(derive_key(seed, Purpose.SHUFFLE, epoch), num_examples)
    full = order[: steps * batch_size].reshape(steps, batch_size)
    return full, order[steps * batch_size :].reshape(1 if size else 0, size)


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
        dtype: the dtype of the result, floating point.

    Returns:
        [N, image_size, image_size, C].

    Raises:
        ValueError: if the images are not uint8 (floats may be in [0, 1] already) or look like
            PyTorch's [N, C, H, W], the size is not an integer of at least 1, or the dtype is not
            floating point.

    >>> preprocess(jnp.full((1, 28, 28, 1), 255, jnp.uint8), image_size=96).shape
    (1, 96, 96, 1)
    """
    _check_preprocess(images, image_size, dtype)
    x = images.astype(jnp.float32)
    if image_size is not None and images.shape[1:3] != (image_size, image_size):
        batch, height, _, channels = images.shape
        for size in ((height, image_size), (image_size, image_size)):
            x = jax.image.resize(x, (batch, *size, channels), method="bilinear", antialias=True)
            x = jnp.floor(x + _ROUND_UP)
    return (x / 255.0).astype(dtype)


def _check_preprocess(images: Any, image_size: int | None, dtype: DTypeLike) -> None:
    if not hasattr(images, "dtype"):
        raise ValueError(f"images must be an array, got a {type(images).__name__}")
    given = f"images must be uint8 [N, H, W, C], got {images.dtype} {list(images.shape)}"
    if images.dtype != jnp.uint8:
        raise ValueError(
            f"{given}; those in [0, 1] are preprocessed already, whole numbers up to 255 take "
            "images.astype('uint8')"
        )
    if len(images.shape) != 4 or is_channels_first(images.shape[1:]):
        raise ValueError(f"{given}; channels are the last of four axes")
    if image_size is not None and as_integer(image_size, "image_size") < 1:
        raise ValueError(f"image_size must be at least 1, got {image_size}")
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype must be floating point, got {jnp.dtype(dtype)}")
