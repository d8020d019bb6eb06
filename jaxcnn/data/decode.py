"""Pictures of a data set, decoded on all cores into arrays, on disk or in memory."""

import contextlib
import math
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from jaxcnn.errors import DataError
from jaxcnn.machine import memory_bytes
from jaxcnn.pictures import read_pictures, resize_and_crop

_SHOWN = 3  # names that a message lists


def decode(
    title: str,
    pictures: Iterable[tuple[str, Path | bytes]],
    counts: Sequence[int],
    image_size: int | None,
    aspect_ratio: str = "crop",
    paths: Sequence[Path] | None = None,
) -> list[np.ndarray]:
    """Decode pictures on all cores, and show progress on standard error.

    Args:
        title: of the data set.
        pictures: the name of each, and its file or the file's content; those of the first array,
            then those of the next.
        counts: of the pictures of each array.
        image_size: see `jaxcnn.pictures.fit_picture`.
        aspect_ratio: likewise.
        paths: of a .npy file for each array, into which the pictures are written as they come, so
            that memory holds a few of them only; None to keep all in memory.

    Returns:
        Arrays, uint8 [N, H, W, C] of the same H, W and C, memory-mapped if they are in files; C is
        1 if all pictures are gray, else 3.

    Raises:
        DataError: with the pictures that cannot be read, the first of them by name; if the sizes
            differ and there is no `image_size`; or if memory cannot hold them.
        OSError: if a file cannot be written.
    """
    progress = Progress(title, sum(counts))
    stack = PictureStack(title, counts, image_size, paths)
    errors: list[str] = []

    def take(name: str, picture: np.ndarray | str) -> None:
        if isinstance(picture, str):
            errors.append(picture)
        elif not errors:
            stack.append(name, picture)
        progress.advance()

    with contextlib.closing(progress), contextlib.closing(stack):
        read_pictures(pictures, image_size, take, aspect_ratio)
    if len(errors) == 1:
        raise DataError(f"{title}: {errors[0]}; mend or remove it")
    if errors:
        more = "; ..." if len(errors) > _SHOWN else ""
        raise DataError(
            f"{title}: {len(errors):,} pictures are no good: {'; '.join(errors[:_SHOWN])}{more}; "
            "mend or remove them"
        )
    return stack.arrays()


class PictureStack:
    """Arrays that are made picture by picture.

    All pictures get the size and the channels of the first. Those before one of another size, or
    before the first in colour, are then enlarged, or given three channels: each at most once.

    Args:
        title: of the data set.
        counts: see `decode`.
        image_size: pictures of different sizes are squares of at most this (see `fit_picture`), to
            which the smaller ones are enlarged; None if there must be none.
        paths: see `decode`.

    >>> stack = PictureStack("pictures", [2, 1], None, None)
    >>> for channels in (1, 3, 1):
    ...     stack.append("a picture", np.zeros((4, 5, channels), np.uint8))
    >>> stack.close()
    >>> [array.shape for array in stack.arrays()]
    [(2, 4, 5, 3), (1, 4, 5, 3)]
    """

    def __init__(
        self,
        title: str,
        counts: Sequence[int],
        image_size: int | None,
        paths: Sequence[Path] | None,
    ):
        self._title, self._counts, self._image_size = title, counts, image_size
        self._paths, self._first, self._done = paths, "", 0
        self._shape: tuple[int, ...] = ()
        self._rows: list[_FileRows] | list[_MemoryRows] = []

    def append(self, name: str, picture: np.ndarray) -> None:
        """Add a picture, uint8 [H, W, 1 or 3].

        Raises:
            DataError: if it is of another size than those before it, and there is no `image_size`.
        """
        if not self._shape:
            self._first, self._shape = name, picture.shape
            self._rows = self._create()
        elif picture.shape != self._shape:
            shape = self._common_shape(name, picture)
            if shape != self._shape:
                self._remake(shape)
        self._add(picture)

    def close(self) -> None:
        """Close the files; no picture can be added any more."""
        for rows in self._rows:
            rows.close()

    def arrays(self) -> list[np.ndarray]:
        """Return the arrays of a stack that is closed, each with the pictures that it was given."""
        return [rows.array() for rows in self._rows]

    def _common_shape(self, name: str, picture: np.ndarray) -> tuple[int, ...]:
        size, other = self._shape[:2], picture.shape[:2]
        if size != other:
            if self._image_size is None:
                sizes = [f"{width} x {height}" for height, width in (size, other)]
                raise DataError(
                    f"the pictures are of different sizes, as {self._first!r} ({sizes[0]}) and "
                    f"{name!r} ({sizes[1]}); give image_size= (--image-size) for squares "
                    "of one size"
                )
            size = (self._image_size, self._image_size)
        return (*size, max(self._shape[2], picture.shape[2]))

    def _remake(self, shape: tuple[int, ...]) -> None:
        """Give all pictures so far another shape."""
        self.close()
        before = self.arrays()
        self._shape, self._done = shape, 0
        self._rows = self._create()
        for array in before:
            for picture in array:
                self._add(picture)

    def _add(self, picture: np.ndarray) -> None:
        if picture.shape[:2] != self._shape[:2]:
            picture = resize_and_crop(picture, self._shape[0])
        part, end = 0, self._counts[0]
        while self._done >= end:
            part += 1
            end += self._counts[part]
        self._rows[part].append(np.broadcast_to(picture, self._shape))
        self._done += 1

    def _create(self) -> "list[_FileRows] | list[_MemoryRows]":
        if self._paths is not None:
            files = zip(self._paths, self._counts, strict=True)
            return [_FileRows(path, (count, *self._shape)) for path, count in files]
        size = sum(self._counts) * math.prod(self._shape)
        if size > memory_bytes():
            raise DataError(
                f"{self._title} takes {size / 1e9:.1f} GB decoded, more than memory holds, and "
                "cannot be kept on disk; give a data directory with room: --config.data_dir=PATH "
                "or TFDS_DATA_DIR"
            )
        return [_MemoryRows((count, *self._shape)) for count in self._counts]


