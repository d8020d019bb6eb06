"""How a step gets its batch: gathered from images on the device, or read from disk by the host.

Both take the same examples, in the order of `epoch_batches`, and give the same bits.
"""

import threading
from collections.abc import Generator
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.data import Dataset, epoch_batches
from jaxcnn.data.stream import Batch, BatchStream, read_batch
from jaxcnn.ops import cpu
from jaxcnn.train.setup import Setup

Array = jax.Array | np.ndarray  # of the device, or on the way to it


class Feed(Protocol):
    """Gives a compiled program what it takes its batches from.

    That is two arguments: arrays that are replicated, and arrays that are sharded.

    Attributes:
        max_steps: most batches that one call of a program can take; None for any number.
    """

    max_steps: int | None

    def take(self, data: Any, batches: Any, position: jax.Array) -> Batch:
        """Return a batch, in the program.

        Args:
            data: the replicated arguments.
            batches: the sharded ones.
            position: of the batch in its epoch, or in the set that is evaluated.
        """


class TrainingFeed(Feed, Protocol):
    """Gives the batches of the training set."""

    def arguments(self, step: int) -> tuple[Any, Any]:
        """Return the arguments for a call that begins after so many steps of the run."""

    def close(self) -> None:
        """Read no more."""


class EvaluationFeed(Feed, Protocol):
    """Gives the batches of a set that is evaluated."""

    def calls(self) -> Generator[tuple[Any, Any]]:
        """Yield the arguments for each call; to be closed."""


def create_training_feed(setup: Setup) -> TrainingFeed:
    """Return what feeds training, from the device or from disk, as the setup's `loading` says."""
    return TrainingStreamed(setup) if setup.loading.streams else TrainingInMemory(setup)


def create_evaluation_feed(setup: Setup, dataset: Dataset) -> EvaluationFeed:
    """Return what feeds the evaluation of a data set, likewise."""
    if setup.loading.streams:
        return EvaluationStreamed(setup, dataset)
    return EvaluationInMemory(setup, dataset)


class Examples(NamedTuple):
    """Images, uint8 [N, H, W, C], and labels, int32 [N], on every device."""

    images: Array
    labels: Array


class _InMemory:
    """All images stay on every device; a call takes the indices of batches."""

    max_steps: int | None = None

    def take(self, data: Examples, batches: Array, position: jax.Array) -> Batch:
        """Gather a batch; `batches` is int32 [S, B], -1 for padding."""
        indices = _row(batches, position)
        return Batch(*_gather(data, indices), indices)


