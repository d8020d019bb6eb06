"""The one file that knows Orbax: checkpoints in `<folder>/<step>/`.

| in `<step>/`     |                                                                    |
|------------------|--------------------------------------------------------------------|
| `state/`         | the `TrainState`, written by Orbax                                  |
| `progress.json`  | where the run is: see `Progress`                                    |
| `checksums.json` | SHA-256 of every other file; a checkpoint is good if they all match |

A checkpoint is written under a hidden name. Once it is complete and on disk, it is renamed to its
step number, and only then is an older one deleted, also by way of a hidden name. A kill at any
moment therefore leaves complete checkpoints and hidden folders, which the next run deletes.
"""

import contextlib
import errno
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxcnn.errors import ConfigError, TrainingError, first_line
from jaxcnn.files import local_path, sync
from jaxcnn.train.record.integrity import (
    CHECKSUMS,
    DamagedCheckpointError,
    check_files,
    check_finite_state,
    checksums,
)
from jaxcnn.train.record.progress import Progress
from jaxcnn.train.state import TrainState
from jaxcnn.train.trees import Shapes, first_difference, shapes_by_name

FOLDER = "checkpoints"  # in the folder of a run
PROGRESS = "progress.json"


class MissingCheckpointError(ConfigError):
    """There is no checkpoint of a step, or no longer: a run keeps the last two and the best."""


