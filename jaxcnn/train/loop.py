"""The recipe: config, data, model, state, programs; then train, evaluate, keep, report."""

import dataclasses
import math
import time
from functools import partial
from pathlib import Path

import jax
from ml_collections import ConfigDict

from jaxcnn.config import DTYPES, check_batches, validate_config
from jaxcnn.data import Dataset, load_dataset
from jaxcnn.errors import ConfigError, StoppedError, TrainingError
from jaxcnn.models import create_model
from jaxcnn.train.checkpoint import Progress
from jaxcnn.train.display import Display
from jaxcnn.train.environment import describe_environment
from jaxcnn.train.logs import Row
from jaxcnn.train.metrics import Metrics
from jaxcnn.train.optim import create_optimizer
from jaxcnn.train.parallel import DataParallel
from jaxcnn.train.programs import Programs
from jaxcnn.train.signals import StopSignal
from jaxcnn.train.state import TrainState, create_train_state
from jaxcnn.train.workdir import Workdir

_CALL_SECONDS = 4.0  # that a call of the program may take, if of several steps; a signal waits
_LONG_CALL_SECONDS = 0.5  # from here on the next call is not made while one runs


def train_and_evaluate(config: ConfigDict, workdir: str | Path) -> TrainState:
    """Train a model and evaluate it after each epoch; go on where an earlier call stopped.

    While it trains, SIGINT and SIGTERM make it save and stop after the step under way.

    Args:
        config: see `jaxcnn.get_default_config`.
        workdir: folder of the run; see `jaxcnn.train.workdir.Workdir` for what it will hold.

    Returns:
        The state after the last epoch.

    Raises:
        ConfigError: if the config cannot be trained with, or `workdir` holds another run.
        DataError: if the data set is missing or damaged.
        TrainingError: if the loss is not finite, or the state cannot be saved.
        StoppedError: after saving, if a signal asked to stop.
    """
    validate_config(config)
    train, test = _load_data(config)
    parallel = DataParallel(config.num_devices)
    check_batches(config.batch_size, len(train.labels), len(parallel.devices))
    dtype = DTYPES[config.dtype]
    model = create_model(
        config.model,
        num_classes=config.num_classes,
        dtype=dtype,
        axis_name=parallel.axis_name,
    )
    optimizer = create_optimizer(config)
    image_shape = (config.image_size, config.image_size, train.images.shape[3])
    state = parallel.compile_and_run(
        partial(create_train_state, model, optimizer, image_shape, config.seed, dtype)
    )
    num_steps = config.num_epochs * -(-len(train.labels) // config.batch_size)
    digests = {"train": train.digest(), "test": test.digest()}
    environment = describe_environment(parallel.devices)
    with (
        Workdir(workdir, config, digests, environment) as run,
        Display(num_steps, config.num_epochs) as display,
    ):
        display.print(_describe(config, state, train, test, parallel, run.folder))
        state, progress = run.resume(parallel.replicate(state), warn=display.print)
        for change in run.changes:
            display.print(f"note: {change}")
        if int(state.step):
            display.print(_resume_message(progress, int(state.step), config.num_epochs))
        if progress.epoch < config.num_epochs:
            programs = Programs(config, parallel, model, optimizer, train, test, state)
            with StopSignal() as stop:
                display.print(f"compiled in {programs.compile_seconds:.1f} s")
                trainer = Trainer(config, programs, run, display, stop, state, progress)
                while trainer.progress.epoch < config.num_epochs:
                    trainer.train_epoch()
                state = trainer.state
        run.draw()
        display.print(_summarize(run))
    return state


class Trainer:
    """The state and the progress of a run, and how they go on: an epoch, and saving."""

    def __init__(
        self,
        config: ConfigDict,
        programs: Programs,
        run: Workdir,
        display: Display,
        stop: StopSignal,
        state: TrainState,
        progress: Progress,
    ):
        self.state, self.progress = state, progress
        self._programs, self._run, self._display, self._stop = programs, run, display, stop
        self._save_every = config.checkpoint_every_steps
        self._step = int(state.step)  # whose metrics are recorded
        self._step_rows: list[Row] = []  # since the last checkpoint
        self._compile_seconds = programs.compile_seconds
        self._chooses_steps = config.steps_per_call == 0
        self._step_seconds = _CALL_SECONDS  # of the last call; at first one step, to see

    def train_epoch(self) -> None:
        """Train to the end of the epoch, evaluate, log and save; or stop where a signal asks."""
        if self.progress.position < self._programs.steps_per_epoch:
            self._take_steps()
        self._display.evaluating()
        start = time.perf_counter()
        test = self._evaluate()
        progress = self.progress
        train = Metrics(progress.loss_sum, progress.correct, progress.count)
        row = {
            "epoch": progress.epoch + 1,
            "step": self._step,
            "train_loss": train.loss(),
            "train_accuracy": train.accuracy(),
            "images_per_second": progress.count / progress.seconds,
            "train_seconds": progress.seconds,
            "test_loss": test.loss(),
            "test_accuracy": test.accuracy(),
            "test_seconds": time.perf_counter() - start,
            "compile_seconds": self._compile_seconds,
        }
        _check_finite(row["test_loss"], self._step, "test loss")
        self._compile_seconds = 0.0
        self.progress = Progress(epoch=progress.epoch + 1, test_accuracy=row["test_accuracy"])
        self._save(row)
        self._display.epoch(row)
        self._stop_if_asked()

    def _take_steps(self) -> None:
        start = time.perf_counter() - self.progress.seconds
        step = self._step
        waiting: list[Metrics] = []
        self._choose_steps()
        for call in self._programs.train_epoch(step):
            self.state, metrics = call(self.state)
            waiting.append(metrics)
            is_long = call.steps * self._step_seconds > _LONG_CALL_SECONDS
            self._record(waiting, start, leave=0 if is_long else 1)  # one runs meanwhile
            before, step = step, step + call.steps
            if step % self._programs.steps_per_epoch == 0:
                break  # it is saved after evaluation
            due = self._save_every and step // self._save_every > before // self._save_every
            if due or self._stop.received:
                self._record(waiting, start)
                self._stop_if_asked()
                self._save()
            self._choose_steps()
        self._record(waiting, start)

    def _choose_steps(self) -> None:
        """Let the next call take as many steps as its time allows, unless the config says."""
        if self._chooses_steps:
            steps = int(_CALL_SECONDS / self._step_seconds)
            self._programs.steps_per_call = min(max(steps, 1), self._programs.max_steps_per_call)

    def _record(self, waiting: list[Metrics], start: float, leave: int = 0) -> None:
        """Add the metrics of calls to the epoch's, the oldest first; waits for the device.

        Args:
            waiting: of each call, with an entry per step; those added are taken out.
            start: `time.perf_counter()` when the epoch began.
            leave: how many to leave.
        """
        while len(waiting) > leave:
            progress = self.progress
            total = Metrics(progress.loss_sum, progress.correct, progress.count)
            entries = waiting.pop(0).per_step()
            seconds = time.perf_counter() - start
            self._step_seconds = max(seconds - progress.seconds, 1e-6) / len(entries)
            for entry in entries:
                self._step += 1
                _check_finite(entry.loss(), self._step, "loss")
                total += entry
                self._step_rows.append(
                    {
                        "step": self._step,
                        "epoch": progress.epoch + 1,
                        "loss": entry.loss(),
                        "accuracy": entry.accuracy(),
                    }
                )
            self.progress = dataclasses.replace(
                progress,
                position=progress.position + len(entries),
                loss_sum=total.loss_sum,
                correct=total.correct,
                count=total.count,
                seconds=seconds,
                test_accuracy=None,
            )
            rate = total.count / seconds
            self._display.step(progress.epoch + 1, self._step, rate, total.loss(), total.accuracy())

    def _evaluate(self) -> Metrics:
        """Return the metrics over the test set; stop after the call under way if a signal asks."""
        latest = None
        for metrics in self._programs.evaluate(self.state):
            self._stop_if_asked()
            if latest is not None:
                jax.block_until_ready(latest)  # one call ahead of the device, no more
            latest = metrics
        assert latest is not None  # a test set is never empty
        return latest.total()

    def _save(self, row: Row | None = None) -> None:
        self._run.save(self.state, self.progress, self._step_rows, row)
        self._step_rows = []

    def _stop_if_asked(self) -> None:
        """Save, if that has not been done here, and raise StoppedError if there was a signal."""
        if self._stop.received is None:
            return
        if self._step_rows or self.progress.position:
            self._save()
        raise StoppedError(
            f"stopped by {self._stop.received.name} and saved after step {self._step}; the same "
            "command goes on from there",
            self._stop.received,
        )


def _resume_message(progress: Progress, step: int, num_epochs: int) -> str:
    """Say where a run goes on, or that it does not."""
    if progress.epoch >= num_epochs:
        return f"already trained; nothing to do after epoch {progress.epoch} (step {step})"
    if progress.position:
        return f"resuming within epoch {progress.epoch + 1} (step {step})"
    return f"resuming after epoch {progress.epoch} (step {step})"


def _check_finite(loss: float, step: int, name: str) -> None:
    if not math.isfinite(loss):
        raise TrainingError(
            f"the {name} is {loss} at step {step}; the last finite checkpoint is kept; try a "
            "smaller learning_rate in another --workdir"
        )


def _load_data(config: ConfigDict) -> tuple[Dataset, Dataset]:
    limits = {"train": config.max_train_examples, "test": config.max_test_examples}
    train, test = (
        load_dataset(config.dataset, split, config.data_dir, config.data_source).first(limit)
        for split, limit in limits.items()
    )
    if config.num_classes < len(train.class_names):
        raise ConfigError(
            f"config.num_classes is {config.num_classes}, but {config.dataset} has "
            f"{len(train.class_names)} classes; give at least that many"
        )
    return train, test


def _describe(
    config: ConfigDict,
    state: TrainState,
    train: Dataset,
    test: Dataset,
    parallel: DataParallel,
    folder: Path,
) -> str:
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    devices = f"{len(parallel.devices)} x {parallel.devices[0].device_kind}"
    return (
        f"{config.model}: {parameters:,} parameters, images of {config.image_size} x "
        f"{config.image_size} pixels\n"
        f"{config.dataset}: {len(train.labels):,} training and {len(test.labels):,} test images\n"
        f"{devices}; batches of {config.batch_size}, {config.num_epochs} epoch(s), seed "
        f"{config.seed}\n"
        f"results in {folder}"
    )


def _summarize(run: Workdir) -> str:
    rows = run.rows()
    if not rows:
        return f"done; metrics.jsonl in {run.folder} has been removed, so there is nothing to show"
    best = max(rows, key=lambda row: row["test_accuracy"])
    return (
        f"done: test accuracy {rows[-1]['test_accuracy']:.4f} after epoch {rows[-1]['epoch']}, "
        f"best {best['test_accuracy']:.4f} after epoch {best['epoch']}\n"
        f"see {run.folder / 'curves.png'}, {run.folder / 'metrics.jsonl'} and "
        f"{run.folder / 'checkpoints'}"
    )
