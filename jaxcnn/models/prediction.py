"""What a model says of images, as it is evaluated, used and exported."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from flax import linen as nn

TEST_AUGMENTATIONS = ("none", "flip")


def predict_logits(
    model: nn.Module, variables: Any, images: jax.Array, test_augmentation: str = "none"
) -> jax.Array:
    """Return the logits of images, without training anything.

    To average over an image and its mirror is from Krizhevsky et al., ImageNet classification with
    deep convolutional neural networks, 2012, section 4.1.

    Args:
        model: maps images to logits.
        variables: of the model.
        images: floating point [N, H, W, C].
        test_augmentation: 'none', or 'flip' for the mean of each image's logits and its mirror's.

    Returns:
        Floating point [N, K].

    Raises:
        ValueError: if `test_augmentation` is another word.
    """
    if test_augmentation not in TEST_AUGMENTATIONS:
        accepted = " or ".join(map(repr, TEST_AUGMENTATIONS))
        raise ValueError(f"test_augmentation is {test_augmentation!r}; accepted: {accepted}")
    apply: Callable[[jax.Array], Any] = partial(model.apply, variables, train=False)
    if test_augmentation == "none":
        return apply(images)
    return (apply(images) + apply(images[:, :, ::-1])) / 2
