"""The compiled functions of a run, train and evaluate, over data that stay on the devices.

Training finds its place in the data from the step count in the state, evaluation carries its
position from call to call, and both take as many steps as they are told: the host sends nothing per
call. A call takes one step if a convolution of the model is slow inside a loop (see
`jaxcnn.ops.cpu.suits_loops`), unless the config says otherwise.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from ml_collections import ConfigDict

from jaxcnn.config import DTYPES
from jaxcnn.data import Dataset, epoch_batches, preprocess
from jaxcnn.data.augment import parse_augmentation, parse_mixing
from jaxcnn.keys import Purpose, derive_key
from jaxcnn.ops import cpu
from jaxcnn.train.loss import create_loss
from jaxcnn.train.metrics import Metrics
from jaxcnn.train.prepare import Setup
from jaxcnn.train.protocol import set_axis_name
from jaxcnn.train.state import TrainState
from jaxcnn.train.step import eval_step, train_step

_MAX_STEPS = 50  # per call: more would save nothing, and their metrics arrive together


class DeviceData(NamedTuple):
    """Images, uint8 [N, H, W, C], and labels, int32 [N], on every device."""

    images: jax.Array | np.ndarray
    labels: jax.Array | np.ndarray


class Programs:
    """Train, and evaluate on the set that is held out; compiled when created.

    Attributes:
        compile_seconds: what compiling took.
        max_steps: most steps that one call can take. Any value above 1 gives the same bits; 1 is
            compiled without a loop and may round differently.

    Args:
        setup: what to train with; of its state only the shapes matter.
    """

    def __init__(self, setup: Setup):
        self._setup = setup
        config, parallel = setup.config, setup.parallel
        self.max_steps = config.steps_per_call or _default_steps(setup)
        self._train_data = parallel.replicate(_device_data(setup.train))
        self._counts = _counts(setup, self.max_steps)
        self._loss = create_loss(config, setup.train, setup.num_logits)
        self._augmentations = [function for _, function in parse_augmentation(config.augmentation)]
        self._mixing = parse_mixing(config.mixing)
        self._permute = jax.jit(epoch_batches, static_argnums=(2, 3, 4))
        start = time.perf_counter()
        self._epoch, self._train_batches = 0, self._shard_epoch(0)
        self._train_programs = {
            is_last: self._compile_train(batches)
            for is_last, batches in self._train_batches.items()
        }
        self._evaluator = None
        if setup.held_out is not None:
            self._evaluator = Evaluator(setup, setup.held_out[1], self.max_steps)
        self.compile_seconds = time.perf_counter() - start

    def train(self, state: TrainState, step: int, count: int) -> tuple[TrainState, Metrics]:
        """Take the next steps of an epoch; return before the device has finished them.

        Args:
            state: after `step` steps of the run, as its own step count says; it is donated.
            step: steps of the whole run so far.
            count: steps to take, from 1 to `max_steps`, none beyond the epoch's full batches; a
                last batch of another size is a call of its own.

        Returns:
            The new state, and metrics with one entry per step, followed by entries of no examples.

        Raises:
            ValueError: if the count is out of range.
        """
        epoch, position = divmod(step, self._setup.steps_per_epoch)
        is_last = position >= self._setup.full_batches
        left = 1 if is_last else self._setup.full_batches - position
        most = min(left, self.max_steps)
        if not 1 <= count <= most:
            raise ValueError(f"after step {step}, count must be 1 to {most}, got {count}")
        if epoch != self._epoch:
            self._epoch, self._train_batches = epoch, self._shard_epoch(epoch)
        program, batches = self._train_programs[is_last], self._train_batches[is_last]
        return program(state, self._counts[count], self._train_data, batches)

    def evaluate(self, state: TrainState, count: int | None = None) -> Iterator[Metrics]:
        """Yield running totals over the set that is held out; nothing if there is none.

        Args:
            state: to evaluate.
            count: batches per call; None for `max_steps`.
        """
        if self._evaluator is not None:
            yield from self._evaluator.totals(state, count)

    def _compile_train(self, batches: jax.Array) -> Callable:
        """Compile training on the full batches, or on a last one of another size."""
        args = (self._setup.state, self._counts[1], self._train_data, batches)
        return self._setup.parallel.compile(self._train_program, *args, donate=(0,))

    def _shard_epoch(self, epoch: int) -> dict[bool, jax.Array]:
        """Return an epoch's indices on the devices: the full batches, and a last one that is not.

        The key tells which: whether it is the last. What is empty is left out.
        """
        config = self._setup.config
        num_examples = len(self._setup.train.labels)
        full, last = self._permute(
            config.seed, epoch, num_examples, config.batch_size, config.last_batch
        )
        return {
            is_last: self._setup.parallel.shard(np.asarray(batches))
            for is_last, batches in ((False, full), (True, last))
            if batches.size
        }

    def _train_program(
        self, state: TrainState, count: jax.Array, data: DeviceData, batches: jax.Array
    ) -> tuple[TrainState, Metrics]:
        """Take the next `count` steps among `batches`, int32 [S, B]: the full ones or the last."""
        if self.max_steps == 1:
            state, metrics = self._take_step(state, data, batches)
            return state, jax.tree.map(lambda x: x[None], metrics)

        def body(i: jax.Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            state, entries = carry
            state, metrics = self._take_step(state, data, batches)
            return state, jax.tree.map(lambda entry, x: entry.at[i].set(x), entries, metrics)

        return lax.fori_loop(0, count, body, (state, _no_metrics(self._setup, (self.max_steps,))))

    def _take_step(
        self, state: TrainState, data: DeviceData, batches: jax.Array
    ) -> tuple[TrainState, Metrics]:
        """Take the step whose batch is next, by the step count in the state."""
        setup = self._setup
        # A last batch of another size is row 0 of an array of its own.
        position = jnp.minimum(state.step % setup.steps_per_epoch, batches.shape[0] - 1)
        batch_size = batches.shape[1] * len(setup.parallel.devices)
        images, labels = _batch(setup.config, data, batches[position])
        images = self._augment(images, batches[position], state.step)
        return train_step(
            state,
            *self._mix(images, labels, state.step),
            model=setup.model,
            optimizer=setup.optimizer,
            loss=self._loss,
            ema_decay=setup.config.ema_decay,
            gradient_accumulation_steps=setup.count_parts(batch_size),
            seed=setup.config.seed,
            axis_name=setup.parallel.axis_name,
        )

    def _augment(self, images: jax.Array, indices: jax.Array, step: jax.Array) -> jax.Array:
        """Augment a training batch, with random numbers that depend on (seed, step, example)."""
        if not self._augmentations:
            return images  # a loop would derive keys at every step, although nothing uses them
        key = derive_key(self._setup.config.seed, Purpose.AUGMENT, step)

        def augment(index: jax.Array, image: jax.Array) -> jax.Array:
            keys = jax.random.split(jax.random.fold_in(key, index), len(self._augmentations))
            for key_of_one, function in zip(keys, self._augmentations, strict=True):
                image = function(key_of_one, image)
            return image

        return jax.vmap(augment)(indices, images)

    def _mix(
        self, images: jax.Array, labels: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Mix the images of a batch, with random numbers that depend on (seed, step, device)."""
        if self._mixing is None:
            return images, labels
        setup = self._setup
        key = derive_key(setup.config.seed, Purpose.MIX, step, setup.parallel.axis_name)
        dtype = jnp.promote_types(images.dtype, jnp.float32)  # of labels: their shares are exact
        targets = jax.nn.one_hot(labels, setup.num_logits, dtype=dtype)
        return self._mixing[1](key, images, targets)


