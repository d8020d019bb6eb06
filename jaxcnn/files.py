"""Paths of this machine, files that survive a kill, and locks that end with their process."""

import contextlib
import fcntl
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from jaxcnn.errors import ConfigError

STORES = ("gs://", "s3://", "az://", "hf://")  # what `etils.epath` reaches
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # of two letters: one alone may be a drive


def is_url(text: str) -> bool:
    """Return whether a text is a URL rather than a path of this machine.

    >>> is_url("gs://bucket/data"), is_url("/data")
    (True, False)
    """
    return _SCHEME.match(text) is not None


def local_path(path: str | os.PathLike[str], name: str) -> Path:
    """Return a path with `~` replaced by the home folder, as a shell does.

    Args:
        path: of a folder or file on this machine.
        name: of the setting or argument, for the error.

    Raises:
        ConfigError: if the path is empty, a URL or not text, or if its home folder is not known.

    >>> local_path("runs/lenet", "workdir").as_posix()
    'runs/lenet'
    """
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str) or not text.strip() or "\0" in text:
        raise ConfigError(f"{name} must be the path of a folder or file, got {path!r}")
    if is_url(text):
        raise ConfigError(
            f"{name} must be a path of this machine, got {text!r}; copy or mount what is elsewhere"
            + (f" (accepted there: {', '.join(STORES)})" if name == "workdir" else "")
        )
    path = Path(text)
    if not text.startswith("~"):
        return absolute_if_home(path)  # './~a' is a file in this folder
    try:
        return path.expanduser()
    except RuntimeError:
        raise ConfigError(
            f"{name} is {text!r}, but that home folder is not known; give the whole path"
        ) from None


def absolute_if_home(path: Path) -> Path:
    """Return a path of this folder that begins with '~' as an absolute one, any other as it is.

    >>> absolute_if_home(Path("~a")).is_absolute(), absolute_if_home(Path("a~"))
    (True, PosixPath('a~'))
    """
    return path.absolute() if f"{path}".startswith("~") else path


def run_path(path: str | os.PathLike[str], name: str) -> Path:
    """Return the path of a run's folder, which may be on a remote store.

    Args:
        path: of a folder on this machine, or a URL that begins with one of `STORES`.
        name: of the setting or argument, for the error.

    Returns:
        An `etils.epath.Path` of a store, which has the methods of a `Path` but is none.

    Raises:
        ConfigError: as `local_path`.

    >>> str(run_path("gs://bucket/runs/lenet", "workdir"))
    'gs://bucket/runs/lenet'
    """
    if f"{path}".startswith(STORES):
        from etils import epath  # here: few runs need it

        remote: Any = epath.Path(path)
        return remote
    return local_path(path, name)


def check_output(
    path: str | os.PathLike[str], force: bool, how_to_force: str = "force=True"
) -> Path:
    """Check that a file can be written, before any work goes into it.

    Args:
        path: of the file.
        force: whether it may exist; it is then to be replaced.
        how_to_force: how the caller says so, for the error.

    Returns:
        The path, with `~` replaced.

    Raises:
        ConfigError: if it exists (unless `force` is given), is a folder, or cannot be written.

    >>> check_output("/", force=False)
    Traceback (most recent call last):
    jaxcnn.errors.ConfigError: '/' is a folder; give a file in it
    """
    file = local_path(path, "the output")
    given = repr(str(path))
    try:
        if file.is_dir():
            raise ConfigError(f"{given} is a folder; give a file in it")
        if os.path.lexists(file) and not (force and file.is_file()):
            replace = f", or {how_to_force} to replace it" if file.is_file() else ""
            raise ConfigError(f"{given} exists; give another name{replace}")
        with contextlib.suppress(FileNotFoundError):
            _unfinished(file).lstat()  # fails if its name is too long
        with tempfile.TemporaryFile(dir=file.parent):
            return file
    except OSError as error:
        why = error.strerror or error
        raise ConfigError(f"cannot write {given} ({why}); give another name") from None


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that it has either its old or its new content, whatever happens.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "note.txt"
    >>> write_atomically(path, "done")
    >>> path.read_text()
    'done'
    """
    unfinished = _unfinished(path)
    try:
        with unfinished.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    sync([path.parent])


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}.unfinished")


def sync(paths: Iterable[Path]) -> None:
    """Wait until the content of files, and the names in folders, are on disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def hold_lock(path: Path, wait: bool) -> Iterator[None]:
    """Hold a lock on a file; the kernel releases it when the process ends, however it ends.

    Args:
        path: of the file, which is created and contains the number of the process with the lock.
        wait: whether to wait for another process to release it.

    Raises:
        BlockingIOError: if another process holds it and `wait` is false.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / ".lock"
    >>> with hold_lock(path, wait=True):
    ...     path.read_text() == str(os.getpid())
    True
    """
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
