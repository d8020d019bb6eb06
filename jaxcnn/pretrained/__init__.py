"""Trained models that come with the package: weights, an ONNX program and a lab note of each.

| in this folder     |                                                                         |
|--------------------|-------------------------------------------------------------------------|
| `NAME.safetensors` | the weights, as a state dict for PyTorch (see `jaxcnn.interop`)         |
| `NAME.onnx`        | the same as a program for onnxruntime and others                        |
| `NAME.json`        | the lab note: SHA-256 of the files; loss and accuracy on the test set;  |
|                    | settings, data, versions and date of the run; its epochs                |
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from jaxcnn.errors import ConfigError, DataError, did_you_mean
from jaxcnn.files import local_path, write_atomically
from jaxcnn.interop import from_torch, load_state_dict
from jaxcnn.train.record.workdir import read_run
from jaxcnn.trained import Trained, as_config, load, rebuild_model

__all__ = ["FOLDER", "PREFIX", "load_pretrained", "pretrained_names", "write_pretrained"]

FOLDER = Path(__file__).parent
PREFIX = "pretrained:"  # of a name, where a command takes the folder of a run as well
_SUFFIXES = (".safetensors", ".onnx")


def pretrained_names() -> list[str]:
    """Return the names that `load_pretrained` accepts.

    >>> pretrained_names()
    ['tiny']
    """
    return sorted(note.stem for note in FOLDER.glob("*.json"))


def load_pretrained(name: str) -> Trained:
    """Load a trained model that comes with the package; nothing is downloaded.

    Args:
        name: one of `pretrained_names()`: 'tiny' knows Fashion-MNIST.

    Returns:
        What `jaxcnn.load` would return of the model's run, but for its folder.

    Raises:
        ConfigError: if there is no such model.
        DataError: if its files are not those that came with the package.

    >>> import jaxcnn
    >>> test = jaxcnn.data.load_fashion_mnist_sample("test")
    >>> load_pretrained("tiny").predict(test.images[:1]).names
    ['Ankle boot']
    """
    names = pretrained_names()
    if name not in names:
        hint = did_you_mean(f"{name}", names)
        raise ConfigError(f"unknown pretrained model {name!r}{hint}; accepted: {', '.join(names)}")
    return read_pretrained(FOLDER, name)


def read_pretrained(folder: Path, name: str) -> Trained:
    """Load what `write_pretrained` has written.

    Args:
        folder: with the files.
        name: of the model.

    Raises:
        DataError: if a file is missing, or not as it was written.
    """
    weights = folder / f"{name}.safetensors"
    try:
        note = json.loads((folder / f"{name}.json").read_text())
        if _digest(weights) != note["sha256"][weights.name]:
            raise ValueError("its SHA-256 is not the one in the lab note")
        run, history, step = note["run"], note["epochs"], note["step"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{weights} is missing or not as it came with jaxcnn ({error}); install jaxcnn again"
        ) from error
    config = as_config(run["config"])
    model = rebuild_model(run, config, folder)
    return Trained(
        model=model,
        variables=from_torch(load_state_dict(weights), model),
        config=config,
        class_names=tuple(run["class_names"]),
        image_shape=tuple(run["image_shape"]),
        step=step,
        history=history,
        digests=run["data"],
    )


def write_pretrained(
    run_folder: str | Path, name: str, which: str | int = "best", folder: Path = FOLDER
) -> list[Path]:
    """Write what a run has trained as files that come with the package; they replace older ones.

    Args:
        run_folder: of a run on a data set that has a name.
        name: that `load_pretrained` is to accept.
        which: the checkpoint; see `jaxcnn.load`.
        folder: for the files.

    Returns:
        The paths of the weights, the program and the lab note, which comes last.

    Raises:
        ConfigError: as `jaxcnn.load` and `Trained.export`.
        DataError: likewise.
    """
    here = local_path(run_folder, "run_folder")
    trained = load(here, which)
    test = trained.evaluate("test")
    files = [trained.export(folder / f"{name}{suffix}", force=True) for suffix in _SUFFIXES]
    note = {
        "sha256": {file.name: _digest(file) for file in files},
        "test": {"count": test.count, "loss": float(test.loss), "accuracy": test.accuracy},
        "step": trained.step,
        "run": _facts(read_run(here)),
        "epochs": trained.history,
    }
    path = folder / f"{name}.json"
    write_atomically(path, json.dumps(note, indent=1) + "\n")
    return [*files, path]


def _facts(run: dict[str, Any]) -> dict[str, Any]:
    """Return what a lab note keeps of a run's record: its last start, and no folders."""
    start = {key: value for key, value in run["starts"][-1].items() if key != "platform"}
    config = run["config"] | {"data_dir": "", "data_source": ""}
    return run | {"config": config, "starts": [start]}


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
