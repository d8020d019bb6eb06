"""The folder of a run on a remote store, such as gs://bucket/run, by way of etils' `epath`.

Such a store has no locks, no renaming of folders and nothing to flush: a file is there as a whole
or not at all. So a run works in a folder of this machine, with all that `Workdir` guarantees, and
copies it to the store with every save, in an order that a kill may interrupt anywhere:

1. Logs, then the files of a new checkpoint; last of all its checksums, without which it is none.
2. The checkpoint is read back and compared. Only then is an older one deleted, checksums first.

In place of the lock, the run that was started last owns the folder: an earlier one that is still
training notices before it writes, and stops.
"""

import contextlib
import json
import os
import platform
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxcnn.errors import ConfigError, DataError, TrainingError, first_line
from jaxcnn.train.record.checkpoint import FOLDER
from jaxcnn.train.record.integrity import CHECKSUMS
from jaxcnn.train.record.logs import Row
from jaxcnn.train.record.progress import Progress
from jaxcnn.train.record.workdir import Workdir
from jaxcnn.train.state import TrainState

OWNER = "owner.json"
_TRIES, _PAUSE_SECONDS = 3, 2.0


class TakenOverError(TrainingError):
    """Another process has been started in the same remote folder."""


class Mirror:
    """A folder of this machine, and its copy on a remote store.

    Args:
        remote: an `etils.epath.Path`.
        local: of this machine.
    """

    def __init__(self, remote: Any, local: Path):
        self._remote, self._local = remote, local
        self._there: dict[Path, tuple[int, int]] = {}  # size and time of what has been copied
        self._mine = {"host": platform.node(), "process": os.getpid(), "token": uuid.uuid4().hex}

    def claim(self) -> None:
        """Become the owner of the remote folder, which is created if it is missing."""
        self._write(Path(OWNER), json.dumps(self._mine).encode())

    def fetch(self) -> None:
        """Copy all that is there to this machine, except for checkpoints that are not complete."""
        if self._remote.is_dir():
            self._fetch(Path())

    def push(self) -> None:
        """Copy what is new or has changed to the store, and delete there what is gone here.

        Raises:
            TakenOverError: if another process owns the folder by now.
        """
        self._check_owner()
        here = {path: _identity(self._local / path) for path in _files(self._local)}
        new = [path for path, identity in here.items() if self._there.get(path) != identity]
        for path in sorted(new, key=lambda path: (_step_of(path) is not None, path)):
            if path.name != CHECKSUMS:
                self._copy(path, here[path])
        if completed := [path for path in new if path.name == CHECKSUMS]:
            self._check_owner()
            for path in completed:
                self._copy(path, here[path])
        for path in [path for path in self._there if path not in here and _step_of(path) is None]:
            (self._remote / path).unlink(missing_ok=True)
            del self._there[path]
        kept = {_step_of(path) for path in here}
        for step in sorted({step for path in self._there if (step := _step_of(path))} - kept):
            folder = self._remote / FOLDER / step
            (folder / CHECKSUMS).unlink(missing_ok=True)
            folder.rmtree()
            self._there = {
                path: each for path, each in self._there.items() if _step_of(path) != step
            }

    def _fetch(self, folder: Path) -> None:
        for path in sorted((self._remote / folder).iterdir()):
            place = folder / path.name
            if path.is_dir():
                is_checkpoint = folder == Path(FOLDER)
                if is_checkpoint and not (path / CHECKSUMS).exists():
                    # A save was interrupted: to be deleted with the next one.
                    self._there[place / CHECKSUMS] = (0, 0)
                else:
                    self._fetch(place)
            elif place != Path(OWNER):
                (self._local / folder).mkdir(parents=True, exist_ok=True)
                (self._local / place).write_bytes(path.read_bytes())
                self._there[place] = _identity(self._local / place)

    def _copy(self, path: Path, identity: tuple[int, int]) -> None:
        """Copy a file; if it is a checkpoint's, read it back."""
        content = (self._local / path).read_bytes()
        self._write(path, content)
        if _step_of(path) is not None and (self._remote / path).read_bytes() != content:
            raise OSError(f"{self._remote / path} is not what was written")
        self._there[path] = identity

    def _write(self, path: Path, content: bytes) -> None:
        place = self._remote / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)

    def _check_owner(self) -> None:
        owner = json.loads((self._remote / OWNER).read_text())
        if owner != self._mine:
            raise TakenOverError(
                f"process {owner.get('process')} on {owner.get('host')} has been started in the "
                f"workdir {str(self._remote)!r} as well, and goes on with this run from its last "
                "checkpoint there; one process at a time can train in it"
            )


