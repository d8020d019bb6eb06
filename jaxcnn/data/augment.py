"""Augmentation of training images, one at a time; mixing of a batch's images; views for evaluation.

A config lists them as text: `augmentation="shift:2, flip"`, `mixing="cutmix:1.0"`,
`test_augmentation="shift:1, flip"`.
"""

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcnn.errors import ConfigError, did_you_mean


def shift(key: jax.Array, image: jax.Array, pixels: float = 2) -> jax.Array:
    """Move the image by up to so many whole pixels in each direction; what moves in is black.

    It is also called padding and random cropping.

    Source: He et al., Deep residual learning for image recognition, 2016, section 4.2; d2l 14.1.

    >>> shift(jax.random.key(0), jnp.ones((4, 4, 1)), 1).shape
    (4, 4, 1)
    """
    most = int(pixels)
    start = jax.random.randint(key, (2,), 0, 2 * most + 1)
    padded = jnp.pad(image, ((most, most), (most, most), (0, 0)))
    return lax.dynamic_slice(padded, (start[0], start[1], jnp.zeros_like(start[0])), image.shape)


def crop(key: jax.Array, image: jax.Array, smallest: float = 0.5) -> jax.Array:
    """Cut a rectangle of at least this share of the image's area out, and resize it to the whole.

    Its height is from 3/4 to 4/3 of its width, both as shares of the image's. Between pixels,
    values are interpolated linearly.

    Source: Szegedy et al., Going deeper with convolutions, 2015, section 6; d2l 14.1.

    >>> crop(jax.random.key(0), jnp.ones((4, 4, 1)), 0.5).shape
    (4, 4, 1)
    """
    area_key, ratio_key, place_key = jax.random.split(key, 3)
    dtype = np.promote_types(image.dtype, np.float32)  # bfloat16 has no place for half a pixel
    area = jax.random.uniform(area_key, (), dtype, smallest, 1)
    most = jnp.minimum(-jnp.log(area), math.log(4 / 3))  # else a side would be above the image's
    log_ratio = jax.random.uniform(ratio_key, (), dtype, -1, 1) * most
    shares = jnp.sqrt(area * jnp.exp(jnp.stack([log_ratio, -log_ratio]))).clip(max=1)
    start = jax.random.uniform(place_key, (2,), dtype) * (1 - shares)
    sizes = jnp.array(image.shape[:2], dtype)
    scale, translation = 1 / shares, -start * sizes / shares
    enlarged = jax.image.scale_and_translate(
        image.astype(dtype), image.shape, (0, 1), scale, translation, "linear", antialias=False
    )
    return enlarged.astype(image.dtype)


def flip(key: jax.Array, image: jax.Array, probability: float = 0.5) -> jax.Array:
    """Mirror the image, left to right, with this probability.

    Source: d2l 14.1.1.

    >>> flip(jax.random.key(0), jnp.ones((4, 4, 1))).shape
    (4, 4, 1)
    """
    return jnp.where(jax.random.bernoulli(key, probability), image[:, ::-1], image)


def rotation(key: jax.Array, image: jax.Array, degrees: float = 10) -> jax.Array:
    """Turn the image about its middle by up to so many degrees; what turns in is black.

    Between pixels, values are interpolated linearly.

    Source: Simard et al., Best practices for convolutional neural networks, 2003, section 2.

    >>> rotation(jax.random.key(0), jnp.ones((4, 4, 1)), 10).shape
    (4, 4, 1)
    """
    angle = jax.random.uniform(key, (), jnp.float32, -1, 1) * math.radians(degrees)
    height, width, _ = image.shape
    rows, columns = jnp.meshgrid(
        jnp.arange(height, dtype=jnp.float32) - (height - 1) / 2,
        jnp.arange(width, dtype=jnp.float32) - (width - 1) / 2,
        indexing="ij",
    )
    from_rows = jnp.cos(angle) * rows - jnp.sin(angle) * columns + (height - 1) / 2
    from_columns = jnp.sin(angle) * rows + jnp.cos(angle) * columns + (width - 1) / 2
    turn = partial(
        jax.scipy.ndimage.map_coordinates, coordinates=[from_rows, from_columns], order=1
    )
    turned = jax.vmap(turn, in_axes=2, out_axes=2)(image.astype(jnp.float32))
    return turned.astype(image.dtype)