class TrainingInMemory(_InMemory):
    """The training set stays on the devices; during an epoch the host sends nothing.

    Args:
        setup: with the data.
    """

    def __init__(self, setup: Setup):
        self._setup, self._order = setup, _Order(setup)
        self._examples = setup.parallel.replicate(_examples(setup.train))
        self._epoch, self._batches = 0, self._shard(0)

    def arguments(self, step: int) -> tuple[Examples, Array]:
        """Return the training set, and the indices of the full batches or of the last one."""
        epoch, position = divmod(step, self._setup.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._shard(epoch)
        return self._examples, self._batches[position >= self._setup.full_batches]

    def close(self) -> None:
        """Nothing is being read."""

    def _shard(self, epoch: int) -> dict[bool, Array]:
        """Return an epoch's indices on the devices; the key: whether it is the last batch."""
        return {
            is_last: self._setup.parallel.shard(batches)
            for is_last, batches in zip((False, True), self._order(epoch), strict=True)
            if batches.size
        }


class EvaluationInMemory(_InMemory):
    """A data set stays on the devices.

    Args:
        setup: of the run.
        dataset: to evaluate on.
    """

    def __init__(self, setup: Setup, dataset: Dataset):
        self._examples = setup.parallel.replicate(_examples(dataset))
        self._batches = setup.parallel.shard(
            padded_batches(len(dataset.labels), setup.evaluation_size)
        )

    def calls(self) -> Generator[tuple[Examples, Array]]:
        """Yield the data set and the indices of its batches, for each call the same."""
        while True:
            yield self._examples, self._batches


class Sent(NamedTuple):
    """What the host sends of a step.

    Attributes:
        batch: [1, B, ...].
        rows: int32 [1, B], the numbers of the examples of a device in its shard.
    """

    batch: Batch
    rows: Array


class _Streamed:
    """A call takes one batch, which threads have read and put on the devices before it is due.

    Args:
        setup: of the run.
    """

    max_steps: int | None = 1

    def __init__(self, setup: Setup):
        self._setup = setup

    def take(self, data: tuple[()], batches: Sent, position: jax.Array) -> Batch:
        """Return the one batch that there is.

        It is gathered, although it is there: so the program differs in its indices alone from that
        of images in memory, and XLA, which fuses operations, rounds alike in both. A program that
        `jit` divides would gather it from all devices, and takes it as it is.
        """
        if self._setup.parallel.is_divided:
            return Batch(*(_row(array, position) for array in batches.batch))
        examples = Examples(batches.batch.images[0], batches.batch.labels[0])
        indices = _row(batches.batch.indices, position)
        return Batch(*_gather(examples, _row(batches.rows, position)), indices)

    def _send(self, dataset: Dataset, indices: np.ndarray) -> Sent:
        """Read a batch, or this process's share of it, and put it on the devices."""
        parallel = self._setup.parallel
        here = parallel.rows_here(len(indices))
        batch = Batch(
            *(_among(array, here, len(indices)) for array in read_batch(dataset, indices[here]))
        )
        rows = np.arange(len(indices), dtype=np.int32) % (len(indices) // len(parallel.devices))
        return parallel.shard(Sent(batch, rows[None]))


class TrainingStreamed(_Streamed):
    """The training set streams from disk.

    Args:
        setup: with the data.
    """

    def __init__(self, setup: Setup):
        super().__init__(setup)
        self._order = _Order(setup)
        self._stream = BatchStream(self._read, setup.num_steps)

    def arguments(self, step: int) -> tuple[tuple[()], Sent]:
        """Return the batch of the next step."""
        return (), self._stream.take(step)

    def close(self) -> None:
        """End the threads that read ahead."""
        self._stream.close()

    def _read(self, step: int) -> Sent:
        epoch, position = divmod(step, self._setup.steps_per_epoch)
        full, last = self._order(epoch)
        return self._send(self._setup.train, full[position] if position < len(full) else last[0])


class EvaluationStreamed(_Streamed):
    """A data set streams from disk.

    Args:
        setup: of the run.
        dataset: to evaluate on.
    """

    def __init__(self, setup: Setup, dataset: Dataset):
        super().__init__(setup)
        self._dataset = dataset
        self._batches = padded_batches(len(dataset.labels), setup.evaluation_size)

    def calls(self) -> Generator[tuple[tuple[()], Sent]]:
        """Yield the batches."""
        stream = BatchStream(self._read, len(self._batches))
        try:
            for number in range(len(self._batches)):
                yield (), stream.take(number)
        finally:
            stream.close()

    def _read(self, number: int) -> Sent:
        return self._send(self._dataset, self._batches[number])


class _Order:
    """The indices of each epoch's batches, as `epoch_batches` has them, on the host.

    Where devices or parts cannot share a batch equally, it ends with padding, -1.
    """

    def __init__(self, setup: Setup):
        config, count = setup.config, len(setup.train.labels)
        options = cpu.QUICK_TO_COMPILE if setup.parallel.platform == "cpu" else {}
        permute = jax.jit(epoch_batches, static_argnums=(2, 3, 4), compiler_options=options)

        def padded(batches: np.ndarray) -> np.ndarray:
            size = batches.shape[1]
            missing = setup.padded_size(size) - size if size else 0
            return np.pad(batches, ((0, 0), (0, missing)), constant_values=-1)

        @lru_cache(maxsize=2)  # threads that read ahead are in the next epoch already
        def indices(epoch: int) -> tuple[np.ndarray, np.ndarray]:
            full, last = permute(config.seed, epoch, count, config.batch_size, config.last_batch)
            return padded(np.asarray(full)), padded(np.asarray(last))

        self._indices, self._lock = indices, threading.Lock()

    def __call__(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        with self._lock:  # of several threads, one permutes
            return self._indices(epoch)


def _among(rows: np.ndarray, here: slice, size: int) -> np.ndarray:
    """Return a batch [1, size, ...] with these rows in their place; the others are never read."""
    if len(rows) == size:
        return rows[None]
    batch = np.zeros((1, size, *rows.shape[1:]), rows.dtype)
    batch[0, here] = rows
    return batch


def _examples(dataset: Dataset) -> Examples:
    return Examples(np.asarray(dataset.images), dataset.labels)


def _row(batches: Array, position: jax.Array) -> Array:
    """Return a row of indices; a last batch of another size is the only one of its array."""
    return batches[jnp.minimum(position, batches.shape[0] - 1)]


def _gather(data: Examples, indices: Array) -> Examples:
    return Examples(*(jnp.take(array, indices, axis=0, mode="clip") for array in data))


def padded_batches(num_examples: int, batch_size: int) -> np.ndarray:
    """Return indices that visit each example once, padded with -1 to full batches.

    >>> padded_batches(5, 3)
    array([[ 0,  1,  2],
           [ 3,  4, -1]], dtype=int32)
    """
    indices = np.full((-(-num_examples // batch_size), batch_size), -1, np.int32)
    indices.flat[:num_examples] = np.arange(num_examples)
    return indices
