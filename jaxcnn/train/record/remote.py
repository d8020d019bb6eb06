"""The folder of a run on a remote store, such as gs://bucket/run, by way of etils' `epath`.

Such a store has no locks, no folders to rename and nothing to flush: an object is there as a whole
or not at all. So a run works in a folder of this machine, with all that `Workdir` guarantees, and
copies it to the store with every save, in an order that a kill may interrupt anywhere:

1. `run.json` and the logs, whose rows may run ahead of the checkpoints.
2. The new checkpoint, `checkpoints/<step>-<SHA-256>.tar`, a name that no other has. It is read back
   and compared.
3. `checkpoints.json`, which lists the checkpoints: with it the new one is there, an older one gone.
4. Objects that are no longer listed are deleted.

In place of the lock, the run that was started last owns the folder: an earlier one that is still
training notices before it saves, and stops. The store is never asked what it has, since libraries
answer that from a cache.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import platform
import re
import shutil
import tarfile
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from jaxcnn.errors import ConfigError, DataError, TrainingError, first_line
from jaxcnn.files import write_atomically
from jaxcnn.train.record.checkpoint import FOLDER, CheckpointWriter
from jaxcnn.train.record.integrity import CHECKSUMS
from jaxcnn.train.record.logs import Row
from jaxcnn.train.record.progress import Progress
from jaxcnn.train.record.workdir import Workdir
from jaxcnn.train.state import TrainState

INDEX, OWNER = "checkpoints.json", "owner.json"
_LOGS = ("run.json", "metrics.jsonl", "steps.jsonl")
_OBJECT = re.compile(r"(0|[1-9]\d*)-[0-9a-f]{64}\.tar")  # as `_name` makes it
_TRIES, _PAUSE_SECONDS = 5, 2.0  # before the second try, and twice as long before each further one
T = TypeVar("T")


class TakenOverError(TrainingError):
    """Another process has been started in the same remote folder."""


class Mirror:
    """A folder of this machine, and its copy on a remote store.

    Args:
        remote: an `etils.epath.Path`.
        local: of this machine; must exist.
    """

    def __init__(self, remote: Any, local: Path):
        self._remote, self._local = remote, local
        self._mine = {"host": platform.node(), "process": os.getpid(), "token": uuid.uuid4().hex}
        self._index = _no_checkpoints()
        self._damaged: list[str] = []  # objects that were fetched
        self._copied: dict[str, Any] = {}  # what tells whether a file or a step has changed since

    def fetch(self) -> None:
        """Copy the logs and the checkpoints to this machine.

        A checkpoint that is missing or not what was written becomes one without files, which is
        found to be damaged.
        """
        shutil.rmtree(self._local / FOLDER, ignore_errors=True)  # of a try that failed
        self._index = self._read_index()
        for name in _LOGS:
            content = self._read(name)
            if content is not None:
                write_atomically(self._local / name, content)
                self._copied[name] = _identity(self._local / name)
        for step, name in self._index["listed"].items():
            folder = self._local / FOLDER / step
            folder.mkdir(parents=True)
            content = self._read(f"{FOLDER}/{name}")
            if content is not None and name != _name(step, content):
                self._damaged.append(name)
            elif content is not None:
                with tarfile.open(fileobj=io.BytesIO(content)) as archive:
                    archive.extractall(folder, filter="data")
            self._copied[step] = _contents(folder)

    def is_current(self) -> bool:
        """Return whether the store still lists what was fetched."""
        return self._read_index() == self._index

    def has_all(self) -> bool:
        """Return whether every checkpoint that was fetched has files."""
        return all(self._copied[step] for step in self._index["listed"])

    def set_aside(self, step: int) -> None:
        """Keep the object of a damaged checkpoint, which is listed no longer."""
        self._damaged.append(self._index["listed"][f"{step}"])

    def claim(self) -> None:
        """Become the owner of the remote folder."""
        self._write(OWNER, json.dumps(self._mine).encode())

    def push(self) -> None:
        """Copy what is new or has changed to the store, and delete there what was deleted here.

        Raises:
            TakenOverError: if another process owns the folder by now.
        """
        self._check_owner()
        for name in _LOGS:
            self._copy(name)
        self._push_checkpoints()
        for path in (self._local / "curves.png", *self._local.glob("tensorboard/*")):
            self._copy(path.relative_to(self._local).as_posix())

    def _push_checkpoints(self) -> None:
        here = {path.name: path for path in self._local.glob(f"{FOLDER}/[0-9]*")}
        contents = {step: _contents(path) for step, path in here.items()}
        new = {step: _pack(here[step]) for step in here if self._copied.get(step) != contents[step]}
        if not new:
            return  # and nothing is deleted
        names = {step: _name(step, content) for step, content in new.items()}
        before, to_delete = self._index["listed"], self._index["to delete"]
        # Where this is interrupted, the next process deletes what no list has.
        self._write_index({**self._index, "to delete": [*to_delete, *names.values()]})
        for step, content in new.items():
            self._write(f"{FOLDER}/{names[step]}", content)
            if self._read(f"{FOLDER}/{names[step]}") != content:
                raise OSError(f"{self._remote / FOLDER / names[step]} is not what was written")
        after = {step: names.get(step) or before[step] for step in here}
        damaged = sorted({*self._index["damaged"], *self._damaged})
        gone = sorted({*before.values(), *to_delete} - set(after.values()) - set(damaged))
        self._check_owner()
        self._write_index({"listed": after, "damaged": damaged, "to delete": gone})
        self._copied |= {step: contents[step] for step in new}
        for name in gone:
            with contextlib.suppress(Exception):  # with the next save
                (self._remote / FOLDER / name).unlink(missing_ok=True)

    def _copy(self, name: str) -> None:
        """Copy a file, if there is one that has changed."""
        path = self._local / name
        if path.exists() and self._copied.get(name) != (identity := _identity(path)):
            self._write(name, path.read_bytes())
            self._copied[name] = identity

    def _read(self, name: str) -> bytes | None:
        """Return an object's content, or None if there is none; whatever else fails, raises."""
        try:
            return (self._remote / name).read_bytes()
        except FileNotFoundError:
            return None

    def _write(self, name: str, content: bytes) -> None:
        (self._remote / name).write_bytes(content)

    def _read_index(self) -> dict[str, Any]:
        content = self._read(INDEX)
        if content is None:
            return _no_checkpoints()
        index = json.loads(content)
        if not _is_index(index):
            raise DataError(
                f"{INDEX} in {str(self._remote)!r} is not what jaxcnn has written; give another "
                "folder, or restore it"
            )
        return index

    def _write_index(self, index: dict[str, Any]) -> None:
        self._write(INDEX, f"{json.dumps(index, indent=2)}\n".encode())
        self._index = index

    def _check_owner(self) -> None:
        owner = json.loads(self._read(OWNER) or b"{}")
        if owner != self._mine:
            raise TakenOverError(
                f"process {owner.get('process')} on {owner.get('host')} was started in the workdir "
                f"{str(self._remote)!r} after this one; one process at a time can train there"
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
        self._remote, self._keeps = folder, False
        self._temporary = Path(tempfile.mkdtemp(prefix="jaxcnn-"))
        try:
            with self._reaching(ConfigError, "give a --workdir that can"):
                for number in range(_TRIES):
                    # Claimed once it is known to be this run's: one that is refused stops nobody.
                    self._here = self._temporary / f"{number}"
                    self._here.mkdir()
                    self._mirror = Mirror(folder, self._here)
                    _again(self._mirror.fetch)
                    super().__init__(self._here, settings, *args)
                    with contextlib.ExitStack() as undo:
                        undo.callback(super().__exit__, None, None, None)
                        _again(self._mirror.claim)
                        if _again(self._mirror.is_current):
                            undo.pop_all()
                            return
                    # Another was saving meanwhile.
            raise ConfigError(
                f"other processes are saving in the workdir {self.name!r}; wait until they end"
            )
        except BaseException:
            shutil.rmtree(self._temporary, ignore_errors=True)
            raise

    @property
    def name(self) -> str:
        """The URL of the folder."""
        return str(self._remote)

    def __exit__(self, *error: object) -> None:
        """Copy the curves of a run that was stopped, too, if they can be."""
        try:
            super().__exit__(*error)
            if not self._keeps and not isinstance(error[1], TakenOverError):
                with contextlib.suppress(Exception):
                    self._mirror.push()
        finally:
            if not self._keeps:
                shutil.rmtree(self._temporary, ignore_errors=True)

    def resume(
        self, shapes: TrainState, warn: Callable[[str], None]
    ) -> tuple[TrainState | None, Progress]:
        """Return the newest good checkpoint; see `Workdir.resume`."""
        with self._reaching(ConfigError, "give a --workdir that can"):
            return super().resume(shapes, lambda line: warn(self._translate(line)))

    def save(
        self, state: TrainState, progress: Progress, step_rows: list[Row], row: Row | None = None
    ) -> None:
        """Save here, and then there; see `Workdir.save`."""
        with self._reaching(TrainingError, "make room, and give the same command again"):
            super().save(state, progress, step_rows, row)
        self._push()

    def best_state(self, state: TrainState, warn: Callable[[str], None]) -> TrainState:
        """Return the state of the best epoch; see `Workdir.best_state`."""
        return super().best_state(state, lambda line: warn(self._translate(line)))

    def finish(self) -> None:
        """Plot the curves and record the result, here and there."""
        super().finish()
        self._push()

    def _open_checkpoints(self, folder: Path) -> CheckpointWriter:
        return _FetchedCheckpoints(folder, self._mirror, self.name)

    def _push(self) -> None:
        self._keeps = True  # until it is there
        advice = (
            "give the same command again to go on from what is there, or "
            f"--workdir={self._here} to go on here from what is newer"
        )
        try:
            with self._reaching(TrainingError, advice):
                _again(self._mirror.push)
        except TakenOverError:
            self._keeps = False
            raise
        self._keeps = False

    @contextlib.contextmanager
    def _reaching(self, kind: type[Exception], advice: str) -> Iterator[None]:
        """Turn what a store's library raises, which is of many kinds, into an error of one line."""
        try:
            yield
        except (ConfigError, TrainingError, DataError) as error:
            told = self._translate(f"{error}")
            if told == f"{error}":
                raise
            raise type(error)(told) from error
        except Exception as error:
            raise kind(
                f"the workdir {self.name!r} cannot be read or written ({first_line(error)}); "
                f"{advice}"
            ) from error

    def _translate(self, line: str) -> str:
        """Return a line of `Workdir`'s with the folder's URL; where room is short, it is here."""
        is_here = os.strerror(errno.ENOSPC) in line
        return line if is_here else line.replace(str(self._here), self.name)


class _FetchedCheckpoints(CheckpointWriter):
    """Checkpoints whose damaged ones stay on the store.

    Args:
        folder: of this machine.
        mirror: that has fetched them.
        url: of the run's folder on the store.
    """

    def __init__(self, folder: Path, mirror: Mirror, url: str):
        super().__init__(folder)
        self._mirror, self._url = mirror, url

    def _pass_over(self, step: int) -> str:
        shutil.rmtree(self._path(step))
        self._mirror.set_aside(step)
        return f"stays in {self._url}/{FOLDER}"


@contextlib.contextmanager
def fetched(folder: Any) -> Iterator[Path]:
    """Give a copy of a run's folder on this machine: of one on a store, what it lists.

    Args:
        folder: a path of this machine, which is given as it is, or an `etils.epath.Path`.

    Raises:
        ConfigError: if the store cannot be read.
    """
    if isinstance(folder, Path):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="jaxcnn-") as temporary:
        for number in range(_TRIES):
            copy = Path(temporary) / f"{number}"
            copy.mkdir()
            mirror = Mirror(folder, copy)
            try:
                mirror.fetch()
                # A run that is training deletes what it no longer lists.
                if mirror.has_all() or mirror.is_current():
                    break
            except DataError:
                raise
            except Exception as error:
                if number == _TRIES - 1:
                    reason = first_line(error)
                    raise ConfigError(f"cannot read {str(folder)!r} ({reason})") from error
                time.sleep(_pause(number))
        try:
            yield copy
        except (ConfigError, DataError) as error:
            raise type(error)(f"{error}".replace(str(copy), str(folder))) from None