class _MemoryRows:
    """An array in memory, written row by row."""

    def __init__(self, shape: tuple[int, ...]):
        self._array, self._done = np.empty(shape, np.uint8), 0

    def append(self, row: np.ndarray) -> None:
        self._array[self._done] = row
        self._done += 1

    def close(self) -> None:
        pass

    def array(self) -> np.ndarray:
        return self._array[: self._done]


class _FileRows:
    """A .npy file, written row by row.

    A memory-mapped file would be written without calls of our own, and a full disk then ends the
    process (SIGBUS) in place of raising an OSError.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]):
        path.unlink(missing_ok=True)  # the one before it may still be mapped
        self._path, self._shape, self._done = path, shape[1:], 0
        self._file = path.open("wb")
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)
        self._start = self._file.tell()

    def append(self, row: np.ndarray) -> None:
        self._file.write(row.tobytes())
        self._done += 1

    def close(self) -> None:
        self._file.close()

    def array(self) -> np.ndarray:
        shape = (self._done, *self._shape)
        if not self._done:
            return np.empty(shape, np.uint8)
        return np.memmap(self._path, np.uint8, "r", self._start, shape)


class Progress:
    """Says on standard error how many pictures are decoded, if it takes more than two seconds.

    Args:
        title: of the data set.
        count: of its pictures.
    """

    def __init__(self, title: str, count: int):
        self._title, self._count, self._done = title, count, 0
        self._due, self._seconds = time.monotonic() + 2, 2.0
        self._is_terminal = sys.stderr.isatty()
        self._is_begun = False

    def advance(self) -> None:
        """Count one more picture."""
        self._done += 1
        if time.monotonic() < self._due:
            return
        line = f"Decoding {self._title}: {self._done:,} of {self._count:,} pictures"
        if self._is_terminal:
            print(f"\r{line}", end="", file=sys.stderr, flush=True)
        else:
            say(line)
            self._seconds *= 2  # a log needs fewer and fewer
        self._is_begun, self._due = True, time.monotonic() + (self._is_terminal or self._seconds)

    def close(self) -> None:
        """End the line."""
        if self._is_begun and self._is_terminal:
            print(file=sys.stderr)


def say(line: str) -> None:
    """Print a line to standard error, whatever bytes a file name has."""
    print(line.encode(errors="backslashreplace").decode(), file=sys.stderr, flush=True)
