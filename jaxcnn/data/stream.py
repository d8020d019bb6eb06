"""Data sets larger than memory: when batches are read from disk, and reading them with Grain."""

import importlib.util
import math
from collections.abc import Callable, Iterable
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from jaxcnn.data.dataset import Dataset
from jaxcnn.errors import ConfigError

# What `config.data_loading` may be: the images stay on the device, or batches stream from disk.
LOADING = ("auto", "memory", "stream")
_AHEAD = 4  # batches that are read while others are trained on, each by a thread
T = TypeVar("T")


class Loading(NamedTuple):
    """How a run loads its images.

    Attributes:
        streams: whether batches are read from disk; else all images stay on each device.
        words: says so, for the run's first lines.
    """

    streams: bool
    words: str


def choose_loading(word: str, datasets: Iterable[Dataset], memory_bytes: int) -> Loading:
    """Return how to load data sets: batches stream if all images take more than half the memory.

    Args:
        word: one of `LOADING`; all but 'auto' have the last word.
        datasets: of the run.
        memory_bytes: of the device that is to hold them.

    Raises:
        ConfigError: if they are to stream and Grain is not installed.

    >>> data = Dataset(np.zeros((9, 10, 10, 1), np.uint8), np.zeros(9, np.int32), ("a",))
    >>> choose_loading("auto", [data], 1800).words, choose_loading("auto", [data], 1799).streams
    ('in memory', True)
    """
    size = sum(math.prod(dataset.images.shape) for dataset in datasets)  # uint8
    if word == "memory" or (word == "auto" and 2 * size <= memory_bytes):
        return Loading(False, "in memory")
    reason = (
        "config.data_loading"
        if word == "stream"
        else f"{_gigabytes(size)} are more than half of the device's {_gigabytes(memory_bytes)}"
    )
    check_grain(f"images are streamed ({reason})")
    return Loading(True, f"streamed ({reason})")


def check_grain(what: str) -> None:
    """Check that Grain is installed.

    Args:
        what: takes it, for the error.

    Raises:
        ConfigError: if it is not.
    """
    if importlib.util.find_spec("grain") is None:
        raise ConfigError(f"{what}, which takes the package grain: pip install grain")


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3g} GB"


class Batch(NamedTuple):
    """Examples of a step.

    Attributes:
        images: uint8 [B, H, W, C].
        labels: int32 [B].
        indices: int32 [B], places in the data set; -1 for padding, whose image is any.
    """

    images: Any
    labels: Any
    indices: Any


def read_batch(dataset: Dataset, indices: np.ndarray) -> Batch:
    """Read the examples at some places of a data set; of its images, only these.

    >>> data = Dataset(np.zeros((5, 2, 2, 1), np.uint8), np.arange(5), tuple("abcde"))
    >>> read_batch(data, np.array([3, 1, -1])).labels
    array([3, 1, 0])
    """
    places = np.maximum(indices, 0)
    return Batch(np.asarray(dataset.images[places]), dataset.labels[places], indices)


class BatchStream(Generic[T]):
    """Batches by their number, those after the latest one read ahead by Grain's threads.

    Its state is the number of the next batch: any can be next, and it is read at once.

    Args:
        read: returns the batch of a number; called by several threads.
        count: of the batches.

    >>> stream = BatchStream(lambda number: number**2, count=10)
    >>> stream.take(7), stream.take(8), stream.take(2)
    (49, 64, 4)
    >>> stream.close()
    """

    def __init__(self, read: Callable[[int], T], count: int):
        try:
            import grain  # here: it is optional, and slow to import
        except ImportError as error:  # of one of its own dependencies: see `check_grain`
            raise ConfigError(
                "images are streamed by the package grain, which cannot be imported here "
                f"({error}); install it again: pip install --force-reinstall grain"
            ) from error

        self._batches = grain.MapDataset.source(_Source(read, count))
        self._options = grain.ReadOptions(num_threads=_AHEAD, prefetch_buffer_size=_AHEAD)
        self._iterator: Any = None
        self._count, self._next = count, 0

    def take(self, number: int) -> T:
        """Return a batch; wait until it is read.

        Raises:
            ValueError: if there is none of this number.
        """
        if not 0 <= number < self._count:
            raise ValueError(f"the batches are 0 to {self._count - 1}, got {number}")
        if self._iterator is None or number != self._next:
            self.close()
            # Grain's slice, not the iterator's state, whose form is Grain's own affair.
            self._iterator = iter(self._batches[number:].to_iter_dataset(self._options))
        self._next = number + 1
        return next(self._iterator)

    def close(self) -> None:
        """Stop reading ahead."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


class _Source(Generic[T]):
    """What Grain reads from."""

    def __init__(self, read: Callable[[int], T], count: int):
        self._read, self._count = read, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> T:
        return self._read(number)