def _again(call: Callable[[], T]) -> T:
    """Return what a call returns, after several tries if need be."""
    for number in range(_TRIES - 1):
        try:
            return call()
        except (TakenOverError, DataError, ImportError):
            raise
        except Exception:
            time.sleep(_pause(number))
    return call()


def _pause(number: int) -> float:
    return _PAUSE_SECONDS * 2**number


def _no_checkpoints() -> dict[str, Any]:
    """Return the index of a folder without checkpoints.

    | key         |                                                                          |
    |-------------|--------------------------------------------------------------------------|
    | `listed`    | the object of each step                                                   |
    | `damaged`   | objects that were found damaged, which are kept                           |
    | `to delete` | objects that were not completed, or are not listed any more               |
    """
    return {"listed": {}, "damaged": [], "to delete": []}


def _is_index(index: Any) -> bool:
    """Return whether an index names steps and objects alone, none of them outside of its folder.

    >>> _is_index({**_no_checkpoints(), "damaged": ["../../x.tar"]})
    False
    """
    if not isinstance(index, dict) or index.keys() != _no_checkpoints().keys():
        return False
    listed, *others = (index[key] for key in ("listed", "damaged", "to delete"))
    if not isinstance(listed, dict) or not all(isinstance(each, list) for each in others):
        return False
    names = [*listed.values(), *others[0], *others[1]]
    are_objects = all(isinstance(name, str) and _OBJECT.fullmatch(name) for name in names)
    return are_objects and all(name.startswith(f"{step}-") for step, name in listed.items())


def _pack(folder: Path) -> bytes:
    """Return the files of a checkpoint as one archive."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)
    return archive.getvalue()


def _name(step: str, content: bytes) -> str:
    return f"{step}-{hashlib.sha256(content).hexdigest()}.tar"


def _contents(checkpoint: Path) -> str | None:
    """Return what tells a checkpoint from another of its step; None if it has no checksums."""
    try:
        return (checkpoint / CHECKSUMS).read_text()
    except FileNotFoundError:
        return None


def _identity(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
