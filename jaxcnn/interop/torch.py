"""PyTorch's state dicts of d2l's networks, to and from Flax variables.

| PyTorch                          | Flax                  | change                                |
|----------------------------------|-----------------------|---------------------------------------|
| Conv2d.weight [O, I, kh, kw]     | kernel [kh, kw, I, O] | transposed                            |
| Linear.weight [O, I]             | kernel [I, O]         | transposed; behind Flatten the inputs |
|                                  |                       | go from C, H, W to H, W, C            |
| BatchNorm2d.weight, bias         | scale, bias           |                                       |
| BatchNorm2d.running_mean and var | mean, var             | none: PyTorch's variance is unbiased, |
|                                  |                       | Flax's is not, and both stay so       |

The network may be for images of any height, width and number of channels: the new order of the
inputs behind Flatten depends on C and the product of H and W alone.
"""

import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxcnn.interop.places import counterparts, flattened_channels, has_counterpart, place_of
from jaxcnn.interop.state_dict import StateDict, as_weights, unwrap
from jaxcnn.models import VGG, without_normalization

_LEAVES = {
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}

_FIRST_LAYERS = ("conv1", "block1/conv1", "b1_conv", "stem/conv")  # which take the image
_TO_TORCH = {0: (), 1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}  # axes, by rank: IO to OI, HWIO to OIHW
_FROM_TORCH = {0: (), 1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}


class _Entry(NamedTuple):
    """An array of a network.

    Attributes:
        path: in the Flax variables.
        name: in the state dict of d2l's `net`.
        shape: in Flax; None for a size that depends on the images.
        channels: of the image whose pixels a flattened kernel's rows are; None for other arrays.
    """

    path: tuple[str, ...]
    name: str
    shape: tuple[int | None, ...]
    channels: int | None


def to_torch(variables: Mapping[str, Any], model: nn.Module) -> StateDict:
    """Convert Flax variables to a PyTorch state dict.

    Args:
        variables: of the model, {'params': ..., 'batch_stats': ...}, as from `model.init`,
            `TrainState.variables` or `from_torch`; without BatchNorm 'params' are enough.
        model: an instance of one of jaxcnn's networks, such as a `ResNet`. The networks that d2l
            has not, such as ResNet50, are named as its `ResNet` would name them. A `Normalized`
            counts as the network within: the module takes images that are normalized.

    Returns:
        Arrays by the names that d2l's module gives them, such as 'net.0.weight', in at least
        float32. The 'num_batches_tracked' of each BatchNorm is 0; PyTorch does not use it at
        momentum 0.1.

    Raises:
        ValueError: if the model has no counterpart in d2l, or an array of the variables is missing,
            unexpected, of another shape, or not of finite floating-point numbers; it names the
            array.

    >>> from jaxcnn.models import LeNet
    >>> model = LeNet()
    >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    >>> to_torch(variables, model)["net.0.weight"].shape
    (6, 1, 5, 5)
    """
    model = without_normalization(model)
    entries = {"/".join(entry.path): entry for entry in _entries(model)}
    if not isinstance(variables, Mapping):
        kind = type(variables).__name__
        raise ValueError(f"variables must be {{'params': ..., 'batch_stats': ...}}, got {kind}")
    leaves = dict(_leaves(variables))
    _check_names("the dict of variables", set(leaves), set(entries), model)
    state = {}
    for path, entry in entries.items():
        value = as_weights(leaves[path], path)
        _check_shape(path, value.shape, entry.shape, entry, model)
        value = _to_torch_layout(value, entry.channels)
        state[f"net.{entry.name}"] = np.array(value, order="C")  # never a view of JAX's memory
        if entry.path[-1] == "mean":
            prefix = entry.name.removesuffix("running_mean")
            state[f"net.{prefix}num_batches_tracked"] = np.zeros((), np.int64)
    return state


def from_torch(state_dict: Any, model: nn.Module) -> dict[str, Any]:
    """Convert a PyTorch state dict to Flax variables.

    A state dict has no word on activations, pooling or BatchNorm's epsilon: those are the model's.

    Args:
        state_dict: of d2l's module: arrays or tensors by name, in any floating-point type. It may
            be wrapped: all names may have one prefix ('module.', '_orig_mod.', 'model.'), or lack
            'net.'; it may be an entry of a training checkpoint ('state_dict', 'model'), a list of
            pairs, or the module itself.
        model: the same network, with the same number of classes.

    Returns:
        {'params': ..., 'batch_stats': ...} in float32, for `model.apply`; copies.

    Raises:
        ValueError: if the model has no counterpart in d2l, or an entry of the state dict
            is missing, unexpected, of another shape, or not of finite floating-point numbers; it
            names the entry. Also if the weights are there twice, as in a checkpoint with an
            exponential moving average.

    >>> from jaxcnn.models import LeNet
    >>> model = LeNet()
    >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    >>> back = from_torch(to_torch(variables, model), model)
    >>> bool((back["params"]["dense1"]["kernel"] == variables["params"]["dense1"]["kernel"]).all())
    True
    """
    return read_state_dict(state_dict, model)