def erasing(key: jax.Array, image: jax.Array, probability: float = 0.5) -> jax.Array:
    """Paint over a rectangle of the image with random numbers in [0, 1], with this probability.

    The rectangle has 2 to 40 % of the image's area and sides in a ratio from 3:10 to 10:3; what
    lies beyond the image is cut off.

    Source: Zhong et al., Random erasing data augmentation, 2020, whose numbers these are.

    >>> erasing(jax.random.key(0), jnp.ones((4, 4, 1)), 1.0).shape
    (4, 4, 1)
    """
    happens, area_key, ratio_key, place_key, fill_key = jax.random.split(key, 5)
    height, width, _ = image.shape
    area = jax.random.uniform(area_key, (), jnp.float32, 0.02, 0.4) * (height * width)
    ratio = jnp.exp(jax.random.uniform(ratio_key, (), jnp.float32, -1, 1) * math.log(10 / 3))
    inside = _rectangle(place_key, (height, width), jnp.sqrt(area * ratio), jnp.sqrt(area / ratio))
    erased = inside & jax.random.bernoulli(happens, probability)
    fill = jax.random.uniform(fill_key, image.shape, image.dtype)
    return jnp.where(erased[:, :, None], fill, image)


def mixup(
    key: jax.Array, images: jax.Array, targets: jax.Array, alpha: float = 0.2
) -> tuple[jax.Array, jax.Array]:
    """Average each image, and its label, with the next one of the batch.

    All with one weight, drawn from Beta(alpha, alpha).

    Args:
        key: a typed key.
        images: floating point [N, H, W, C].
        targets: floating point [N, K], a probability for each class.
        alpha: the larger, the more alike are the two weights.

    Returns:
        Images and targets of the same shapes and dtypes.

    Source: Zhang et al., mixup: beyond empirical risk minimization, 2018.

    >>> x, y = mixup(jax.random.key(0), jnp.ones((3, 4, 4, 1)), jnp.eye(3), 0.2)
    >>> x.shape, bool(jnp.allclose(y.sum(axis=1), 1))
    ((3, 4, 4, 1), True)
    """
    share = jax.random.beta(key, alpha, alpha, dtype=targets.dtype)
    return _blend(images, share.astype(images.dtype)), _blend(targets, share)


