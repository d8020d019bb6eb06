"""The compiled programs of a run, over data that stay on the devices.

A program finds its place in the data from the step count in the state, and takes as many steps as
it is told, so the host sends nothing per step. On CPU many steps in one call also spare the system
the work of giving the program its memory anew for each. Only on CPU without oneDNN one call is one
step: there XLA runs a convolution inside a loop on one thread and many times slower.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import lax
from ml_collections import ConfigDict

from jaxcnn.config import DTYPES
from jaxcnn.data import Dataset, epoch_batches, preprocess
from jaxcnn.ops.implementation import fast_in_loops
from jaxcnn.train.metrics import Metrics
from jaxcnn.train.parallel import DataParallel
from jaxcnn.train.state import TrainState
from jaxcnn.train.step import eval_step, train_step

_MAX_STEPS = 50  # of one call: more would save nothing, and their metrics come together


class DeviceData(NamedTuple):
    """Images, uint8 [N, H, W, C], and labels, int32 [N], on every device."""

    images: jax.Array | np.ndarray
    labels: jax.Array | np.ndarray


@dataclasses.dataclass(frozen=True)
class TrainCall:
    """One call of a compiled program: from a state to the one after its steps, and their metrics.

    It takes over the memory of the state it is given, and returns before the device is done. The
    metrics have one entry per step, with zeros for steps that it did not take.

    Attributes:
        steps: that it takes.
    """

    program: Callable[[TrainState, jax.Array, DeviceData, jax.Array], tuple[TrainState, Metrics]]
    count: jax.Array
    data: DeviceData
    batches: jax.Array
    steps: int

    def __call__(self, state: TrainState) -> tuple[TrainState, Metrics]:
        """Return the next state and the metrics."""
        return self.program(state, self.count, self.data, self.batches)


class Programs:
    """Train and evaluate on the devices; compiled when made.

    Attributes:
        compile_seconds: what compiling took.
        steps_per_epoch: the last, smaller batch counted.
        max_steps_per_call: of training or evaluation that a call can take.
        steps_per_call: that the next calls take, at most; may be set from 1 to the most. What comes
            out does not depend on it, to the bit.

    Args:
        config: of the run.
        parallel: the devices.
        model: maps images to logits; built with the same axis name as `parallel`.
        optimizer: the one that made the state.
        train: the training set.
        test: the test set.
        state: of the run, on the devices; only its shapes matter.
    """

    def __init__(
        self,
        config: ConfigDict,
        parallel: DataParallel,
        model: nn.Module,
        optimizer: optax.GradientTransformation,
        train: Dataset,
        test: Dataset,
        state: TrainState,
    ):
        self._config, self._parallel = config, parallel
        self._num_train = len(train.labels)
        self._train_data = parallel.replicate(DeviceData(train.images, train.labels))
        self._test_data = parallel.replicate(DeviceData(test.images, test.labels))
        self._test_batches = padded_batches(len(test.labels), config.batch_size)
        self._test_indices = parallel.shard(self._test_batches)
        # Logits are float32 at least, and metrics are of their dtype.
        dtype = jnp.float64 if config.dtype == "float64" else jnp.float32
        self._no_metrics = partial(Metrics.zeros, dtype=dtype)
        self._test_start = parallel.replicate((self._no_metrics(), jnp.zeros((), jnp.int32)))
        self._train_step = partial(
            train_step,
            model=model,
            optimizer=optimizer,
            seed=config.seed,
            axis_name=parallel.axis_name,
        )
        self._eval_step = partial(eval_step, model=model, axis_name=parallel.axis_name)
        self._epoch_batches = jax.jit(epoch_batches, static_argnums=(2, 3))
        self.steps_per_epoch = -(-self._num_train // config.batch_size)
        has_loops = parallel.platform != "cpu" or fast_in_loops(DTYPES[config.dtype])
        self.max_steps_per_call = config.steps_per_call or (_MAX_STEPS if has_loops else 1)
        self.steps_per_call = self.max_steps_per_call
        self._counts = parallel.replicate(
            tuple(jnp.asarray(n, jnp.int32) for n in range(self.max_steps_per_call + 1))
        )
        self._compile(state)

    def _compile(self, state: TrainState) -> None:
        start = time.perf_counter()
        self._train_programs = [
            self._parallel.compile(
                self._train_program,
                state,
                self._counts[1],
                self._train_data,
                self._parallel.shard(part),
                donate=(0,),
            )
            for part in self._epoch(0)
        ]
        self._eval_program = self._parallel.compile(
            self._evaluation_program,
            state,
            *self._test_start,
            self._counts[1],
            self._test_data,
            self._test_indices,
        )
        self.compile_seconds = time.perf_counter() - start

    def train_epoch(self, step: int) -> Iterator[TrainCall]:
        """Yield the calls that train to the end of an epoch; each takes the state of the last.

        One ends wherever a checkpoint is due.

        Args:
            step: the step count of the state that the first call is given.
        """
        epoch, position = divmod(step, self.steps_per_epoch)
        for program, part in zip(self._train_programs, self._epoch(epoch), strict=True):
            batches = self._parallel.shard(part)
            while position < len(part):
                steps = min(self.steps_per_call, len(part) - position)
                if self._config.checkpoint_every_steps:
                    every = self._config.checkpoint_every_steps
                    steps = min(steps, every - step % every)
                yield TrainCall(program, self._counts[steps], self._train_data, batches, steps)
                position += steps
                step += steps
            position -= len(part)

    def evaluate(self, state: TrainState) -> Iterator[Metrics]:
        """Yield the metrics over more and more of the test set, at last over all of it.

        Each example counts once. As in training, a result is yielded before the device is done.
        """
        total, position = self._test_start
        done = 0
        while done < len(self._test_batches):
            steps = min(self.steps_per_call, len(self._test_batches) - done)
            total, position = self._eval_program(
                state, total, position, self._counts[steps], self._test_data, self._test_indices
            )
            yield total
            done += steps

    def _epoch(self, epoch: int) -> list[np.ndarray]:
        """Return the indices of the full batches, and of the last one if it is smaller."""
        config = self._config
        parts = self._epoch_batches(config.seed, epoch, self._num_train, config.batch_size)
        return [np.asarray(part) for part in parts if part.size]

    def _batch(self, data: DeviceData, indices: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Gather and preprocess a batch."""
        images = jnp.take(data.images, indices, axis=0, mode="clip")
        labels = jnp.take(data.labels, indices, axis=0, mode="clip")
        return preprocess(images, self._config.image_size, DTYPES[self._config.dtype]), labels

    def _train_program(
        self, state: TrainState, count: jax.Array, data: DeviceData, batches: jax.Array
    ) -> tuple[TrainState, Metrics]:
        """Take the next `count` steps among `batches`, int32 [S, B]: the full ones or the last."""
        last = batches.shape[0] - 1

        def position(state: TrainState) -> jax.Array:
            return jnp.minimum(state.step % self.steps_per_epoch, last)

        def take_step(state: TrainState) -> tuple[TrainState, Metrics]:
            return self._train_step(state, *self._batch(data, batches[position(state)]))

        if self.max_steps_per_call == 1:
            state, metrics = take_step(state)
            return state, jax.tree.map(lambda x: x[None], metrics)

        def body(i: jax.Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            state, rows = carry
            state, metrics = take_step(state)
            return state, jax.tree.map(lambda row, x: row.at[i].set(x), rows, metrics)

        rows = self._no_metrics((self.max_steps_per_call,))
        return lax.fori_loop(0, count, body, (state, rows))

    def _evaluation_program(
        self,
        state: TrainState,
        total: Metrics,
        position: jax.Array,
        count: jax.Array,
        data: DeviceData,
        batches: jax.Array,
    ) -> tuple[Metrics, jax.Array]:
        """Add the metrics of the next `count` of `batches`, int32 [S, B], -1 for padding."""

        def add_batch(_: int | jax.Array, carry: tuple[Metrics, jax.Array]):
            total, position = carry
            images, labels = self._batch(data, batches[position])
            weights = (batches[position] >= 0).astype(jnp.float32)
            return total + self._eval_step(state, images, labels, weights), position + 1

        if self.max_steps_per_call == 1:
            return add_batch(0, (total, position))
        return lax.fori_loop(0, count, add_batch, (total, position))


def padded_batches(num_examples: int, batch_size: int) -> np.ndarray:
    """Return indices that visit each example once, padded with -1 to full batches.

    >>> padded_batches(5, 3)
    array([[ 0,  1,  2],
           [ 3,  4, -1]], dtype=int32)
    """
    indices = np.full((-(-num_examples // batch_size), batch_size), -1, np.int32)
    indices.flat[:num_examples] = np.arange(num_examples)
    return indices
