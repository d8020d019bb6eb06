"""The compiled functions of a run, train and evaluate.

Training finds its place in the data from the step count in the state, evaluation carries its
position from call to call, and both take as many steps as they are told: where the images stay on
the devices, the host sends nothing per call. A call takes one step if a convolution of the model is
slow inside a loop (see `jaxcnn.ops.cpu.suits_loops`), unless the config says otherwise, or if its
batch streams from disk (see `jaxcnn.train.feed`).
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn.config import DTYPES
from jaxcnn.data import Dataset, preprocess
from jaxcnn.data.augment import parse_augmentation, parse_mixing
from jaxcnn.data.stream import Batch
from jaxcnn.keys import Purpose, derive_key
from jaxcnn.ops import cpu
from jaxcnn.train.compiler import Compiler
from jaxcnn.train.feed import create_evaluation_feed, create_training_feed
from jaxcnn.train.loss import create_loss
from jaxcnn.train.metrics import Metrics
from jaxcnn.train.protocol import set_axis_name
from jaxcnn.train.setup import Setup
from jaxcnn.train.state import TrainState
from jaxcnn.train.step import eval_step, train_step
from jaxcnn.train.trees import shapes_of

_MAX_STEPS = 50  # per call: more would save nothing, and their metrics arrive together


class Programs:
    """Train, and evaluate on the set that is held out.

    When created, the first is traced, which tells whether it is right, and begins to be compiled.
    The others follow when they are asked for, or all at once, in the order in which an epoch needs
    them. A call waits for its program.

    Attributes:
        all_compile: whether every program is compiled, or on the way.
        compile_seconds: from creation until training could begin; 0 before `wait` returns.
        max_steps: most steps that one call can take.

    With `steps_per_call` above 1 the steps are compiled as a loop, which gives the same bits
    however many of them a call takes; 1 is compiled without a loop and may round differently.

    Args:
        setup: what to train with; only the shapes of its state matter.
    """

    def __init__(self, setup: Setup):
        self._setup, self._created = setup, time.perf_counter()
        config, self.compile_seconds, self.all_compile = setup.config, 0.0, False
        self._steps = config.steps_per_call or _default_steps(setup)
        self._loops, self._feed = self._steps > 1, create_training_feed(setup)
        self.max_steps = min(self._steps, self._feed.max_steps or self._steps)
        self._counts = _counts(setup, self.max_steps)
        self._loss = create_loss(config, setup.train, setup.num_logits)
        self._augmentations = [function for _, function in parse_augmentation(config.augmentation)]
        self._mixing = parse_mixing(config.mixing)
        self._compiler = Compiler(setup.parallel)
        self._arguments = {
            self._is_last(step): shapes_of(self._feed.arguments(step))
            for step in (0, setup.steps_per_epoch - 1)
        }
        self._train_programs: dict[bool, Future[Callable]] = {}
        self.to_train(0)

    def wait(self, step: int) -> None:
        """Wait until training can go on after `step` steps."""
        self.to_train(step).result()
        self.compile_seconds = time.perf_counter() - self._created

    def to_train(self, step: int) -> Future[Callable]:
        """Return the program that continues after `step` steps; it may still be compiling."""
        is_last = self._is_last(step)
        if is_last not in self._train_programs:
            self._train_programs[is_last] = self._compile_train(is_last)
        return self._train_programs[is_last]

    def to_evaluate(self) -> Future[Callable]:
        """Return the program that evaluates, likewise; there must be a set that is held out."""
        assert self._evaluator is not None
        return self._evaluator.program

    @cached_property
    def _evaluator(self) -> "Evaluator | None":
        if self._setup.held_out is None:
            return None
        return Evaluator(self._setup, self._setup.held_out[1], self._compiler, self._steps)

    def compile_all(self) -> Future[Callable]:
        """Trace what has not been traced, and begin to compile it; return the last program."""
        last = self.to_train(self._setup.steps_per_epoch - 1)
        self.all_compile = True
        return last if self._evaluator is None else self._evaluator.program

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
        position = step % self._setup.steps_per_epoch
        left = 1 if self._is_last(step) else self._setup.full_batches - position
        most = min(left, self.max_steps)
        if not 1 <= count <= most:
            raise ValueError(f"after step {step}, count must be 1 to {most}, got {count}")
        program = self.to_train(step).result()
        return program(state, self._counts[count], *self._feed.arguments(step))

    def evaluate(self, state: TrainState, count: int | None = None) -> Iterator[Metrics]:
        """Yield running totals over the set that is held out; nothing if there is none.

        Args:
            state: to evaluate.
            count: batches per call; None for `max_steps`.
        """
        if self._evaluator is not None:
            yield from self._evaluator.totals(state, count)

    def close(self) -> None:
        """Compile no more, and read no more batches; to be called when training ends."""
        self._compiler.close()
        self._feed.close()

    def _is_last(self, step: int) -> bool:
        """Return whether the step after so many takes a last batch of another size."""
        return step % self._setup.steps_per_epoch >= self._setup.full_batches

    def _compile_train(self, is_last: bool) -> Future[Callable]:
        """Compile training on full batches, or on a last one of another size."""
        args = (self._setup.shapes, self._counts[1], *self._arguments[is_last])
        program = partial(self._train_program, self._setup.batch_size(is_last))
        recomputes = self._setup.recomputes
        return self._compiler.submit(program, *args, donate=(0,), recomputes=recomputes)

    def _train_program(
        self, size: int, state: TrainState, count: jax.Array, data: Any, batches: Any
    ) -> tuple[TrainState, Metrics]:
        """Take the next `count` steps, of `size` examples; see `Feed` for the data and batches."""
        take_step = partial(self._take_step, size, data=data, batches=batches)
        if not self._loops:
            state, metrics = take_step(state)
            return state, jax.tree.map(lambda x: x[None], metrics)

        def body(i: jax.Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            state, entries = carry
            state, metrics = take_step(state)
            return state, jax.tree.map(lambda entry, x: entry.at[i].set(x), entries, metrics)

        return lax.fori_loop(0, count, body, (state, _no_metrics(self._setup, (self.max_steps,))))

    def _take_step(
        self, size: int, state: TrainState, data: Any, batches: Any
    ) -> tuple[TrainState, Metrics]:
        """Take the step whose batch is next, by the step count in the state."""
        setup = self._setup
        batch = self._feed.take(data, batches, state.step % setup.steps_per_epoch)
        weights = _weights(batch) if setup.padded_size(size) > size else None
        images = self._augment(_preprocess(setup, batch), batch.indices, state.step)
        images, labels = self._mix(size, images, batch.labels, state.step)
        return train_step(
            state,
            images,
            labels,
            weights,
            model=setup.model,
            optimizer=setup.optimizer,
            loss=self._loss,
            ema_decay=setup.config.ema_decay,
            gradient_accumulation_steps=setup.count_parts(size),
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
        self, size: int, images: jax.Array, labels: jax.Array, step: jax.Array
    ) -> Sequence[jax.Array]:
        """Mix the images of a batch, with random numbers that depend on (seed, step)."""
        if self._mixing is None:
            return images, labels
        setup = self._setup
        mix = partial(self._mixing[1], derive_key(setup.config.seed, Purpose.MIX, step))
        dtype = jnp.promote_types(images.dtype, jnp.float32)  # of labels: their shares are exact
        targets = jax.nn.one_hot(labels, setup.num_logits, dtype=dtype)
        return setup.parallel.on_whole_batch(mix, size, images, targets)


class Evaluator:
    """Evaluates states on a data set.

    Attributes:
        program: what it runs, which may not be compiled yet.

    Args:
        setup: of the run; only the shapes of its state matter.
        dataset: to evaluate on.
        compiler: of the program.
        steps: batches of a call, if its images are in memory; None for what suits the model.
    """

    def __init__(
        self, setup: Setup, dataset: Dataset, compiler: Compiler, steps: int | None = None
    ):
        self._setup, self._feed = setup, create_evaluation_feed(setup, dataset)
        steps = steps or setup.config.steps_per_call or _default_steps(setup)
        self._loops, self._max_steps = steps > 1, min(steps, self._feed.max_steps or steps)
        self._num_batches = -(-len(dataset.labels) // setup.evaluation_size)
        self._counts = _counts(setup, self._max_steps)
        self._start = setup.parallel.replicate((_no_metrics(setup), jnp.zeros((), jnp.int32)))
        with contextlib.closing(self._feed.calls()) as calls:
            args = (setup.shapes, *self._start, self._counts[1], *next(calls))
        self.program = compiler.submit(self._evaluate, *args)

    def totals(self, state: TrainState, count: int | None = None) -> Iterator[Metrics]:
        """Yield running totals, without waiting for the device.

        The last one covers the whole set, each example once.

        Args:
            state: to evaluate.
            count: batches per call; None for as many as a call can take.
        """
        total, position = self._start
        most = min(count or self._max_steps, self._max_steps)
        program = self.program.result()
        with contextlib.closing(self._feed.calls()) as calls:
            # The calls come last: none is asked for in vain.
            for done, args in zip(range(0, self._num_batches, most), calls, strict=False):
                steps = self._counts[min(most, self._num_batches - done)]
                total, position = program(state, total, position, steps, *args)
                yield total

    def _evaluate(
        self,
        state: TrainState,
        total: Metrics,
        position: jax.Array,
        count: jax.Array,
        data: Any,
        batches: Any,
    ) -> tuple[Metrics, jax.Array]:
        """Add the metrics of the next `count` batches; see `Feed` for the data and batches."""
        setup = self._setup
        step = partial(
            eval_step,
            model=setup.model,
            test_augmentation=setup.config.test_augmentation,
            axis_name=setup.parallel.axis_name,
        )

        def add_batch(_: int | jax.Array, carry: tuple[Metrics, jax.Array]):
            total, position = carry
            batch = self._feed.take(data, batches, position)
            metrics = step(state, _preprocess(setup, batch), batch.labels, _weights(batch))
            return total + metrics, position + 1

        if not self._loops:
            return add_batch(0, (total, position))
        return lax.fori_loop(0, count, add_batch, (total, position))


def _preprocess(setup: Setup, batch: Batch) -> jax.Array:
    return preprocess(batch.images, setup.config.image_size, DTYPES[setup.config.dtype])


def _weights(batch: Batch) -> jax.Array:
    """Return 1 for each example and 0 for padding."""
    return (batch.indices >= 0).astype(jnp.float32)


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
    if setup.parallel.is_divided:  # into convolutions of XLA's own
        return 1
    model = set_axis_name(setup.model, None)  # no axis is mapped while tracing
    size, dtype = setup.config.image_size, DTYPES[setup.config.dtype]
    images = jax.ShapeDtypeStruct((1, size, size, setup.train.images.shape[3]), dtype)

    def forward(variables: Any, images: jax.Array) -> Any:
        rngs = {"dropout": jax.random.key(0)}
        return model.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)

    return _MAX_STEPS if cpu.suits_loops(forward, setup.shapes.variables, images) else 1
