"""Files that survive a kill, and locks that do not outlive their process."""

import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that it has either its old or its new content, whatever happens.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "note.txt"
    >>> write_atomically(path, "done")
    >>> path.read_text()
    'done'
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    with unfinished.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    sync([path.parent])


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
