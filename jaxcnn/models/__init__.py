"""The networks of d2l, and the one place to register another."""

from collections.abc import Callable
from typing import Any

from flax import linen as nn

from jaxcnn.errors import did_you_mean
from jaxcnn.models.lenet import LeNet, LeNetModern
from jaxcnn.models.resnet import Residual, ResNet, ResNet18
from jaxcnn.models.vgg import VGG, VGG11, VGGBlock, VGGNarrow

__all__ = [
    "MODELS",
    "VGG",
    "VGG11",
    "LeNet",
    "LeNetModern",
    "ResNet",
    "ResNet18",
    "Residual",
    "VGGBlock",
    "VGGNarrow",
    "create_model",
]

MODELS: dict[str, Callable[..., nn.Module]] = {
    "lenet": LeNet,
    "lenet_modern": LeNetModern,
    "vgg": VGGNarrow,
    "vgg11": VGG11,
    "resnet18": ResNet18,
}
_OWN = dict(MODELS)


def is_own_model(name: str) -> bool:
    """Return whether an entry of `MODELS` is jaxcnn's own, rather than added or replaced.

    Training checks the others, which takes a second of a network like ResNet18.

    >>> is_own_model("lenet")
    True
    """
    return name in _OWN and MODELS.get(name) is _OWN[name]


def create_model(name: str, **kwargs: Any) -> nn.Module:
    """Build a registered model.

    Every model maps images [N, H, W, C], floating point in [0, 1] as `jaxcnn.data.preprocess`
    returns them, to logits [N, num_classes]; integers are refused. It is called as
    `model.apply(variables, images, train=True, mutable=['batch_stats'], rngs={'dropout': key})`;
    with `train=False` no mutable collection and no key are needed.

    Args:
        name: a key of `MODELS`.
        **kwargs: fields of the module: `num_classes` (10; 0 for the features before the logits),
            `dtype` (of the computation; `init` makes float32 parameters), `axis_name` (mapped axis
            over which BatchNorm is synchronised), `implementation` ('auto', or 'xla' for XLA's own
            operations alone), and the architecture's own.

    Raises:
        ValueError: if the name is not registered.

    >>> create_model("lenet", num_classes=7).num_classes
    7
    """
    if name not in MODELS:
        hint = did_you_mean(name, MODELS)
        raise ValueError(f"unknown model {name!r}{hint}; registered: {', '.join(MODELS)}")
    return MODELS[name](**kwargs)
