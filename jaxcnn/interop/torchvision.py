"""Weights named as torchvision's modules name them."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import linen as nn

from jaxcnn.interop.state_dict import StateDict
from jaxcnn.interop.torch import to_torch
from jaxcnn.models import VGG, Residual, ResNet

_RESNET_CHANNELS = (64, 128, 256, 512)
_VGG_POOLED = (7, 7)  # what torchvision's VGG averages its feature maps to


def to_torchvision(
    variables: Mapping[str, Any], model: nn.Module, image_size: tuple[int, int]
) -> StateDict:
    """Convert Flax variables to a PyTorch state dict of torchvision's networks.

    In evaluation they return the same logits. `torchvision.models` has the networks for images of
    three channels; for others, replace their first convolution:

    | model    | module of torchvision                                                           |
    |----------|---------------------------------------------------------------------------------|
    | `ResNet` | `resnet18`, or `ResNet(BasicBlock, layers)`: its convolutions have no biases,    |
    |          | so the BatchNorm behind has them, and that of a shortcut does nothing else      |
    | `VGG`    | `vgg11`, or `VGG(features)`; of other than 512 channels, with another            |
    |          | `classifier[0]`                                                                  |

    Args:
        variables: of the model, {'params': ..., 'batch_stats': ...}.
        model: a `ResNet` with torchvision's channels, or a `VGG`.
        image_size: (H, W) of the images. A VGG's last feature maps must have 7 x 7 pixels:
            torchvision's takes the mean of others.

    Returns:
        Arrays by name, such as 'layer1.0.conv1.weight', in at least float32.

    Raises:
        ValueError: if torchvision has no such network, or the variables are not the model's.

    >>> import jax
    >>> model = VGG(arch=((1, 4), (1, 8)))
    >>> variables = model.init(jax.random.key(0), np.zeros((1, 28, 28, 1), np.float32))
    >>> list(to_torchvision(variables, model, (28, 28)))[:2]
    ['features.0.bias', 'features.0.weight']
    """
    if isinstance(model, ResNet) and _is_torchvisions(model):
        return _resnet(to_torch(variables, model))
    if isinstance(model, VGG):
        size = tuple(n // 2 ** len(model.arch) for n in image_size)
        if size == _VGG_POOLED:
            return _vgg(to_torch(variables, model), [num_convs for num_convs, _ in model.arch])
        raise ValueError(
            f"torchvision's VGG takes feature maps of 7 x 7 pixels, and images of {image_size} "
            f"give {size}; train with images of {7 * 2 ** len(model.arch)} pixels, or use d2l's "
            "names"
        )
    raise ValueError(
        f"torchvision has no network like this {type(model).__name__}; accepted: ResNet with "
        f"stages of {_RESNET_CHANNELS} channels, and VGG"
    )


def _is_torchvisions(model: ResNet) -> bool:
    channels = tuple(channels for _, channels in model.arch)
    return model.block is Residual and channels == _RESNET_CHANNELS


def _vgg(state: StateDict, num_convs: list[int]) -> StateDict:
    """Rename the arrays of a VGG: torchvision's blocks lie in one Sequential."""
    starts = [sum(2 * n + 1 for n in num_convs[:block]) for block in range(len(num_convs))]

    def rename(match: re.Match) -> str:
        first, second, leaf = match.groups()
        if second is not None:
            return f"features.{starts[int(first)] + int(second)}.{leaf}"
        return f"classifier.{int(first) - len(num_convs) - 1}.{leaf}"

    return {re.sub(r"net\.(\d+)\.(?:(\d+)\.)?(\w+)", rename, name): x for name, x in state.items()}


def _resnet(state: StateDict) -> StateDict:
    """Rename the arrays of a ResNet, and put the convolutions' biases into BatchNorm."""
    renamed = {_resnet_name(name): value for name, value in state.items()}
    biases = [name for name in renamed if re.search(r"(conv\d|downsample\.0)\.bias$", name)]
    for name in biases:
        bias, layer = renamed.pop(name), name.removesuffix(".bias")
        if layer.endswith("downsample.0"):
            norm = layer.removesuffix("0") + "1"
            renamed |= {f"{norm}.{leaf}": value for leaf, value in _identity(bias).items()}
        else:
            mean = f"{layer.replace('conv', 'bn')}.running_mean"
            renamed[mean] = renamed[mean] - bias  # (y + bias) - mean is y - (mean - bias)
    return renamed


def _resnet_name(name: str) -> str:
    name = name.removeprefix("net.")
    for start, replacement in (("0.0.", "conv1."), ("0.1.", "bn1."), ("last.2.", "fc.")):
        if name.startswith(start):
            return name.replace(start, replacement, 1)
    match = re.fullmatch(r"b(\d)\.(.+)", name)
    assert match, name
    return f"layer{int(match[1]) - 1}.{match[2]}".replace("conv3", "downsample.0")


def _identity(bias: np.ndarray) -> StateDict:
    """Return the arrays of a BatchNorm that adds a bias alone, with PyTorch's epsilon of 1e-5."""
    return {
        "weight": np.ones_like(bias),
        "bias": bias,
        "running_mean": np.zeros_like(bias),
        "running_var": np.full_like(bias, 1 - 1e-5),
        "num_batches_tracked": np.zeros((), np.int64),
    }