class Checkpoints:
    """The checkpoints of a run, for reading, while it trains too: nothing in the folder changes.

    Args:
        folder: 'checkpoints' in the folder of a run.

    Raises:
        ConfigError: if it is not the folder of a run's checkpoints.
    """

    def __init__(self, folder: str | Path):
        self.folder = local_path(folder, "folder").absolute()
        self._check_folder()
        # Of several processes, one alone reads or writes: Orbax is not to wait for the others.
        here = jax.process_index()
        options = ocp.options.MultiprocessingOptions(
            primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"process_{here}"
        )
        if jax.process_count() == 1:
            options = ocp.options.MultiprocessingOptions()
        handler = ocp.StandardCheckpointHandler(multiprocessing_options=options)
        self._orbax = ocp.Checkpointer(handler, multiprocessing_options=options)

    def _check_folder(self) -> None:
        """Check that the folder holds a checkpoint, or stands beside a run's record."""
        begun = self.folder.name == FOLDER and (self.folder.parent / "run.json").is_file()
        if self.folder.is_dir() and (begun or any(self.folder.glob(f"[0-9]*/{CHECKSUMS}"))):
            return
        inside = self.folder / FOLDER
        advice = repr(str(inside)) if inside.is_dir() else f"the folder {FOLDER!r} of a workdir"
        what = "holds no checkpoints" if self.folder.is_dir() else "is no folder"
        raise ConfigError(f"folder {str(self.folder)!r} {what}; give {advice}")

    @property
    def steps(self) -> list[int]:
        """The steps that have a checkpoint, in order."""
        names = (path.name for path in self.folder.iterdir())
        return sorted(int(name) for name in names if name.isdecimal() and str(int(name)) == name)

    def best(self) -> int | None:
        """Return the step of the highest accuracy on the set that is held out.

        None if no checkpoint is of the end of an epoch that was evaluated.
        """
        accuracies = {}
        for step in self.steps:
            with contextlib.suppress(OSError, ValueError, TypeError):  # damaged, or just deleted
                accuracies[step] = _read_progress(self._path(step)).accuracy
        known = {step: accuracy for step, accuracy in accuracies.items() if accuracy is not None}
        return max(known, key=known.__getitem__) if known else None

    def restore(self, step: int, state: TrainState | None = None) -> tuple[TrainState, Progress]:
        """Return the state of a saved step, and the progress of the run.

        Args:
            step: one of `steps`.
            state: gives the structure, the shapes and the devices; None for those that were saved,
                on the default device, with the optimizer's state as plain lists and dicts.

        Raises:
            DamagedCheckpointError: if one of its files is not what was written.
            MissingCheckpointError: if there is none, or the run has deleted it meanwhile.
            ConfigError: if it is undamaged, but of another network or optimizer.
            OSError: if it cannot be opened, or there is no room for a copy in the folder for
                temporary files.
        """
        while True:
            folder = self._identity(step)
            try:
                restored = self._restore(step, state)
            except (DamagedCheckpointError, ConfigError, OSError):
                if self._identity(step) == folder:
                    raise
            else:
                if self._identity(step) == folder:
                    return restored
            # The run has replaced it in the meantime: read its successor.

    def _identity(self, step: int) -> tuple[int, int]:
        """Return what tells a checkpoint's folder from one that takes its place."""
        try:
            stat = self._path(step).stat()
        except FileNotFoundError:
            there = ", ".join(map(str, self.steps)) or "none yet"
            raise MissingCheckpointError(
                f"there is no checkpoint of step {step} in {str(self.folder)!r}; there are: {there}"
            ) from None
        return stat.st_dev, stat.st_ino

    def _restore(self, step: int, state: TrainState | None) -> tuple[TrainState, Progress]:
        with self._held(step) as path:
            check_files(path)
            try:
                if state is None:
                    target = self._saved_structure(path)
                else:
                    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, _as_dict(state))
                difference = first_difference(self._shapes(path), shapes_by_name(target))
                if not difference:
                    args = ocp.args.StandardRestore(target)
                    saved = self._orbax.restore(path / "state", args=args)
                    progress = _read_progress(path)
            except Exception as error:
                raise ConfigError(
                    f"the checkpoint {str(self._path(step))!r} is whole, but cannot be read with "
                    f"Orbax {ocp.__version__} ({_reason(error)}); use the versions in its run.json"
                ) from error
        if difference:
            name, there, here = difference
            raise ConfigError(
                f"the checkpoint {str(self._path(step))!r} is of another network, optimizer or "
                f"precision (JAX_ENABLE_X64): {name} is {there} there and {here} here; give "
                "another --workdir"
            )
        if int(saved["step"]) != step:
            raise DamagedCheckpointError(f"it is a copy of that of step {int(saved['step'])}")
        return TrainState(**saved), progress

    @contextlib.contextmanager
    def _held(self, step: int) -> Iterator[Path]:
        """Give the path of a checkpoint that nobody deletes: of a copy, while it is read."""
        with tempfile.TemporaryDirectory(prefix="jaxcnn-") as folder:
            copy = Path(folder) / f"{step}"
            try:
                shutil.copytree(self._path(step), copy)
            except shutil.Error as error:  # of each file: its path, that of its copy, the reason
                raise OSError(f"cannot copy {error.args[0][0][0]}: {error.args[0][0][2]}") from None
            yield copy

    def restore_newest(
        self, state: TrainState | None, warn: Callable[[str], None]
    ) -> tuple[TrainState, Progress] | None:
        """Return the newest good checkpoint, or None if there is no checkpoint.

        Args:
            state: as in `restore`.
            warn: called with one line for each newer checkpoint, which is damaged.

        Raises:
            ConfigError: as in `restore`, or if all are damaged.
            OSError: if one cannot be opened, which is no damage and may pass.
        """
        while True:
            steps = self.steps
            try:
                return self._restore_newest(steps, state, warn)
            except MissingCheckpointError:
                if self.steps == steps:
                    raise
            # The run has deleted one in the meantime, since it has saved a newer one.

    def _restore_newest(
        self, steps: list[int], state: TrainState | None, warn: Callable[[str], None]
    ) -> tuple[TrainState, Progress] | None:
        damaged: dict[int, DamagedCheckpointError] = {}
        for step in reversed(steps):
            try:
                restored = self.restore(step, state)
            except DamagedCheckpointError as error:
                damaged[step] = error
                continue
            for newer, reason in damaged.items():
                warn(f"checkpoint {newer} is damaged and {self._pass_over(newer)}: {reason}")
            return restored
        if damaged:
            reasons = "; ".join(f"{step}: {reason}" for step, reason in damaged.items())
            raise ConfigError(
                f"no checkpoint in {str(self.folder)!r} is good ({reasons}); they stay as they "
                "are; give another --workdir to start anew"
            )
        return None

    def _pass_over(self, step: int) -> str:
        """Return what becomes of a damaged checkpoint, in words."""
        return "is passed over"

    def close(self) -> None:
        """Release Orbax's resources."""
        self._orbax.close()

    def _path(self, step: int, hidden: str = "") -> Path:
        return self.folder / (f".{hidden}-{step}" if hidden else f"{step}")

    def _shapes(self, path: Path) -> Shapes:
        """Return the shapes and dtypes of a saved state, without reading its numbers."""
        return shapes_by_name(self._saved_structure(path))

    def _saved_structure(self, path: Path) -> Any:
        """Return the tree of a saved state, with the shape and dtype of each array."""
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        saved = self._orbax.metadata(path / "state").item_metadata.tree
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), saved
        )


