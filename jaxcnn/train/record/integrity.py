"""Whether a checkpoint is what was written, and whether numbers are fit to be written."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcnn.errors import TrainingError
from jaxcnn.train.trees import name_of

CHECKSUMS = "checksums.json"


class DamagedCheckpointError(Exception):
    """A checkpoint whose files are not those that were written; the message says which."""


def checksums(path: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a checkpoint but the list of checksums itself."""
    return {name: _checksum(path / name) for name in _files(path)}


def check_files(path: Path) -> None:
    """Check that the files of a checkpoint are those that were written, bit for bit.

    Raises:
        DamagedCheckpointError: if one is missing, added or changed.
        OSError: if one cannot be opened, which is no damage.
    """
    try:
        expected = json.loads((path / CHECKSUMS).read_text())
        found = checksums(path)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise DamagedCheckpointError(f"{CHECKSUMS} is missing or no JSON") from error
    if not isinstance(expected, dict) or not expected:
        raise DamagedCheckpointError(f"{CHECKSUMS} lists no files")
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise DamagedCheckpointError(f"{name} is missing")
        if name not in expected:
            raise DamagedCheckpointError(f"{name} does not belong to it")
        if expected[name] != found[name]:
            raise DamagedCheckpointError(f"{name} has changed since it was written")


def check_finite_state(state: dict[str, Any], step: int) -> None:
    """Check that every number of a state is finite.

    Raises:
        TrainingError: with the name of an array that has one which is not.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    for path, x in leaves:
        if not np.isfinite(np.asarray(x)).all():
            raise TrainingError(
                f"{name_of(path)} is not finite after step {step}; the last finite checkpoint is "
                "kept; try a smaller learning_rate in another --workdir"
            )


def check_finite_means(means: dict[str, float], step: int, split: str = "") -> None:
    """Check that metrics are finite.

    Args:
        means: the value of each metric.
        step: optimizer steps taken.
        split: what they are measured on, for the message.

    Raises:
        TrainingError: with the name of a metric that is not.

    >>> check_finite_means({"loss": float("nan")}, step=3)
    Traceback (most recent call last):
    jaxcnn.errors.TrainingError: the loss is nan at step 3; ...
    """
    for name, mean in means.items():
        if not math.isfinite(mean):
            raise TrainingError(
                f"the {f'{split} {name}'.strip()} is {mean} at step {step}; the last finite "
                "checkpoint is kept; try a smaller learning_rate in another --workdir"
            )


def _files(path: Path) -> list[str]:
    names = (str(file.relative_to(path)) for file in path.rglob("*") if not file.is_dir())
    return sorted(name for name in names if name != CHECKSUMS)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
