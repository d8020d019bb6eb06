"""PyTorch's state dicts of d2l's networks, to and from Flax variables.

| PyTorch                          | Flax                  | change                                |
|----------------------------------|-----------------------|---------------------------------------|
| Conv2d.weight [O, I, kh, kw]     | kernel [kh, kw, I, O] | transposed                            |
| Linear.weight [O, I]             | kernel [I, O]         | transposed; behind Flatten the inputs |
|                                  |                       | go from C, H, W to H, W, C            |
| BatchNorm2d.weight, bias         | scale, bias           |                                       |
| BatchNorm2d.running_mean and var | mean, var             | none: PyTorch's variance is unbiased, |
|                                  |                       | Flax's is not, and both stay so       |

PyTorch itself is needed for `.pt` files alone.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxcnn.files import local_path
from jaxcnn.models import VGG, LeNet, ResNet

StateDict = dict[str, np.ndarray]
_LEAVES = {
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}

_TO_TORCH = {0: (), 1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}  # axes, by rank: IO to OI, HWIO to OIHW
_FROM_TORCH = {0: (), 1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}


def to_torch(params: Any, batch_stats: Any, model: nn.Module) -> StateDict:
    """Convert Flax variables to a PyTorch state dict.

    Args:
        params: of the model.
        batch_stats: of the model; empty if it has no BatchNorm.
        model: a `LeNet`, `VGG` or `ResNet`.

    Returns:
        Arrays by the names that d2l's module gives them, such as 'net.0.weight'. The
        'num_batches_tracked' of each BatchNorm is 0; PyTorch does not use it at momentum 0.1.

    Raises:
        ValueError: if the model has no counterpart in d2l.

    >>> model = LeNet()
    >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    >>> to_torch(variables["params"], {}, model)["net.0.weight"].shape
    (6, 1, 5, 5)
    """
    state = {}
    channels = _channels_before_flatten(model)
    for path, value in flatten_dict({"params": params, "batch_stats": batch_stats}).items():
        prefix = _torch_prefix(model, path[1:-1])
        state[f"{prefix}.{_LEAVES[path[0], path[-1]]}"] = _to_torch_layout(
            np.asarray(value), channels if path[1] == "dense1" else None
        )
        if path[-1] == "mean":
            state[f"{prefix}.num_batches_tracked"] = np.zeros((), np.int64)
    return state


def from_torch(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Convert a PyTorch state dict to Flax variables.

    Args:
        state_dict: of d2l's module; arrays or tensors by name.
        model: the same network, with the same number of classes.

    Returns:
        {'params': ..., 'batch_stats': ...} in float32, for `model.apply`.

    Raises:
        ValueError: if the model has no counterpart in d2l, or an entry of the state dict
            is missing, unexpected or of another shape; it names the entry and both shapes.

    >>> model = LeNet()
    >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    >>> back = from_torch(to_torch(variables["params"], {}, model), model)
    >>> bool((back["params"]["dense1"]["kernel"] == variables["params"]["dense1"]["kernel"]).all())
    True
    """
    state = {
        name: np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
        for name, value in state_dict.items()
        if not name.endswith("num_batches_tracked")
    }
    variables, channels = _template(model, state), _channels_before_flatten(model)
    expected = {}
    for path, leaf in flatten_dict(variables).items():
        name = f"{_torch_prefix(model, path[1:-1])}.{_LEAVES[path[0], path[-1]]}"
        expected[name] = (path, leaf.shape, channels if path[1] == "dense1" else None)
    _check_names(set(state), set(expected), model)
    values = {}
    for name, (path, shape, channels) in expected.items():
        torch_shape = tuple(shape[axis] for axis in _TO_TORCH[len(shape)])
        if state[name].shape != torch_shape:
            raise ValueError(
                f"{name} has shape {state[name].shape}, but {type(model).__name__} takes "
                f"{torch_shape}; give the state dict of the same network"
            )
        values[path] = jnp.asarray(_from_torch_layout(state[name], channels), jnp.float32)
    nested = unflatten_dict(values)
    return {"params": nested["params"], "batch_stats": nested.get("batch_stats", {})}


def load_state_dict(path: str | os.PathLike) -> StateDict:
    """Read a state dict from a `.safetensors` or a `.pt` file; neither can run code.

    Args:
        path: `.pt` files take PyTorch, and are read with `weights_only=True`.

    Raises:
        ValueError: if the name ends otherwise, or the content is not a state dict.
    """
    path = local_path(path, "path")
    if _suffix(path) == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file: {error}") from error
    import pickle

    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {name: value.numpy() for name, value in state.items()}
    except (pickle.UnpicklingError, RuntimeError, AttributeError, EOFError) as error:
        reason = f"{error}".splitlines()[0]
        raise ValueError(f"{path} is not a state dict of tensors alone: {reason}") from error


