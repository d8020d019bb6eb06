"""The one file that knows Orbax: checkpoints in `<folder>/<step>/`.

| in `<step>/`     |                                                                    |
|------------------|--------------------------------------------------------------------|
| `state/`         | the `TrainState`, written by Orbax                                  |
| `progress.json`  | where the run is: see `Progress`                                    |
| `checksums.json` | SHA-256 of every other file; a checkpoint is good if they all match |

A checkpoint is written under a hidden name and appears under its step number when it is whole and
on disk; only then is an older one deleted, by way of a hidden name too. So a kill at any moment
leaves whole checkpoints and hidden folders, which the next run clears away.
"""

import contextlib
import dataclasses
import errno
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxcnn.errors import ConfigError, TrainingError
from jaxcnn.files import sync
from jaxcnn.train.state import TrainState

CHECKSUMS = "checksums.json"
PROGRESS = "progress.json"


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run is, beside its state.

    Attributes:
        epoch: finished epochs, evaluation included.
        position: steps taken in the epoch under way.
        loss_sum: over the examples of those steps, in nats.
        correct: of those examples.
        count: of those examples.
        seconds: that those steps took.
        test_accuracy: of the epoch that ended here; None within an epoch.
    """

    epoch: int = 0
    position: int = 0
    loss_sum: float = 0.0
    correct: float = 0.0
    count: float = 0.0
    seconds: float = 0.0
    test_accuracy: float | None = None


class Checkpoints:
    """The last two checkpoints of a run, and the best of those at an epoch's end.

    Of the last two, the older is what a run goes on from if the newer is damaged.

    Args:
        folder: made if it is missing; what an interrupted run left half done is cleared away.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._orbax = ocp.Checkpointer(ocp.StandardCheckpointHandler())
        for path in self.folder.glob(".replaced-*"):  # killed before its successor took its place
            place = self.folder / path.name.removeprefix(".replaced-")
            if not place.exists():
                path.rename(place)
        self._clear_away()

    @property
    def steps(self) -> list[int]:
        """The steps that are there, in order."""
        names = (path.name for path in self.folder.iterdir())
        return sorted(int(name) for name in names if name.isdecimal() and str(int(name)) == name)

    def save(self, step: int, state: TrainState, progress: Progress) -> None:
        """Save a state; return when it is on disk.

        Args:
            step: its step count; a checkpoint of the same step is replaced.
            state: on any number of devices.
            progress: of the run; its `test_accuracy` decides which checkpoint is the best.

        Raises:
            TrainingError: if a number in the state is not finite, or it cannot be written; the
                checkpoints that were there stay.
        """
        _check_finite(state, step)
        unfinished = self._path(step, "unfinished")
        try:
            unfinished.mkdir()
            self._orbax.save(unfinished / "state", args=ocp.args.StandardSave(_as_dict(state)))
            _write(unfinished / PROGRESS, dataclasses.asdict(progress))
            _write(unfinished / CHECKSUMS, _checksums(unfinished))
            sync([unfinished, *unfinished.rglob("*")])
            if self._path(step).exists():
                self._path(step).rename(self._path(step, "replaced"))
            unfinished.rename(self._path(step))
            sync([self.folder])
        except Exception as error:  # Orbax and TensorStore raise many kinds
            shutil.rmtree(unfinished, ignore_errors=True)
            kept = f"that of step {self.steps[-1]} is kept" if self.steps else "there is none yet"
            raise TrainingError(
                f"the checkpoint of step {step} cannot be saved in {str(self.folder)!r} "
                f"({_reason(error)}); {kept}; make room there, and give the same command again"
            ) from error
        with contextlib.suppress(OSError):  # what is left over is cleared away another time
            self._prune()

    def restore(self, step: int, state: TrainState) -> tuple[TrainState, Progress]:
        """Return the state of a saved step, and the progress of the run.

        Args:
            step: one of `steps`.
            state: gives the structure, the shapes and the devices.

        Raises:
            DamagedCheckpointError: if a file of it is not what was written.
            ConfigError: if it is whole, but of another network or optimizer.
        """
        path = self._path(step)
        _check_files(path)
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, _as_dict(state))
        try:
            difference = _difference(self._shapes(path), _by_name(target))
            if not difference:
                saved = self._orbax.restore(path / "state", args=ocp.args.StandardRestore(target))
                progress = _read_progress(path)
        except Exception as error:
            raise ConfigError(
                f"the checkpoint {str(path)!r} is whole, but cannot be read with Orbax "
                f"{ocp.__version__} ({_reason(error)}); use the versions in its run.json"
            ) from error
        if difference:
            raise ConfigError(
                f"the checkpoint {str(path)!r} is of another network, optimizer or precision "
                f"(JAX_ENABLE_X64): {difference}; give another --workdir"
            )
        if int(saved["step"]) != step:
            raise DamagedCheckpointError(f"it is a copy of that of step {int(saved['step'])}")
        return TrainState(**saved), progress

    def restore_newest(
        self, state: TrainState, warn: Callable[[str], None]
    ) -> tuple[TrainState, Progress] | None:
        """Return the newest checkpoint that is good, or None if there is none at all.

        Damaged ones that are newer are moved to `<folder>/../damaged/`, not deleted.

        Args:
            state: as in `restore`.
            warn: called with one line for each damaged checkpoint.

        Raises:
            ConfigError: as in `restore`, or if all are damaged; then nothing is moved.
            OSError: if one cannot be opened: that is no damage, and may pass.
        """
        damaged: dict[int, DamagedCheckpointError] = {}
        for step in reversed(self.steps):
            try:
                restored = self.restore(step, state)
            except DamagedCheckpointError as error:
                damaged[step] = error
                continue
            for newer, reason in damaged.items():
                warn(f"checkpoint {newer} is damaged and is now {self._set_aside(newer)}: {reason}")
            return restored
        if damaged:
            reasons = "; ".join(f"{step}: {reason}" for step, reason in damaged.items())
            raise ConfigError(
                f"no checkpoint in {str(self.folder)!r} is good ({reasons}); they stay as they "
                "are; give another --workdir to start anew"
            )
        return None

    def _set_aside(self, step: int) -> Path:
        """Move a checkpoint into the folder 'damaged'; return where it is."""
        aside = self.folder.parent / "damaged"
        aside.mkdir(exist_ok=True)
        places = (aside / f"{step}-{number}" for number in itertools.count())
        place = next(place for place in places if not place.exists())
        shutil.move(self._path(step), place)
        return place

    def close(self) -> None:
        """Free what Orbax holds."""
        self._orbax.close()

    def _path(self, step: int, hidden: str = "") -> Path:
        return self.folder / (f".{hidden}-{step}" if hidden else f"{step}")

    def _shapes(self, path: Path) -> dict[str, tuple]:
        """Return the shapes and dtypes of a saved state, without reading its numbers."""
        metadata = self._orbax.metadata(path / "state")
        return _by_name(metadata.item_metadata.tree)

    def _prune(self) -> None:
        """Delete all but the last two and the best."""
        keep, accuracies = set(self.steps[-2:]), {}
        for step in self.steps:
            try:
                accuracy = _read_progress(self._path(step)).test_accuracy
            except (OSError, ValueError, TypeError):  # it is damaged: for somebody to look at
                keep.add(step)
            else:
                if accuracy is not None:
                    accuracies[step] = accuracy
        if accuracies:
            keep.add(max(accuracies, key=accuracies.__getitem__))
        for step in set(self.steps) - keep:
            self._path(step).rename(self._path(step, "deleted"))
        self._clear_away()

    def _clear_away(self) -> None:
        for kind in ("unfinished", "replaced", "deleted"):
            for path in self.folder.glob(f".{kind}-*"):
                shutil.rmtree(path)