class Evaluator:
    """Evaluates states on a data set, which stays on the devices; compiled when created.

    Args:
        setup: of the run; of its state only the shapes matter.
        dataset: to evaluate on.
        max_steps: most batches that one call can take; None for what suits the model.
    """

    def __init__(self, setup: Setup, dataset: Dataset, max_steps: int | None = None):
        self._setup, parallel = setup, setup.parallel
        self._max_steps = max_steps or setup.config.steps_per_call or _default_steps(setup)
        self._counts = _counts(setup, self._max_steps)
        self._start = parallel.replicate((_no_metrics(setup), jnp.zeros((), jnp.int32)))
        batches = padded_batches(len(dataset.labels), setup.part_size)
        self._num_batches, self._batches = len(batches), parallel.shard(batches)
        self._data = parallel.replicate(_device_data(dataset))
        args = (setup.state, *self._start, self._counts[1], self._data, self._batches)
        self._program = parallel.compile(self._evaluate, *args)

    def totals(self, state: TrainState, count: int | None = None) -> Iterator[Metrics]:
        """Yield running totals, without waiting for the device.

        The last one covers the whole set, each example once.

        Args:
            state: to evaluate.
            count: batches per call; None for as many as a call can take.
        """
        total, position = self._start
        for done in range(0, self._num_batches, count or self._max_steps):
            steps = min(count or self._max_steps, self._num_batches - done)
            total, position = self._program(
                state, total, position, self._counts[steps], self._data, self._batches
            )
            yield total

    def _evaluate(
        self,
        state: TrainState,
        total: Metrics,
        position: jax.Array,
        count: jax.Array,
        data: DeviceData,
        batches: jax.Array,
    ) -> tuple[Metrics, jax.Array]:
        """Add the metrics of the next `count` of `batches`, int32 [S, B], -1 for padding."""
        setup = self._setup
        step = partial(
            eval_step,
            model=setup.model,
            test_augmentation=setup.config.test_augmentation,
            axis_name=setup.parallel.axis_name,
        )

        def add_batch(_: int | jax.Array, carry: tuple[Metrics, jax.Array]):
            total, position = carry
            images, labels = _batch(setup.config, data, batches[position])
            weights = (batches[position] >= 0).astype(jnp.float32)
            return total + step(state, images, labels, weights), position + 1

        if self._max_steps == 1:
            return add_batch(0, (total, position))
        return lax.fori_loop(0, count, add_batch, (total, position))


