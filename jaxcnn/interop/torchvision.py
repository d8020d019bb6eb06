"""Weights named as torchvision's modules name them.

`torchvision.models` has the networks for images of three channels; for others, replace their first
convolution:

| model                         | module of torchvision                                          |
|-------------------------------|----------------------------------------------------------------|
| `ResNet34`, other `arch` too  | `resnet34`, or `ResNet(BasicBlock, layers)`                    |
| `ResNet50`, other `arch` too  | `resnet50`, or `ResNet(Bottleneck, layers)`                    |
| `ResNeXt50`, other `arch` too | `resnext50_32x4d`, or with other layers                        |
| `ResNet18`, d2l's             | `resnet18`, or `ResNet(BasicBlock, layers)`                    |
| `VGG`                         | `vgg11`, or `VGG(features)`; of other than 512 channels or     |
|                               | 4,096 hidden units, with another `classifier`                  |

Its AlexNet, GoogLeNet and DenseNet are other networks than d2l's: of other widths, with BatchNorm,
with bottlenecks.

d2l's residual blocks differ from torchvision's: their convolutions have biases, and their shortcuts
no BatchNorm. In evaluation each can do what the other does: the BatchNorm behind a convolution
takes its bias, and that of a shortcut is a factor and a bias of each channel.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxcnn.interop.state_dict import StateDict
from jaxcnn.interop.torch import read_state_dict, to_torch
from jaxcnn.layers import BatchNorm
from jaxcnn.models import (
    VGG,
    BasicBlock,
    Bottleneck,
    Residual,
    ResNet,
    ResNet34,
    ResNeXtBottleneck,
    without_normalization,
)

_CHANNELS = (64, 128, 256, 512)
_VGG_POOLED = (7, 7)  # what torchvision's VGG averages its feature maps to
_EPSILON = BatchNorm.epsilon  # PyTorch's, too


def to_torchvision(
    variables: Mapping[str, Any], model: nn.Module, image_size: tuple[int, int]
) -> StateDict:
    """Convert Flax variables to a PyTorch state dict of torchvision's networks.

    In evaluation they return the same logits. The module `jaxcnn.interop.torchvision` lists the
    networks.

    Args:
        variables: of the model, {'params': ..., 'batch_stats': ...}.
        model: a `ResNet` with torchvision's channels, or a `VGG`; or a `Normalized` with one, as
            for `to_torch`.
        image_size: (H, W) of the images. A VGG's last feature maps must have 7 x 7 pixels:
            torchvision's takes the mean of others.

    Returns:
        Arrays by name, such as 'layer1.0.conv1.weight', in at least float32.

    Raises:
        ValueError: if torchvision has no such network, or the variables are not the model's.

    >>> import jax
    >>> model = VGG(arch=((1, 4), (1, 8)), hidden_features=16)
    >>> variables = model.init(jax.random.key(0), np.zeros((1, 28, 28, 1), np.float32))
    >>> list(to_torchvision(variables, model, (28, 28)))[:2]
    ['features.0.bias', 'features.0.weight']
    """
    model = without_normalization(model)
    if not _is_torchvisions(model):
        raise _refusal(model)
    if isinstance(model, VGG):
        size = tuple(n // 2 ** len(model.arch) for n in image_size)
        if size != _VGG_POOLED:
            raise ValueError(
                f"torchvision's VGG takes feature maps of 7 x 7 pixels, and images of {image_size} "
                f"give {size}; train with images of {7 * 2 ** len(model.arch)} pixels, or use "
                "d2l's names"
            )
    state, rename = to_torch(variables, model), _renaming(model)
    renamed = {rename(name.removeprefix("net.")): value for name, value in state.items()}
    return _without_biases(renamed) if _is_d2ls(model) else renamed


def from_torchvision(state_dict: Any, model: nn.Module) -> dict[str, Any]:
    """Convert a state dict of torchvision's networks to Flax variables.

    In evaluation they give the same logits. The weights that torchvision offers take images that
    are normalized; see the `transforms` of the weights there.

    Args:
        state_dict: of `torchvision.models.resnet50()`, for one; what `from_torch` accepts.
        model: the same network (see `jaxcnn.interop.torchvision`), with the same number of classes;
            a `VGG` for images whose last feature maps have 7 x 7 pixels.

    Returns:
        {'params': ..., 'batch_stats': ...} in float32, for `model.apply`; copies.

    Raises:
        ValueError: if torchvision has no such network, or an entry of the state dict is missing,
            unexpected, of another shape, or not of finite floating-point numbers.

    >>> import jax
    >>> model = VGG(arch=((1, 4), (1, 8)), hidden_features=16)
    >>> images = jax.ShapeDtypeStruct((1, 28, 28, 1), "float32")
    >>> shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    >>> variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    >>> back = from_torchvision(to_torchvision(variables, model, (28, 28)), model)
    >>> list(back["params"]), back["params"]["dense1"]["kernel"].shape
    (['block1', 'block2', 'dense1', 'dense2', 'dense3'], (392, 16))
    """
    model = without_normalization(model)
    if not _is_torchvisions(model):
        raise _refusal(model)
    if _is_d2ls(model):
        twin = ResNet34(arch=model.arch, num_classes=model.num_classes)
        return _with_biases(read_state_dict(state_dict, twin, _renaming(twin)))
    return read_state_dict(state_dict, model, _renaming(model))


def _refusal(model: Any) -> ValueError:
    return ValueError(
        f"torchvision has no network like this {type(model).__name__}; accepted: ResNet with "
        f"stages of {_CHANNELS} channels, or of four times as many with bottlenecks, and VGG"
    )


def _is_d2ls(model: nn.Module) -> bool:
    return isinstance(model, ResNet) and model.block is Residual


def _is_torchvisions(model: Any) -> bool:
    """Return whether torchvision has a network of these layers."""
    if not isinstance(model, ResNet):
        return isinstance(model, VGG)
    blocks = {Residual: 1, BasicBlock: 1, Bottleneck: 4, ResNeXtBottleneck: 4}
    factor = next((n for block, n in blocks.items() if model.block is block), 0)
    channels = tuple(channels for _, channels in model.arch)
    stem = (model.stem_channels or channels[0], model.stem_bias)
    return channels == tuple(factor * n for n in _CHANNELS) and stem == (64, _is_d2ls(model))


def _renaming(model: Any) -> Callable[[str], str]:
    """Return a function from d2l's names, without 'net.', to torchvision's."""
    if isinstance(model, VGG):
        return partial(_vgg_name, [num_convs for num_convs, _ in model.arch])
    return partial(_resnet_name, 3 if model.block in (Residual, BasicBlock) else 4)


def _vgg_name(num_convs: list[int], name: str) -> str:
    """Rename an array of a VGG: torchvision's blocks lie in one Sequential."""
    first, *second, leaf = name.split(".")
    if second:
        start = sum(2 * n + 1 for n in num_convs[: int(first)])
        return f"features.{start + int(second[0])}.{leaf}"
    return f"classifier.{int(first) - len(num_convs) - 1}.{leaf}"