class CheckpointWriter(Checkpoints):
    """The checkpoints of the run that this process is training: the last two, and the best.

    If the last one is damaged, the run resumes from the one before it. The best is that of the
    highest accuracy, on the validation or else the test set, among those saved at the end of an
    epoch.

    Args:
        folder: created if it is missing; what an interrupted run left unfinished is deleted, so no
            other process may be writing there (`Workdir` holds a lock).
    """

    def __init__(self, folder: str | Path):
        super().__init__(folder)
        for path in self.folder.glob(".replaced-*"):  # killed before its successor took its place
            place = self.folder / path.name.removeprefix(".replaced-")
            if not place.exists():
                path.rename(place)
        self._clear_away()

    def _check_folder(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    def save(self, step: int, state: TrainState, progress: Progress) -> None:
        """Save a state; return once it is on disk.

        Args:
            step: its step count; a checkpoint of the same step is replaced.
            state: on any number of devices.
            progress: of the run; its `accuracy` decides which checkpoint is the best.

        Raises:
            TrainingError: if a number in the state is not finite, or it cannot be written; the
                existing checkpoints stay.
        """
        check_finite_state(_as_dict(state), step)
        unfinished = self._path(step, "unfinished")
        try:
            unfinished.mkdir()
            self._orbax.save(unfinished / "state", args=ocp.args.StandardSave(_as_dict(state)))
            _write(unfinished / PROGRESS, progress.to_dict())
            _write(unfinished / CHECKSUMS, checksums(unfinished))
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
        with contextlib.suppress(OSError):  # the next save or start deletes what is left
            self._prune()

    @contextlib.contextmanager
    def _held(self, step: int) -> Iterator[Path]:
        yield self._path(step)  # this process alone deletes

    def _pass_over(self, step: int) -> str:
        """Move a damaged checkpoint into the folder `damaged`, beside this one."""
        aside = self.folder.parent / "damaged"
        aside.mkdir(exist_ok=True)
        places = (aside / f"{step}-{number}" for number in itertools.count())
        place = next(place for place in places if not place.exists())
        shutil.move(self._path(step), place)
        return f"is now {place}"

    def _prune(self) -> None:
        """Delete all but the last two and the best."""
        keep = {*self.steps[-2:], self.best()}
        for step in self.steps:
            try:
                _read_progress(self._path(step))
            except (OSError, ValueError, TypeError):  # damaged: kept for inspection
                keep.add(step)
        for step in set(self.steps) - keep:
            self._path(step).rename(self._path(step, "deleted"))
        self._clear_away()

    def _clear_away(self) -> None:
        for kind in ("unfinished", "replaced", "deleted"):
            for path in self.folder.glob(f".{kind}-*"):
                shutil.rmtree(path)


def _as_dict(state: TrainState) -> dict[str, Any]:
    fields = {name: getattr(state, name) for name in state.__dataclass_fields__}
    if not state.ema:
        del fields["ema"]  # as in the checkpoints of before there was one
    return fields


def _read_progress(path: Path) -> Progress:
    return Progress.from_dict(json.loads((path / PROGRESS).read_text()))


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(f"{json.dumps(content, indent=2)}\n")


def _reason(error: BaseException) -> str:
    """Return the system's own words if the error contains them, else its first line."""
    for number in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO):
        if os.strerror(number) in f"{error}":
            return os.strerror(number)
    return first_line(error)
