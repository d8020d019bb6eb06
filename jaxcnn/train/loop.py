"""The training loop: prepare, resume, compile; then, by epoch, train, evaluate, save; report."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import linen as nn
from ml_collections import ConfigDict
from rich.console import Console

from jaxcnn.errors import StoppedError
from jaxcnn.files import run_path
from jaxcnn.train import processes
from jaxcnn.train.compiler import Compiler
from jaxcnn.train.loggers import Logger, Loggers
from jaxcnn.train.metrics import Metrics
from jaxcnn.train.pace import Pace
from jaxcnn.train.prepare import prepare
from jaxcnn.train.programs import Evaluator, Programs
from jaxcnn.train.record import report
from jaxcnn.train.record.display import Display, Means
from jaxcnn.train.record.environment import describe_environment
from jaxcnn.train.record.integrity import check_finite_means
from jaxcnn.train.record.logs import Row, epoch_row, is_out_of_patience, step_row, test_row
from jaxcnn.train.record.notebook import create_display
from jaxcnn.train.record.progress import Progress
from jaxcnn.train.record.remote import RemoteWorkdir
from jaxcnn.train.record.shared import Shared, check_alike
from jaxcnn.train.record.signals import StopSignal
from jaxcnn.train.record.unsaved import Unsaved
from jaxcnn.train.record.workdir import Workdir
from jaxcnn.train.setup import Setup
from jaxcnn.train.state import TrainState

Record = Workdir | Unsaved | Shared
# Between the processes of a run: where the data are, and what tells nothing of the bits.
_MAY_DIFFER = ("config.data_dir", "config.data_source", "date", "platform", "commit", "versions")
_SIGNAL_SECONDS = 0.2  # in which a signal is noticed while a program is being compiled


def train_and_evaluate(
    config: ConfigDict,
    workdir: str | Path,
    *,
    model: nn.Module | None = None,
    optimizer: optax.GradientTransformation | None = None,
    train: Any = None,
    validation: Any = None,
    test: Any = None,
    loggers: Sequence[Logger] = (),
) -> TrainState:
    """Train a model and evaluate it after each epoch, resuming where an earlier call stopped.

    With a validation set, each epoch is evaluated on that, and at the end the best epoch, once, on
    the test set. Without one, each epoch is evaluated on the test set. Where
    `config.evaluate_every_epochs` is above 1 or 0, "each epoch" is each of those and the last.

    While it trains, a signal to stop (SIGINT, SIGTERM), a hang-up or a scheduler's warning (SIGHUP,
    SIGUSR1, SIGUSR2, SIGXCPU) makes it save and stop after the steps in progress.

    Args:
        config: see `jaxcnn.get_default_config`.
        workdir: folder of the run; see `jaxcnn.train.record.workdir.Workdir` for its contents. It
            may be on a remote store, such as 'gs://bucket/run'; see `jaxcnn.train.record.remote`.
        model: to train in place of the one that the config names; this and the objects below are
            checked by `jaxcnn.train.prepare.prepare`, which says what they must be.
        optimizer: likewise.
        train: training set, likewise.
        validation: validation set, likewise.
        test: test set, likewise.
        loggers: take the results of each epoch, too; see `jaxcnn.train.loggers`.

    Returns:
        The state after the last epoch, or that of the last checkpoint if the folder holds a run of
        more epochs already.

    Raises:
        ConfigError: if the config or an object cannot be trained with, or `workdir` holds another
            run.
        DataError: if the data set is missing or damaged.
        TrainingError: if the loss is not finite, or the state cannot be saved.
        StoppedError: after saving, if a signal asked to stop.
    """
    workdir = run_path(workdir, "workdir")  # before any work
    setup = prepare(
        config, model=model, optimizer=optimizer, train=train, validation=validation, test=test
    )
    state, _ = run(setup, workdir, loggers)
    return state


def run(
    setup: Setup, workdir: Path | None, loggers: Sequence[Logger] = ()
) -> tuple[TrainState, list[Row]]:
    """Train what `prepare` has made, resuming where an earlier run in the folder stopped.

    Args:
        setup: what to train; its state is donated.
        workdir: folder of the run; None to keep nothing.
        loggers: see `train_and_evaluate`.

    Returns:
        The last state, and a row for each epoch.

    Raises:
        ConfigError, TrainingError, StoppedError: see `train_and_evaluate`.
    """
    config = setup.config
    with (
        _open_record(setup, workdir) as record,
        _create_display(setup) as display,
    ):
        display.print(report.describe(setup, workdir))
        setup, step, progress = _resume(setup, record, display)
        is_over = _is_over(progress.epoch, config, record.rows())
        if not is_over or (_must_test(setup, record) and record.rows()):
            told = loggers if processes.is_first() else ()
            with Loggers(told, display.print) as each, StopSignal() as stop:
                each.start(setup.settings, step)
                if not is_over:
                    state = _train(setup, progress, record, display, stop, each)
                    setup = setup.starting_from(state)
                if _must_test(setup, record):
                    each.write(_test(setup, record, display, stop))
        record.finish()
        display.print(report.summarize(record.rows(), record.tested(), workdir))
        return setup.state, record.rows()


def _open_record(setup: Setup, workdir: Path | None) -> Record:
    """Return what records a run: its folder, or memory alone."""
    environment = describe_environment(setup.parallel.devices, setup.config.implementation or None)
    digests = setup.digests() if workdir or processes.are_several() else {}
    if processes.are_several():
        settings = {f"config.{key}": value for key, value in setup.settings.items()}
        facts = settings | {f"the {split} set (SHA-256)": each for split, each in digests.items()}
        facts |= environment | environment["versions"]
        # By the memory of each process, which may differ:
        facts["config.data_loading as chosen here"] = (
            "stream" if setup.loading.streams else "memory"
        )
        check_alike({key: value for key, value in facts.items() if key not in _MAY_DIFFER})
    if workdir is None:
        return Unsaved()
    record = None
    if processes.is_first():
        facts, check = setup.facts(), setup.check_resumed
        kind = Workdir if isinstance(workdir, Path) else RemoteWorkdir
        record = kind(workdir, setup.settings, digests, environment, facts, check)
        if not processes.are_several():
            return record
    return Shared(record, setup.parallel.replicate)


def _create_display(setup: Setup) -> Display:
    """Return what shows the run: in the first process, where it suits; in the others, nothing."""
    sizes = setup.num_steps, setup.config.num_epochs
    return create_display(*sizes) if processes.is_first() else Display(*sizes, Console(quiet=True))


def _resume(setup: Setup, run: Record, display: Display) -> tuple[Setup, int, Progress]:
    """Return the setup with the state to continue from, its step, and the progress there."""
    state, progress = run.resume(setup.shapes, warn=display.print)
    for change in run.changes:
        display.print(f"note: {change}")
    if state is None:
        return setup, 0, progress
    step, is_over = int(state.step), _is_over(progress.epoch, setup.config, run.rows())
    display.print(report.resume_message(progress, step, is_over))
    display.resume(run.rows())
    return setup.starting_from(state), step, progress


def _train(
    setup: Setup,
    progress: Progress,
    run: Record,
    display: Display,
    stop: StopSignal,
    loggers: Loggers,
) -> TrainState:
    """Compile, and train to the last epoch."""
    with contextlib.ExitStack() as stack:
        with display.compiling():
            programs = stack.enter_context(contextlib.closing(Programs(setup)))
            state = setup.state  # a new one is drawn while the first program is being compiled
            programs.wait(int(state.step))
        display.print(f"compiled in {programs.compile_seconds:.1f} s")
        trainer = Trainer(setup, programs, run, display, stop, progress, loggers)
        while not _is_over(trainer.progress.epoch, setup.config, run.rows()):
            trainer.train_epoch()
    if trainer.progress.epoch < setup.config.num_epochs:
        display.print(f"no better for {setup.config.patience} epochs, so it ends here (patience)")
    return trainer.state


def _must_test(setup: Setup, run: Record) -> bool:
    """Return whether a validation set has chosen an epoch that has not been tested yet."""
    return setup.validation is not None and setup.test is not None and run.tested() is None


def _test(setup: Setup, run: Record, display: Display, stop: StopSignal) -> Row:
    """Evaluate the best epoch on the test set, and record the results."""
    assert setup.test is not None

    def stop_if_asked() -> None:
        # Several processes would have to agree; they finish instead.
        if stop.received is not None and not processes.are_several():
            raise StoppedError(
                f"stopped by {stop.received.name} before the test set was evaluated "
                f"{run.what_is_left(int(setup.state.step))}",
                stop.received,
            )

    best = run.best_state(setup.state, warn=display.print)
    display.evaluating()
    start = time.perf_counter()
    with contextlib.closing(Compiler(setup.parallel)) as compiler:
        evaluator = Evaluator(setup.starting_from(best), setup.test, compiler)
        sums = _last_of(evaluator.totals(best), stop_if_asked)
    row = test_row(int(best.step), run.rows(), sums, time.perf_counter() - start)
    run.record_test(row)
    return row


def _last_of(totals: Iterator[Metrics], stop_if_asked: Callable[[], None]) -> Metrics:
    """Return the last of the running totals; stay one call ahead of the device, no more."""
    latest = None
    for each in totals:
        stop_if_asked()
        if latest is not None:
            jax.block_until_ready(latest)
        latest = each
    assert latest is not None  # a data set is never empty
    return latest.total()


def _is_over(epoch: int, config: ConfigDict, rows: list[Row]) -> bool:
    """Return whether a run has taken all its epochs, or has not become better for a while."""
    every = config.evaluate_every_epochs
    return epoch >= config.num_epochs or is_out_of_patience(rows, config.patience, every)


class Trainer:
    """Takes a run from epoch to epoch: trains, evaluates, logs, saves, and stops at a signal.

    Attributes:
        state: the current state; calls in progress may still be computing it.
        progress: of the steps whose metrics are recorded.

    Args:
        setup: of the run, with the state to start from.
        programs: compiled for it.
        run: where to log and save.
        display: what to show progress on.
        stop: tells whether a signal has asked to stop.
        progress: at the state to start from.
        loggers: take the results of each epoch, too.
    """

    def __init__(
        self,
        setup: Setup,
        programs: Programs,
        run: Record,
        display: Display,
        stop: StopSignal,
        progress: Progress,
        loggers: Loggers,
    ):
        self.state, self.progress = setup.state, progress
        self._programs, self._run, self._display, self._stop = programs, run, display, stop
        self._loggers = loggers
        self._pace = Pace(
            setup.full_batches,
            setup.steps_per_epoch,
            programs.max_steps,
            adapts=setup.config.steps_per_call == 0,
            checkpoint_every=setup.config.checkpoint_every_steps,
        )
        self._steps_per_epoch = setup.steps_per_epoch
        self._held_out = setup.held_out and setup.held_out[0]  # the name of the set
        self._evaluate_every = setup.config.evaluate_every_epochs
        self._num_epochs = setup.config.num_epochs
        self._compile_seconds = programs.compile_seconds
        self._step = int(self.state.step)  # steps whose metrics are recorded
        self._step_rows: list[Row] = []  # since the last checkpoint
        # Of calls that the device may still be running; with what all processes then agree on.
        self._unrecorded: list[tuple[Metrics, jax.Array | None]] = []
        self._agrees = processes.are_several()
        self._agreed_stop: signal.Signals | None = None
        self._largest, self._step_seconds = setup.parallel.largest, 0.0
        self._epoch_start = 0.0  # `time.perf_counter()` when the epoch began

    def train_epoch(self) -> None:
        """Train to the end of the epoch, evaluate, log and save; or stop where a signal asks."""
        self._take_steps()
        held_out = None
        if self._held_out and self._is_to_evaluate:
            self._wait_for(self._programs.to_evaluate())
            start = time.perf_counter()
            self._display.evaluating()
            sums = self._evaluate()
            held_out = self._held_out, sums, time.perf_counter() - start
        self._finish_epoch(held_out)
        self._stop_if_asked()

    @property
    def _is_to_evaluate(self) -> bool:
        """Whether the set held out is evaluated after the epoch in progress."""
        epoch, every = self.progress.epoch + 1, self._evaluate_every
        return epoch == self._num_epochs or (every > 0 and epoch % every == 0)

    def _take_steps(self) -> None:
        """Take the steps that are left of the epoch, and save wherever a checkpoint is due."""
        self._epoch_start = time.perf_counter() - self.progress.seconds
        end = self._step - self.progress.position + self._steps_per_epoch
        for step, count in self._pace.calls(self._step, end):
            self._wait_for(self._programs.to_train(step))
            agreed = self._agree() if self._agrees else None
            self.state, metrics = self._programs.train(self.state, step, count)
            self._unrecorded.append((metrics, agreed))
            # Processes must see at the same step that one was asked to stop.
            overlaps = self._programs.all_compile and self._pace.overlaps(count)
            self._record(leave=1 if overlaps and not self._agrees else 0)
            self._compile_all()
            is_due = self._pace.is_checkpoint_due(step + count) or self._asked_to_stop
            if is_due and step + count < end:  # at the end, it is saved after evaluation
                self._record()
                self._stop_if_asked()
                self._save()
        self._record()

    def _agree(self) -> jax.Array:
        """Return, of all processes, the signal to stop and the seconds of a step."""
        return self._largest([self._stop.received or 0, self._step_seconds])

    @property
    def _asked_to_stop(self) -> signal.Signals | None:
        """The signal at which this step is the last one; several processes have agreed on it."""
        return self._agreed_stop if self._agrees else self._stop.received

    def _wait_for(self, program: futures.Future) -> None:
        """Wait until a program is compiled; a signal that comes meanwhile stops the run."""
        if program.done():
            return
        self._record()
        with self._compiling():
            patience = None if self._agrees else _SIGNAL_SECONDS
            while not futures.wait([program], timeout=patience).done:
                self._stop_if_asked()

    def _compile_all(self) -> None:
        """Once the first step is shown, begin to compile what the rest of the epoch needs."""
        if not self._programs.all_compile:
            with self._compiling():
                self._programs.compile_all()

    @contextlib.contextmanager
    def _compiling(self) -> Iterator[None]:
        """Show that programs are being compiled; the epoch's time leaves this out."""
        start = time.perf_counter()
        with self._display.compiling():
            yield
        seconds = time.perf_counter() - start
        self._epoch_start += seconds
        self._compile_seconds += seconds

    def _record(self, leave: int = 0) -> None:
        """Record the metrics of calls, the oldest first; waits for the device.

        Args:
            leave: how many calls to leave unrecorded, so that the device has work meanwhile.
        """
        while len(self._unrecorded) > leave:
            metrics_of_call, agreed = self._unrecorded.pop(0)
            entries, before = metrics_of_call.per_step(), self.progress
            total, epoch = before.metrics, before.epoch + 1
            seconds = time.perf_counter() - self._epoch_start
            self._observe((seconds - before.seconds) / len(entries), agreed)
            for metrics in entries:
                self._step += 1
                check_finite_means(metrics.means(), self._step)
                self._step_rows.append(step_row(epoch, self._step, metrics))
                total += metrics
            position = before.position + len(entries)
            self.progress = Progress(before.epoch, position, total, seconds)
            self._display.step(epoch, self._step, total.count / seconds, total.means())

    def _observe(self, step_seconds: float, agreed: jax.Array | None) -> None:
        """Take note of what a step of the latest call took, or what all processes agreed on."""
        if agreed is not None:
            number, agreed_seconds = np.asarray(agreed).tolist()
            self._agreed_stop = signal.Signals(int(number)) if number else None
            self._step_seconds, step_seconds = step_seconds, agreed_seconds
        if step_seconds:
            self._pace.observe(1, step_seconds)

    def _evaluate(self) -> Metrics:
        """Return the sums over the set held out; stop after the call in progress if asked to."""
        if self._agrees:
            self._stop_if_asked()  # before the first call: all processes make it, or none
        totals = self._programs.evaluate(self.state, self._pace.steps_in_time())
        return _last_of(totals, self._stop_if_asked)

    def _finish_epoch(self, held_out: tuple[str, Metrics, float] | None) -> None:
        """Log, save and show the results of the epoch, and draw the curves."""
        epoch, train = self.progress.epoch + 1, self.progress.metrics
        seconds = self.progress.seconds
        results: dict[str, Means | None] = {"train": train.means()}
        accuracy = None
        if self._held_out:
            results[self._held_out] = None
        if held_out is not None:
            split, sums, _ = held_out
            results[split], accuracy = sums.means(), sums.accuracy()
            check_finite_means(sums.means(), self._step, split)
        row = epoch_row(epoch, self._step, train, seconds, held_out, self._compile_seconds)
        self._compile_seconds = 0.0
        self.progress = Progress(epoch, accuracy=accuracy)
        self._save(row)
        self._display.epoch(epoch, self._step, train.count / seconds, results)
        self._run.draw()
        self._loggers.write(row)

    def _save(self, row: Row | None = None) -> None:
        self._run.save(self.state, self.progress, self._step_rows, row)
        self._step_rows = []

    def _stop_if_asked(self) -> None:
        """Save, if there is anything new, and raise StoppedError if there was a signal."""
        asked = self._asked_to_stop
        if asked is None:
            return
        if self._step_rows or self.progress.position:
            self._save()
        raise StoppedError(f"stopped by {asked.name} {self._run.what_is_left(self._step)}", asked)