def save_state_dict(state_dict: StateDict, path: str | os.PathLike) -> None:
    """Write a state dict to a `.safetensors` or a `.pt` file.

    Args:
        state_dict: from `to_torch`.
        path: `.pt` files take PyTorch.

    Raises:
        ValueError: if the name ends otherwise.
    """
    path = local_path(path, "path")
    arrays = {name: np.array(value, order="C") for name, value in state_dict.items()}
    if _suffix(path) == ".safetensors":
        from safetensors.numpy import save_file

        save_file(arrays, path)
    else:
        import torch

        torch.save({name: torch.from_numpy(value) for name, value in arrays.items()}, path)


def _suffix(path: Path) -> str:
    suffix = path.suffix
    if suffix not in (".safetensors", ".pt"):
        raise ValueError(f"{path} must end in .safetensors or .pt")
    return suffix


def _torch_prefix(model: nn.Module, path: tuple[str, ...]) -> str:
    """Return what d2l's module calls a layer: its place in nested Sequentials."""
    if isinstance(model, LeNet):
        places = {"conv1": 0, "conv2": 3, "dense1": 7, "dense2": 9, "dense3": 11}
        return f"net.{places[path[0]]}"
    if isinstance(model, VGG):
        number = int(path[0][-1])
        if path[0].startswith("block"):  # convolutions and ReLUs take turns in a block
            return f"net.{int(path[0][5:]) - 1}.{2 * (int(path[1][4:]) - 1)}"
        return f"net.{len(model.arch) + 1 + 3 * (number - 1)}"  # Linear, ReLU, Dropout
    if isinstance(model, ResNet):
        fixed = {"b1_conv": "0.0", "b1_bn": "0.1", "last": "last.2"}
        return f"net.{fixed.get(path[0]) or '.'.join((*path[0].split('_'), path[1]))}"
    raise ValueError(
        f"{type(model).__name__} has no counterpart in d2l; accepted: LeNet, VGG, ResNet"
    )


def _channels_before_flatten(model: nn.Module) -> int | None:
    if isinstance(model, LeNet):
        return 16
    return model.arch[-1][1] if isinstance(model, VGG) else None


def _template(model: nn.Module, state: StateDict) -> Any:
    """Return the shapes of the variables, for the image size that the state dict is made for."""
    size, in_channels = 32, _inputs(state, model, _first_layer(model), rank=4) or 1
    channels = _channels_before_flatten(model)
    if channels:
        inputs = _inputs(state, model, ("dense1",), rank=2) or channels
        side = max(1, math.isqrt(inputs // channels))  # of the square map before Flatten
        size = 4 * side + 8 if isinstance(model, LeNet) else side * 2 ** len(model.arch)
    images = jax.ShapeDtypeStruct((1, size, size, in_channels), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)


def _first_layer(model: nn.Module) -> tuple[str, ...]:
    if isinstance(model, VGG):
        return "block1", "conv1"
    return ("conv1",) if isinstance(model, LeNet) else ("b1_conv",)


def _inputs(state: StateDict, model: nn.Module, layer: tuple[str, ...], rank: int) -> int | None:
    """Return the input channels of a layer, if the state dict has it."""
    weight = state.get(f"{_torch_prefix(model, layer)}.weight")
    return weight.shape[1] if weight is not None and weight.ndim == rank else None


def _check_names(given: set[str], expected: set[str], model: nn.Module) -> None:
    for what, names in (("lacks", expected - given), ("has an unexpected", given - expected)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ValueError(
                f"the state dict {what} {min(names)}{more}; {type(model).__name__} takes "
                f"{len(expected)} entries, from {min(expected)} to {max(expected)}"
            )


def _to_torch_layout(value: np.ndarray, channels: int | None) -> np.ndarray:
    """Transpose an array; `channels` if its rows are the pixels of a flattened image."""
    value = value.transpose(_TO_TORCH[value.ndim])
    if channels and value.ndim == 2:
        value = value.reshape(len(value), -1, channels).swapaxes(1, 2).reshape(len(value), -1)
    return value


def _from_torch_layout(value: np.ndarray, channels: int | None) -> np.ndarray:
    """Undo `_to_torch_layout`."""
    if channels and value.ndim == 2:
        value = value.reshape(len(value), channels, -1).swapaxes(1, 2).reshape(len(value), -1)
    return value.transpose(_FROM_TORCH[value.ndim])
