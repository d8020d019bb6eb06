"""Where d2l's PyTorch modules have each layer: its place in nested Sequentials.

A network for the state dicts has a line in `_PLACES` here.
"""

import re
from collections.abc import Callable
from typing import Any

from flax import linen as nn

from jaxcnn.models import VGG, AlexNet, DenseNet, GoogLeNet, LeNet, NiN, ResNet, SmallNet

_LENET = {"conv1": "0", "conv2": "3", "dense1": "7", "dense2": "9", "dense3": "11"}
_ALEXNET = {
    "conv1": "0",
    "conv2": "3",
    "conv3": "6",
    "conv4": "8",
    "conv5": "10",
    "dense1": "14",
    "dense2": "17",
    "dense3": "20",
}


def place_of(model: nn.Module, layer: str) -> str | None:
    """Return where d2l's module has a layer; None if it has none such.

    Args:
        model: an instance of one of `counterparts()`.
        layer: its path in the parameters, joined by '/'.

    >>> place_of(ResNet(arch=((1, 8),)), "b2_0/conv1")
    'b2.0.conv1'
    """
    return next(find for kind, find in _PLACES.items() if isinstance(model, kind))(model, layer)


def has_counterpart(model: Any) -> bool:
    """Return whether d2l has a module like this one."""
    return isinstance(model, tuple(_PLACES))


def counterparts() -> list[str]:
    """Return the names of the networks that d2l has modules of."""
    return [kind.__name__ for kind in _PLACES]


def flattened_channels(model: nn.Module) -> int | None:
    """Return the channels of the feature maps that `flatten` makes rows of; None if none."""
    if isinstance(model, VGG):
        return model.arch[-1][1]
    return 16 if isinstance(model, LeNet) else 256 if isinstance(model, AlexNet) else None


def _vgg(model: VGG, layer: str) -> str | None:
    if match := re.fullmatch(r"block(\d+)/conv(\d+)", layer):
        return f"{int(match[1]) - 1}.{2 * (int(match[2]) - 1)}"  # each with a ReLU behind it
    if match := re.fullmatch(r"dense([123])", layer):  # Linear, ReLU, Dropout
        return f"{len(model.arch) + 1 + 3 * (int(match[1]) - 1)}"
    return None


def _nin(model: NiN, layer: str) -> str | None:
    match = re.fullmatch(r"(?:block(\d+)|last)/conv(\d)", layer)
    if match is None:
        return None
    # Each block has a pooling behind it; the last one also Dropout in front.
    block = 2 * (int(match[1]) - 1) if match[1] else 2 * len(model.arch) + 1
    return f"{block}.{2 * (int(match[2]) - 1)}"


def _googlenet(model: GoogLeNet, layer: str) -> str | None:
    if match := re.fullmatch(r"b(\d)_(\d)/(\w+)", layer):
        return f"{int(match[1]) - 1}.{match[2]}.{match[3]}"
    stem = {"b1_conv": "0.0", "b2_conv1": "1.0", "b2_conv2": "1.2"}
    return (stem | {"last": f"{len(model.arch) + 2}"}).get(layer)


def _resnet(model: ResNet, layer: str) -> str | None:
    if match := re.fullmatch(r"(b\d+)_(\d+)/(.+)", layer):
        return f"{match[1]}.{match[2]}.{match[3].replace('/', '.')}"
    return {"b1_conv": "0.0", "b1_bn": "0.1", "last": "last.2"}.get(layer)


def _densenet(model: DenseNet, layer: str) -> str | None:
    if match := re.fullmatch(r"(dense_blk\d+)/(bn|conv)(\d+)", layer):  # BatchNorm, ReLU, Conv
        return f"{match[1]}.net.{int(match[3]) - 1}.{0 if match[2] == 'bn' else 2}"
    if match := re.fullmatch(r"(tran_blk\d+)_(bn|conv)", layer):
        return f"{match[1]}.{0 if match[2] == 'bn' else 2}"
    return {"b1_conv": "0.0", "b1_bn": "0.1", "last_bn": "last.0", "last": "last.4"}.get(layer)


_PLACES: dict[type[nn.Module], Callable[[Any, str], str | None]] = {
    LeNet: lambda model, layer: _LENET.get(layer),
    AlexNet: lambda model, layer: _ALEXNET.get(layer),
    VGG: _vgg,
    NiN: _nin,
    GoogLeNet: _googlenet,
    ResNet: _resnet,
    DenseNet: _densenet,
    SmallNet: lambda model, layer: layer.replace("/", "."),  # not d2l's: a name for each
}