def _batch(config: ConfigDict, data: DeviceData, indices: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gather and preprocess a batch."""
    images = jnp.take(data.images, indices, axis=0, mode="clip")
    labels = jnp.take(data.labels, indices, axis=0, mode="clip")
    return preprocess(images, config.image_size, DTYPES[config.dtype]), labels


def _counts(setup: Setup, most: int) -> tuple[jax.Array, ...]:
    """Return a scalar per number of steps, on the devices already: a call transfers nothing."""
    return setup.parallel.replicate(tuple(jnp.asarray(n, jnp.int32) for n in range(most + 1)))


def _no_metrics(setup: Setup, shape: tuple[int, ...] = ()) -> Metrics:
    """Return sums of nothing, of the dtype of the loss: float64 or float32."""
    dtype = jnp.float64 if setup.config.dtype == "float64" else jnp.float32
    return Metrics.zeros(shape, dtype=dtype)


def _default_steps(setup: Setup) -> int:
    """Return how many steps a call can take where the config leaves it open."""
    if setup.parallel.platform != "cpu":
        return _MAX_STEPS
    model = set_axis_name(setup.model, None)  # no axis is mapped while tracing
    size, dtype = setup.config.image_size, DTYPES[setup.config.dtype]
    images = jax.ShapeDtypeStruct((1, size, size, setup.train.images.shape[3]), dtype)

    def forward(variables: Any, images: jax.Array) -> Any:
        rngs = {"dropout": jax.random.key(0)}
        return model.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)

    return _MAX_STEPS if cpu.suits_loops(forward, setup.state.variables, images) else 1


def _device_data(dataset: Dataset) -> DeviceData:
    return DeviceData(dataset.images, dataset.labels)


def padded_batches(num_examples: int, batch_size: int) -> np.ndarray:
    """Return indices that visit each example once, padded with -1 to full batches.

    >>> padded_batches(5, 3)
    array([[ 0,  1,  2],
           [ 3,  4, -1]], dtype=int32)
    """
    indices = np.full((-(-num_examples // batch_size), batch_size), -1, np.int32)
    indices.flat[:num_examples] = np.arange(num_examples)
    return indices