def read_state_dict(
    state_dict: Any, model: nn.Module, rename: Callable[[str], str] = str
) -> dict[str, Any]:
    """Do what `from_torch` does, for a state dict with other names.

    Args:
        state_dict: as for `from_torch`.
        model: likewise.
        rename: from a name of d2l's, without 'net.', to that in the state dict.

    >>> from jaxcnn.models import LeNet
    >>> model = LeNet()
    >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    >>> state = {name.replace("net", "layer"): x for name, x in to_torch(variables, model).items()}
    >>> sorted(read_state_dict(state, model, "layer.{}".format))
    ['batch_stats', 'params']
    """
    model = without_normalization(model)
    entries = {rename(entry.name): entry for entry in _entries(model)}
    state, prefix, place = unwrap(state_dict, entries)
    entries = {f"{prefix}{name}": entry for name, entry in entries.items()}
    _check_names(f"the state dict{place}", set(state), set(entries), model)
    values = {}
    for name, entry in entries.items():
        value = as_weights(state[name], name, np.float32)
        shape = tuple(entry.shape[axis] for axis in _TO_TORCH[len(entry.shape)])
        _check_shape(name, value.shape, shape, entry, model)
        # A copy: JAX may share memory with the array, and PyTorch train it in place.
        values[entry.path] = jnp.array(_from_torch_layout(value, entry.channels))
    nested = unflatten_dict(values)
    return {"params": nested["params"], "batch_stats": nested.get("batch_stats", {})}


def _entries(model: nn.Module) -> list[_Entry]:
    """Return what a model's variables and d2l's state dict have."""
    if not has_counterpart(model):
        raise ValueError(
            f"{type(model).__name__} has no counterpart in d2l; accepted: instances of "
            f"{', '.join(counterparts())}, such as LeNet()"
        )
    # Traced alone, so that large images cost nothing: large enough for a deep network.
    side = 2 ** max(9, len(model.arch)) if isinstance(model, VGG) else 512
    images = jax.ShapeDtypeStruct((1, side, side, 1), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return [_entry(model, path, leaf.shape) for path, leaf in flatten_dict(variables).items()]


def _entry(model: nn.Module, path: tuple[str, ...], shape: tuple[int, ...]) -> _Entry:
    layer, leaf = "/".join(path[1:-1]), _LEAVES.get((path[0], path[-1]))
    place = place_of(model, layer)
    if place is None or leaf is None or len(shape) not in _TO_TORCH:
        raise ValueError(f"{'/'.join(path)} of {type(model).__name__} has no counterpart in d2l")
    sizes: list[int | None] = [*shape]
    channels = None
    if path[-1] == "kernel" and layer in _FIRST_LAYERS:
        sizes[2] = None
    if path[-1] == "kernel" and layer == "dense1":
        sizes[0], channels = None, flattened_channels(model)
    return _Entry(path, f"{place}.{leaf}", tuple(sizes), channels)


def _leaves(tree: Mapping, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested dicts and their paths."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{key}/")
        else:
            yield f"{path}{key}", value


def _check_names(what: str, given: set[str], expected: set[str], model: nn.Module) -> None:
    missing, unexpected = sorted(expected - given), sorted(given - expected)
    if not missing and not unexpected:
        return
    lacks = f"lacks {_some(missing)}" if given else "is empty"
    has = f"has the unexpected {_some(unexpected)}"
    faults = [lacks] * bool(missing) + [has] * bool(unexpected)
    name, hint = type(model).__name__, ""
    if not missing and not model.num_classes:
        hint = (
            f"; for features, convert with the num_classes of the weights: {name}(num_classes=0) "
            "can apply the result"
        )
    raise ValueError(
        f"{what} {' and '.join(faults)}; {name} takes {len(expected)} entries, "
        f"from {min(expected)} to {max(expected)}{hint}"
    )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(textwrap.shorten(name, 80) for name in names[:3]) + more


def _check_shape(
    name: str,
    given: tuple[int, ...],
    expected: tuple[int | None, ...],
    entry: _Entry,
    model: nn.Module,
) -> None:
    unit = entry.channels or 1
    same = len(given) == len(expected) and all(
        n == m if m is not None else n > 0 and n % unit == 0
        for n, m in zip(given, expected, strict=True)
    )
    if same:
        return
    sizes = [f"{unit} n".removeprefix("1 ") if m is None else f"{m}" for m in expected]
    accepted = f"({', '.join(sizes)}{',' * (len(sizes) == 1)})"
    advice = "give the weights of the same network"
    if entry.path[1] in ("dense3", "last"):
        advice += ", with the same num_classes"
    raise ValueError(
        f"{name} has shape {given}, but {type(model).__name__} takes {accepted}; {advice}"
    )


def _to_torch_layout(value: np.ndarray, channels: int | None) -> np.ndarray:
    """Transpose an array; `channels` if its rows are the pixels of a flattened image."""
    value = value.transpose(_TO_TORCH[value.ndim])
    if channels:
        value = value.reshape(len(value), -1, channels).swapaxes(1, 2).reshape(len(value), -1)
    return value


def _from_torch_layout(value: np.ndarray, channels: int | None) -> np.ndarray:
    """Undo `_to_torch_layout`."""
    if channels:
        value = value.reshape(len(value), channels, -1).swapaxes(1, 2).reshape(len(value), -1)
    return value.transpose(_FROM_TORCH[value.ndim])