def _resnet_name(shortcut: int, name: str) -> str:
    """Rename an array of a ResNet; `shortcut` is the number of the shortcut's convolution."""
    for start, replacement in (("0.0.", "conv1."), ("0.1.", "bn1."), ("last.2.", "fc.")):
        if name.startswith(start):
            return name.replace(start, replacement, 1)
    match = re.fullmatch(r"b(\d)\.(.+)", name)
    assert match, name
    layer = match[2].replace(f"conv{shortcut}", "downsample.0")
    return f"layer{int(match[1]) - 1}.{layer}".replace(f"bn{shortcut}", "downsample.1")


def _without_biases(state: StateDict) -> StateDict:
    """Put the biases of d2l's convolutions into BatchNorm, as torchvision's have none."""
    state = dict(state)
    biases = [name for name in state if re.search(r"(conv\d|downsample\.0)\.bias$", name)]
    for name in biases:
        bias, layer = state.pop(name), name.removesuffix(".bias")
        if layer.endswith("downsample.0"):
            norm = layer.removesuffix("0") + "1"
            state |= {f"{norm}.{leaf}": value for leaf, value in _identity(bias).items()}
        else:
            mean = f"{layer.replace('conv', 'bn')}.running_mean"
            state[mean] = state[mean] - bias  # (y + bias) - mean is y - (mean - bias)
    return state


def _identity(bias: np.ndarray) -> StateDict:
    """Return the arrays of a BatchNorm that adds a bias alone."""
    return {
        "weight": np.ones_like(bias),
        "bias": bias,
        "running_mean": np.zeros_like(bias),
        "running_var": np.full_like(bias, 1 - _EPSILON),
        "num_batches_tracked": np.zeros((), np.int64),
    }


def _with_biases(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the variables of d2l's ResNet for those of the same with `BasicBlock`."""
    params, stats = {}, {}
    for name, layers in variables["params"].items():
        averages = variables["batch_stats"].get(name, {})
        is_block = "conv1" in layers
        params[name] = _block(layers, averages) if is_block else _with_bias(layers)
        if averages:
            stats[name] = {key: x for key, x in averages.items() if key != "bn3"}
    return {"params": params, "batch_stats": stats}


def _block(layers: Mapping[str, Any], averages: Mapping[str, Any]) -> dict[str, Any]:
    """Give each convolution of a block a bias; that of the shortcut does what BatchNorm did."""
    block = {name: _with_bias(layer) for name, layer in layers.items() if name != "bn3"}
    if "bn3" in layers:
        norm, average = layers["bn3"], averages["bn3"]
        factor = norm["scale"] / jnp.sqrt(average["var"] + _EPSILON)
        kernel = layers["conv3"]["kernel"] * factor[None, None, None]
        block["conv3"] = {"kernel": kernel, "bias": norm["bias"] - average["mean"] * factor}
    return block


def _with_bias(layer: Mapping[str, Any]) -> dict[str, Any]:
    """Return a layer's parameters, with a bias of 0 where it has none."""
    if "bias" in layer:
        return dict(layer)
    return {**layer, "bias": jnp.zeros(layer["kernel"].shape[-1:])}
