"""What a state dict is: arrays by name, whatever it comes wrapped in."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxcnn.errors import first_line

StateDict = dict[str, np.ndarray]
_COUNTERS = ("num_batches_tracked", "n_averaged")  # of BatchNorm and AveragedModel: no weights
_MAX_DEPTH = 3  # {"checkpoint": {"model": {"state_dict": ...}}}


def unwrap(given: Any, names: Collection[str]) -> tuple[dict[str, Any], str, str]:
    """Find the weights in a state dict and what wraps it.

    Wrappers put dicts around a state dict ({"state_dict": ..., "epoch": 3}) or one prefix in front
    of all its names ("module.", "_orig_mod.", "model."). Any dict and any prefix will do, if all of
    the names are there.

    Args:
        given: a state dict, a PyTorch module, name and value pairs, or a dict with one of them.
        names: of the weights, without a prefix.

    Returns:
        The dict that has the names, or most of them; their prefix there; the keys that lead to it,
        such as "['state_dict']".

    Raises:
        ValueError: if it is no state dict, or has all of the names in two places.

    >>> unwrap({"state_dict": {"module.0.bias": 1.0}, "epoch": 3}, ["0.bias"])
    ({'module.0.bias': 1.0}, 'module.', "['state_dict']")
    """
    outer = _as_mapping(given)
    dicts = dict(_dicts(_from_pairs(given) if outer is None else outer))
    counts = Counter(
        (place, prefix)
        for place, content in dicts.items()
        for name, value in content.items()
        if not isinstance(value, Mapping)
        for prefix in _prefixes(name, names)
    )
    complete = [key for key, count in counts.items() if count == len(names)]
    if len(complete) > 1:
        places = " and ".join(f"{place} {prefix}*".strip() for place, prefix in complete)
        raise ValueError(f"the state dict has the weights more than once: {places}; give one only")
    if 2 * max(counts.values(), default=0) <= len(names):  # another network's, if it is any
        place = max(dicts, key=lambda place: sum("." in name for name in dicts[place]))
        return dicts[place], "net.", place
    place, prefix = max(counts, key=lambda key: counts[key])
    return dicts[place], prefix, place


def as_weights(value: Any, name: str, dtype: Any = None) -> np.ndarray:
    """Return an array or tensor of floating point as NumPy's, in at least float32.

    Args:
        value: of any floating-point type.
        name: for the errors.
        dtype: to convert to; its own, but at least float32, unless given.

    Raises:
        ValueError: if it holds anything but finite numbers in floating point.

    >>> as_weights(jnp.ones(2, jnp.bfloat16), "net.0.bias").dtype
    dtype('float32')
    """
    array = as_array(value, name)
    if array.dtype.kind != "f":
        raise ValueError(f"{name} has dtype {array.dtype}; weights must be floating-point numbers")
    with np.errstate(over="ignore"):
        array = array.astype(dtype or array.dtype, copy=False)
    if not np.isfinite(array).all():
        raise ValueError(
            f"{name} has values that are NaN, infinite or beyond {array.dtype}; "
            "give weights from before the training diverged"
        )
    return array


def as_array(value: Any, name: str) -> np.ndarray:
    """Return an array or tensor of real numbers as NumPy's, half precision in float32.

    PyTorch has types and layouts that NumPy has not: bfloat16 becomes float32, sparse dense.

    Args:
        value: a tensor, an array, or what NumPy makes an array of.
        name: for the error.

    Raises:
        ValueError: if it holds no real numbers.

    >>> as_array([0.5, 1.5], "net.0.bias")
    array([0.5, 1.5])
    """
    try:
        array = np.asarray(_tensor_to_numpy(value) if hasattr(value, "detach") else value)
    except Exception as error:  # tensors without data, tracers, deleted arrays: of any type
        raise ValueError(f"{name} cannot be read as an array: {first_line(error)}") from error
    if jnp.issubdtype(array.dtype, np.floating) and array.dtype.itemsize < 4:
        array = array.astype(np.float32)
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise ValueError(
            f"{name} must be an array or tensor of real numbers in at most 64 bits, "
            f"got {type(value).__name__} of dtype {array.dtype}"
        )
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _tensor_to_numpy(tensor: Any) -> np.ndarray:
    tensor = tensor.detach().cpu().to_dense()
    if tensor.is_floating_point() and tensor.element_size() < 4:
        tensor = tensor.float()
    return tensor.numpy()


def _as_mapping(given: Any) -> Mapping | None:
    if isinstance(given, Mapping):
        return given
    is_module = hasattr(given, "named_parameters") and not isinstance(given, type)
    return given.state_dict() if is_module else None


def _from_pairs(given: Any) -> Mapping:
    """Return a dict of name and value pairs, such as those of `named_parameters()`."""
    pairs = list(given) if isinstance(given, Iterable) and not hasattr(given, "shape") else [given]
    if not all(
        isinstance(p, tuple | list) and len(p) == 2 and isinstance(p[0], str) for p in pairs
    ):
        raise ValueError(
            f"a state dict must be arrays or tensors by name, got {type(given).__name__}; "
            "give net.state_dict() or what load_state_dict reads from a file"
        )
    counts = Counter(name for name, _ in pairs)
    if len(counts) < len(pairs):
        raise ValueError(f"the state dict has {counts.most_common(1)[0][0]} more than once")
    return dict(pairs)


def _dicts(given: Any, place: str = "", depth: int = _MAX_DEPTH) -> Iterator[tuple[str, dict]]:
    """Yield the dicts in a dict, itself first, and the keys that lead to each."""
    content = _as_mapping(given)
    if content is None:
        return
    yield place, _by_name(content)
    for key, value in content.items() if depth else ():
        yield from _dicts(value, f"{place}[{key!r}]", depth - 1)


def _by_name(content: Mapping) -> dict[str, Any]:
    """Return the values by name, without the name that `torch.compile` gives to each layer."""
    names = {f"{name}".replace("_orig_mod.", ""): name for name in content}
    if len(names) < len(content):
        names = {f"{name}": name for name in content}
    return {name: content[key] for name, key in names.items() if not name.endswith(_COUNTERS)}


def _prefixes(name: str, names: Collection[str]) -> Iterator[str]:
    """Yield what is in front of one of `names`; '' or up to a dot."""
    starts = [0, *(i + 1 for i, character in enumerate(name) if character == ".")]
    return (name[:start] for start in starts if name[start:] in names)