class RemoteWorkdir(Workdir):
    """A `Workdir` on a remote store: a folder of this machine that is copied there.

    Args:
        folder: an `etils.epath.Path`, such as of gs://bucket/run.
        settings: as for `Workdir`.
        *args: likewise.

    Raises:
        ConfigError: if the store cannot be read or written, or holds another run.
    """

    def __init__(self, folder: Any, settings: dict[str, Any], *args: Any):
        self._here = Path(tempfile.mkdtemp(prefix="jaxcnn-"))
        self._mirror, self._remote = Mirror(folder, self._here), folder
        try:
            with self._reaching(ConfigError, "give a --workdir that can"):
                self._mirror.claim()
                self._mirror.fetch()
            super().__init__(self._here, settings, *args)
        except BaseException:
            shutil.rmtree(self._here, ignore_errors=True)
            raise

    @property
    def name(self) -> str:
        """The URL of the folder."""
        return str(self._remote)

    def __exit__(self, *error: object) -> None:
        """Copy the curves of a run that was stopped, too, if they can be."""
        super().__exit__(*error)
        if not isinstance(error[1], TakenOverError):
            with contextlib.suppress(Exception):
                self._mirror.push()
        shutil.rmtree(self._here, ignore_errors=True)

    def save(
        self, state: TrainState, progress: Progress, step_rows: list[Row], row: Row | None = None
    ) -> None:
        """Save here, and then there; see `Workdir.save`."""
        super().save(state, progress, step_rows, row)
        self._push("what is there stays; give the same command again, and it goes on from that")

    def finish(self) -> None:
        """Plot the curves and record the result, here and there."""
        super().finish()
        self._push("the run is complete but for its last files; give the same command for them")

    def _push(self, advice: str) -> None:
        with self._reaching(TrainingError, advice):
            for number in range(1, _TRIES):
                try:
                    self._mirror.push()
                except TrainingError:
                    raise
                except Exception:
                    time.sleep(number * _PAUSE_SECONDS)
                else:
                    return
            self._mirror.push()

    @contextlib.contextmanager
    def _reaching(self, kind: type[Exception], advice: str) -> Iterator[None]:
        """Turn what a store's library raises, which is of many kinds, into an error of one line."""
        try:
            yield
        except (ConfigError, TrainingError):
            raise
        except Exception as error:
            raise kind(
                f"the workdir {self.name!r} cannot be read or written "
                f"({first_line(error)}); {advice}"
            ) from error


@contextlib.contextmanager
def fetched(folder: Any) -> Iterator[Path]:
    """Give a copy of a run's folder on this machine: of one on a store, all that is complete there.

    Args:
        folder: a path of this machine, which is given as it is, or an `etils.epath.Path`.

    Raises:
        ConfigError: if the store cannot be read.
    """
    if isinstance(folder, Path):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="jaxcnn-") as here:
        for number in range(_TRIES):  # a run that is training may delete what is being read
            copy = Path(here) / f"{number}"
            copy.mkdir()
            try:
                Mirror(folder, copy).fetch()
                break
            except Exception as error:
                if number == _TRIES - 1:
                    reason = first_line(error)
                    raise ConfigError(f"cannot read {str(folder)!r} ({reason})") from error
        try:
            yield copy
        except (ConfigError, DataError) as error:
            raise type(error)(f"{error}".replace(str(copy), str(folder))) from None


def _files(folder: Path) -> list[Path]:
    """Return the files below a folder, but for hidden ones, which belong to this machine alone."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return [path for path in paths if not any(part.startswith(".") for part in path.parts[:2])]


def _step_of(path: Path) -> str | None:
    """Return the step of the checkpoint that a file belongs to, as the name of its folder."""
    return path.parts[1] if path.parts[0] == FOLDER and len(path.parts) > 2 else None


def _identity(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