class DamagedCheckpointError(Exception):
    """A checkpoint whose files are not those that were written; the message says which."""


def _as_dict(state: TrainState) -> dict[str, Any]:
    return {name: getattr(state, name) for name in state.__dataclass_fields__}


def _by_name(tree: Any) -> dict[str, tuple]:
    """Return (shape, dtype) of every array of a tree, by names such as 'params/conv1/kernel'."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (tuple(x.shape), np.dtype(x.dtype))
        for path, x in leaves
    }


def _difference(saved: dict[str, tuple], expected: dict[str, tuple]) -> str:
    """Return the first array that differs, a parameter if there is one; '' if none does."""
    for name in sorted(expected | saved, key=lambda name: not name.startswith("params/")):
        there, here = (
            "x".join(map(str, arrays[name][0])) + f" {arrays[name][1]}"
            if name in arrays
            else "none"
            for arrays in (saved, expected)
        )
        if there != here:
            return f"{name} is {there} there and {here} here"
    return ""


def _check_finite(state: TrainState, step: int) -> None:
    leaves, _ = jax.tree_util.tree_flatten_with_path(_as_dict(state))
    for path, x in leaves:
        if not np.isfinite(np.asarray(x)).all():
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise TrainingError(
                f"{name} is not finite after step {step}; the last finite checkpoint is kept; try "
                "a smaller learning_rate in another --workdir"
            )


def _files(path: Path) -> list[str]:
    """Return every file below a checkpoint but the list of checksums."""
    names = (str(file.relative_to(path)) for file in path.rglob("*") if not file.is_dir())
    return sorted(name for name in names if name != CHECKSUMS)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checksums(path: Path) -> dict[str, str]:
    return {name: _checksum(path / name) for name in _files(path)}


def _check_files(path: Path) -> None:
    """Raise DamagedCheckpointError unless the files are those that were written, bit for bit."""
    try:
        expected = json.loads((path / CHECKSUMS).read_text())
        found = _checksums(path)
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


def _read_progress(path: Path) -> Progress:
    return Progress(**json.loads((path / PROGRESS).read_text()))


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(f"{json.dumps(content, indent=2)}\n")


def _reason(error: BaseException) -> str:
    """Return the system's own words if they are in the error's, or its first 200 characters."""
    text = f"{error}".strip() or type(error).__name__
    for number in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO):
        if os.strerror(number) in text:
            return os.strerror(number)
    return text.splitlines()[0][:200]
