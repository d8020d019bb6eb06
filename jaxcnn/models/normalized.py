"""A model with the normalization of its images in front."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxcnn.layers import check_floating


class Normalized(nn.Module):
    """A model that first normalizes its images: (image - mean) / std, by channel.

    It takes images in [0, 1], as the model without it would. Its variables are the model's, under
    the same names and drawn alike.

    Attributes:
        model: maps images to logits.
        mean: of each channel, in units of the images.
        std: standard deviation of each channel, likewise; above 0.
        axis_name: mapped axis that the model averages its batch statistics over, if any.

    Source: LeCun et al., Efficient backprop, 1998, section 4.3; d2l 14.2.2.

    >>> from jaxcnn.models import LeNet
    >>> model = Normalized(LeNet(), mean=(0.286,), std=(0.353,))
    >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    >>> variables["params"]["conv1"]["kernel"].shape
    (5, 5, 1, 6)
    """

    model: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Return the model's logits of the normalized images.

        Args:
            images: floating point [N, H, W, C], in [0, 1]. Below float32 they are normalized in
                float32, and rounded to their dtype again.
            train: handed to the model.

        Raises:
            ValueError: if the images are integers or of other channels, or a `std` is not above 0.
        """
        check_floating(self, images)
        channels = images.shape[-1]
        if not len(self.mean) == len(self.std) == channels or min(self.std) <= 0:
            raise ValueError(
                f"images {list(images.shape)} take a mean and a std above 0 for each of their "
                f"{channels} channels, got {self.mean} and {self.std}"
            )
        dtype = np.promote_types(images.dtype, np.float32)
        mean, std = (jnp.array(x, dtype)[None, None, None] for x in (self.mean, self.std))
        normalized = (images.astype(dtype) - mean) / std
        model = take_place(self.model, self, self.axis_name)
        return model(normalized.astype(images.dtype), train=train)


def take_place(model: nn.Module, around: nn.Module, axis_name: str | None) -> nn.Module:
    """Return a model that has its variables where the module around it would have them.

    Unlike with `nn.share_scope`, layers of the model may have the names of that module's fields.

    Args:
        model: any.
        around: a module that calls it, and has no variables of its own.
        axis_name: of the model, if it has such a field.
    """
    assert around.scope is not None  # within `init` and `apply`
    fields: dict[str, Any] = {"axis_name": axis_name} if hasattr(model, "axis_name") else {}
    return model.clone(parent=around.scope.rewound(), **fields)


def without_normalization(model: nn.Module) -> nn.Module:
    """Return the model within a `Normalized`, whose variables it has; any other as it is.

    >>> from jaxcnn.models import LeNet
    >>> without_normalization(Normalized(LeNet(), (0.5,), (0.25,))) == LeNet()
    True
    """
    return model.model if isinstance(model, Normalized) else model


def describe_normalization(model: nn.Module) -> str:
    """Return the numbers that a model normalizes its images with, or 'none'.

    >>> from jaxcnn.models import LeNet
    >>> describe_normalization(Normalized(LeNet(), (0.5,), (0.25,)))
    'mean 0.5000, std 0.2500'
    """
    if not isinstance(model, Normalized):
        return "none"
    numbers = (" ".join(f"{x:.4f}" for x in each) for each in (model.mean, model.std))
    return "mean {}, std {}".format(*numbers)