def cutmix(
    key: jax.Array, images: jax.Array, targets: jax.Array, alpha: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """Paste a rectangle of the next image of the batch into each, and mix labels by area.

    The same rectangle for all; the share that stays is drawn from Beta(alpha, alpha).

    Args:
        key: a typed key.
        images: floating point [N, H, W, C].
        targets: floating point [N, K], a probability for each class.
        alpha: the larger, the closer is the rectangle to half of the image.

    Returns:
        Images and targets of the same shapes and dtypes.

    Source: Yun et al., CutMix, 2019.

    >>> x, y = cutmix(jax.random.key(0), jnp.ones((3, 4, 4, 1)), jnp.eye(3), 1.0)
    >>> x.shape, bool(jnp.allclose(y.sum(axis=1), 1))
    ((3, 4, 4, 1), True)
    """
    share_key, place_key = jax.random.split(key)
    height, width = images.shape[1:3]
    side = jnp.sqrt(1 - jax.random.beta(share_key, alpha, alpha, dtype=jnp.float32))
    inside = _rectangle(place_key, (height, width), side * height, side * width)
    pasted = jnp.where(inside[:, :, None], jnp.roll(images, 1, axis=0), images)
    return pasted, _blend(targets, 1 - inside.mean(dtype=targets.dtype))


def _blend(x: jax.Array, share: jax.Array) -> jax.Array:
    return share * x + (1 - share) * jnp.roll(x, 1, axis=0)


def _rectangle(
    key: jax.Array, size: tuple[int, int], height: jax.Array, width: jax.Array
) -> jax.Array:
    """Return the pixels, bool [H, W], of a rectangle whose middle is anywhere in the image."""
    middle = jax.random.uniform(key, (2,), jnp.float32)

    def along(axis: int, length: jax.Array) -> jax.Array:
        centers = jnp.arange(size[axis], dtype=jnp.float32) + 0.5
        return jnp.abs(centers - middle[axis] * size[axis]) < length / 2

    return along(0, height)[:, None] & along(1, width)[None, :]


def shifted_views(images: jax.Array, pixels: float = 1) -> list[jax.Array]:
    """Return the images, and the same moved down, up, right and left; what moves in is black.

    Source: Krizhevsky et al., ImageNet classification with deep convolutional neural networks,
    2012, section 4.1, for the mean over places.

    >>> [int(view[0, 1, 1, 0]) for view in shifted_views(jnp.arange(9).reshape(1, 3, 3, 1))]
    [4, 1, 7, 3, 5]
    """
    by, (height, width) = int(pixels), images.shape[1:3]
    padded = jnp.pad(images, ((0, 0), (by, by), (by, by), (0, 0)))
    starts = (by, by), (0, by), (2 * by, by), (by, 0), (by, 2 * by)
    return [padded[:, y : y + height, x : x + width] for y, x in starts]


def mirrored_views(images: jax.Array) -> list[jax.Array]:
    """Return the images, and their mirror images.

    Source: as for `shifted_views`.

    >>> [view.ravel().tolist() for view in mirrored_views(jnp.array([1, 2]).reshape(1, 1, 2, 1))]
    [[1, 2], [2, 1]]
    """
    return [images, images[:, :, ::-1]]


# What `config.augmentation` lists, each by name or as NAME:STRENGTH. A function takes a typed key
# (`jax.random.key`) and an image after `preprocess`, [H, W, C], floating point in [0, 1], and, if a
# strength is given, that; it returns an image of the same shape and dtype. It runs inside the
# compiled training step, with a key that depends on (seed, step, example), never in evaluation.
# Add an augmentation here.
AUGMENTATIONS: dict[str, Callable[..., jax.Array]] = {
    "shift": shift,
    "crop": crop,
    "flip": flip,
    "rotation": rotation,
    "erasing": erasing,
}

# What `config.mixing` may be, as NAME or NAME:STRENGTH: functions like `mixup`.
MIXINGS: dict[str, Callable[..., tuple[jax.Array, jax.Array]]] = {
    "mixup": mixup,
    "cutmix": cutmix,
}

# What `config.test_augmentation` lists likewise: functions of images [N, H, W, C] that return the
# views over which logits are averaged, arrays of the same shape and dtype.
TEST_AUGMENTATIONS: dict[str, Callable[..., list[jax.Array]]] = {
    "shift": shifted_views,
    "flip": mirrored_views,
}

# The strengths that jaxcnn's own functions accept: above the first, at most the second.
_LIMITS = {
    shift: (0, 4096),
    crop: (0, 1),
    flip: (0, 1),
    rotation: (0, 180),
    erasing: (0, 1),
    shifted_views: (0, 4096),
    mixup: (0, math.inf),
    cutmix: (0, math.inf),
}


def parse_augmentation(text: str) -> list[tuple[str, Callable[[jax.Array, jax.Array], jax.Array]]]:
    """Return the functions of (key, image) that `config.augmentation` lists, each with its text.

    Args:
        text: names of `AUGMENTATIONS`, with a strength or without, as "shift:2, flip"; "none" for
            none.

    Raises:
        ConfigError: if it is no such list.

    >>> [name for name, _ in parse_augmentation("shift:2, flip")]
    ['shift:2', 'flip']
    """
    if text == "none":
        return []
    return [_parse(part, "config.augmentation", AUGMENTATIONS, takes=3) for part in text.split(",")]


def parse_test_augmentation(
    text: str, key: str = "test_augmentation"
) -> list[tuple[str, Callable[[jax.Array], list[jax.Array]]]]:
    """Return the functions of images that `test_augmentation` lists, each with its text.

    Args:
        text: names of `TEST_AUGMENTATIONS`, as for `parse_augmentation`.
        key: what the text was given as.

    Raises:
        ConfigError: if it is no such list.

    >>> [name for name, _ in parse_test_augmentation("shift:1, flip")]
    ['shift:1', 'flip']
    """
    if text == "none":
        return []
    table = TEST_AUGMENTATIONS
    return [_parse(part, key, table, takes=2) for part in text.split(",")]


def parse_mixing(text: str) -> tuple[str, Callable] | None:
    """Return the function that `config.mixing` names, with its text; None for "none".

    Raises:
        ConfigError: if it names none.

    >>> parse_mixing("none"), parse_mixing("mixup:0.2")[0]
    (None, 'mixup:0.2')
    """
    return None if text == "none" else _parse(text, "config.mixing", MIXINGS, takes=4)


def _parse(
    part: str, key: str, table: dict[str, Callable[..., Any]], takes: int
) -> tuple[str, Callable[..., Any]]:
    """Return an entry of a table, by name or as NAME:STRENGTH, and that text.

    Args:
        part: of what was given.
        key: what it was given as.
        table: of functions.
        takes: how many arguments a function has that takes a strength.
    """
    name, colon, number = (each.strip() for each in part.partition(":"))
    if name not in table:
        given = f"{key} has {name!r}{did_you_mean(name, table)}" if name else key
        raise ConfigError(
            f"{given}; accepted: 'none', or names as NAME or NAME:STRENGTH among {', '.join(table)}"
        )
    function = table[name]
    if not colon:
        return name, function
    low, high = _LIMITS.get(function, (-math.inf, math.inf))
    strength = _number(number)
    in_pixels = function in (shift, shifted_views)
    is_whole = not in_pixels or strength == round(strength)
    if not (low < strength <= high and is_whole):  # true for nan as well
        what = "a whole number" if in_pixels else "a number"
        raise ConfigError(
            f"{key} has {part.strip()!r}; the strength of {name} is {what} above {low:g}"
            + (f", at most {high:g}" if math.isfinite(high) else "")
        )
    named = f"{name}:{strength:g}"
    if len(inspect.signature(function).parameters) < takes:
        raise ConfigError(f"{key} has {part.strip()!r}, but {name} takes no strength")
    return named, lambda *args: function(*args, strength)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
