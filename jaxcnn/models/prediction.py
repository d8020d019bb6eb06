"""What a model says of images, as it is evaluated, used and exported."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


def predict_logits(
    model: nn.Module, variables: Any, images: jax.Array, test_augmentation: str = "none"
) -> jax.Array:
    """Return the logits of images, without training anything.

    Args:
        model: maps images to logits.
        variables: of the model.
        images: floating point [N, H, W, C].
        test_augmentation: 'none', or views of each image to take the mean logits of, such as
            'shift:1, flip', names of `jaxcnn.data.TEST_AUGMENTATIONS`. The model sees all the
            views of a batch at once.

    Returns:
        Floating point [N, K].

    Raises:
        ConfigError: if `test_augmentation` is no such text.
    """
    from jaxcnn.data.augment import parse_test_augmentation  # `import jaxcnn` loads no data code

    views = [images]
    for _, augment in parse_test_augmentation(test_augmentation):
        views = [other for view in views for other in augment(view)]
    if len(views) == 1:
        return model.apply(variables, images, train=False)  # type: ignore[return-value]
    # Beside each other along the images: where the batch is divided over devices, each view stays
    # with its image.
    stacked = jnp.stack(views, axis=1).reshape(-1, *images.shape[1:])
    logits: Any = model.apply(variables, stacked, train=False)
    return logits.reshape(-1, len(views), *logits.shape[1:]).mean(axis=1)
