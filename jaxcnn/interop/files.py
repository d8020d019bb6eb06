"""State dicts in files."""

import importlib
import io
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxcnn.errors import first_line
from jaxcnn.files import local_path, write_atomically
from jaxcnn.interop.state_dict import StateDict, as_array

_TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")


def load_state_dict(path: str | os.PathLike) -> dict[str, Any]:
    """Read a state dict from a `.safetensors` or a `.pt` file; neither can run code.

    Args:
        path: `.pt` files (also `.pth`, `.ckpt`, `.bin`) take PyTorch, and are read with
            `weights_only=True`.

    Returns:
        What the file has, with arrays for tensors, in float32 where they are in half precision. A
        training checkpoint keeps its other entries; `from_torch` finds the weights among them.

    Raises:
        ValueError: if the name ends otherwise or is no path of this machine, or the content is not
            a state dict.
        OSError: if the file cannot be read, such as FileNotFoundError.
        ImportError: if PyTorch or safetensors is needed and not installed.
    """
    path = local_path(path, "path")
    library = _library(path)
    with path.open("rb") as file:  # the errors of the file system are Python's own
        try:
            if library.__name__ == "torch":
                content = library.load(file, map_location="cpu", weights_only=True)
            else:
                content = library.load_file(path)
        except Exception as error:  # a damaged file makes the libraries raise errors of any type
            reason = first_line(error).split(". ")[0]
            raise ValueError(
                f"{path} is not a state dict of tensors alone, such as save_state_dict or "
                f"torch.save(net.state_dict(), path) writes ({type(error).__name__}: {reason})"
            ) from error
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{path} is not a state dict but one object of type {type(content).__name__}; "
            "save net.state_dict()"
        )
    return _to_arrays(content, f"{path}: ")


def save_state_dict(
    state_dict: StateDict, path: str | os.PathLike, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a state dict to a `.safetensors` or a `.pt` file, half precision as float32.

    Args:
        state_dict: from `to_torch` or `to_torchvision`.
        path: `.pt` files (also `.pth`, `.ckpt`, `.bin`) take PyTorch.
        metadata: text by name, for the header of a `.safetensors` file (`safe_open` reads it); the
            others, which are zip archives, have it as JSON in 'archive/metadata.json'.

    Raises:
        ValueError: if the name ends otherwise or is no path of this machine, or the state dict is
            not arrays by name.
        OSError: if the file cannot be written, such as FileNotFoundError; an old file stays.
        ImportError: if PyTorch or safetensors is needed and not installed.
    """
    path = local_path(path, "path")
    library = _library(path)
    if not isinstance(state_dict, Mapping) or not all(isinstance(k, str) for k in state_dict):
        raise ValueError(
            f"the state dict must be a dict of arrays by name, got {type(state_dict).__name__}; "
            "to_torch(variables, model) returns one"
        )
    arrays = {name: as_array(value, name).copy(order="C") for name, value in state_dict.items()}
    write_atomically(path, _serialize(arrays, library, metadata))


def _library(path: Path) -> Any:
    """Return the library for a file of this name."""
    suffix = path.suffix.lower()
    if suffix != ".safetensors" and suffix not in _TORCH_SUFFIXES:
        others = ", ".join(_TORCH_SUFFIXES[1:])
        raise ValueError(f"{path} must end in .safetensors or .pt (or {others})")
    package = "safetensors" if suffix == ".safetensors" else "torch"
    try:
        return importlib.import_module("torch" if package == "torch" else "safetensors.numpy")
    except ImportError as error:
        raise ImportError(f"{path} takes the package {package}: pip install {package}") from error


def _serialize(arrays: StateDict, library: Any, metadata: Mapping[str, str] | None) -> bytes:
    if library.__name__ != "torch":
        return library.save(arrays, metadata and dict(metadata))
    buffer = io.BytesIO()
    library.save({name: library.from_numpy(value) for name, value in arrays.items()}, buffer)
    if metadata:  # beside what PyTorch reads, in the folder that it looks into
        with zipfile.ZipFile(buffer, "a") as archive:
            archive.writestr("archive/metadata.json", json.dumps(dict(metadata), indent=1))
    return buffer.getvalue()


def _to_arrays(value: Any, place: str) -> Any:
    """Return nested dicts with arrays for tensors; all else stays as it is."""
    if isinstance(value, Mapping):
        return {key: _to_arrays(item, f"{place}{key}.") for key, item in value.items()}
    return as_array(value, place.removesuffix(".")) if hasattr(value, "shape") else value
