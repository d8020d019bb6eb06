"""The folder of a run: its record, its logs and checkpoints, and resuming from them."""

import contextlib
import errno
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxcnn.config import get_default_config, to_settings
from jaxcnn.errors import ConfigError, TrainingError
from jaxcnn.files import hold_lock, sync, write_atomically
from jaxcnn.inspect import plot_curves
from jaxcnn.train.record.checkpoint import FOLDER, CheckpointWriter, MissingCheckpointError
from jaxcnn.train.record.integrity import DamagedCheckpointError
from jaxcnn.train.record.logs import (
    JsonLines,
    Row,
    TensorBoard,
    best_row,
    evaluated_split,
    if_still_best,
)
from jaxcnn.train.record.progress import Progress
from jaxcnn.train.state import TrainState

# Settings that may differ when a run is resumed; a change of any other would make it another run.
MAY_CHANGE = (
    "num_epochs",
    "data_dir",
    "data_source",
    "data_loading",
    "checkpoint_every_steps",
    "num_devices",
    "data_parallel",
    "recompute",
    "steps_per_call",
    "implementation",
)
# Keys of `run.json` that earlier versions wrote under another name: then, and now.
_RENAMED = {"steps_per_dispatch": "steps_per_call"}
_DRAW_SHARE = 0.05  # most of the time of a run that drawing its curves after an epoch may take


class Workdir:
    """The folder of a run; a context manager that one process at a time can hold.

    It contains `checkpoints/<step>/`, `run.json` (settings, data, the names of the classes, the
    environment of each start and, at the end, the result), `metrics.jsonl` (a row per epoch),
    `steps.jsonl` (a row per step), `curves.png` and, where tensorboardX is installed,
    `tensorboard/`.

    Args:
        folder: created if it is missing.
        settings: of the run: the config as a dict.
        digests: SHA-256 of each split of the data.
        environment: of this start, for the record.
        facts: what else to record, such as the names of the classes: see `Setup.facts`.
        check: called with the recorded settings of a run that is resumed; raises ConfigError if it
            cannot go on with these.

    Attributes:
        changes: a line for each part of the environment that has changed since the last start.

    Raises:
        ConfigError: if the folder cannot be written, is in use, or holds another run.
    """

    def __init__(
        self,
        folder: str | Path,
        settings: dict[str, Any],
        digests: dict[str, str],
        environment: dict[str, Any],
        facts: dict[str, Any] | None = None,
        check: Callable[[dict[str, Any]], None] = lambda settings: None,
    ):
        self.folder = Path(folder)
        self._open = contextlib.ExitStack()  # closes the lock and all that is open
        self._run_file = self.folder / "run.json"
        self._is_drawn, self._draw_time, self._draw_seconds = True, time.monotonic(), 0.5
        self._title = f"{settings['model']} on {settings['dataset']}"
        self.changes: list[str] = []
        self._tested: Row | None = None
        self._tested_before: Row = {}  # by an earlier start
        run: dict[str, Any] = {"config": settings, "data": digests, **(facts or {}), "starts": []}
        try:
            with self._writing(ConfigError, "make it writable, or give another --workdir"):
                self.folder.mkdir(parents=True, exist_ok=True)
                sync([self.folder.parent])
                self._lock()
                self._metrics = JsonLines(self.folder / "metrics.jsonl")
                self._steps = JsonLines(self.folder / "steps.jsonl")
                checkpoints = self.folder / FOLDER
                if any(checkpoints.glob("[0-9]*")) or self._metrics.rows() or self._steps.rows():
                    run["starts"] = self._check_same_run(run, check)
                    self.changes = _changes(run["starts"], environment)
                self._checkpoints = self._open_checkpoints(checkpoints)  # known to be ours now
                self._open.callback(self._checkpoints.close)
                run["starts"].append(environment)
                self._run = run
                self._write_run()
        except BaseException:
            self._open.close()
            raise

    @property
    def name(self) -> str:
        """What messages call the folder."""
        return str(self.folder)

    def __enter__(self) -> "Workdir":
        return self

    def __exit__(self, *error: object) -> None:
        if not self._is_drawn:  # stopped
            self._try_to_draw()
        self._open.close()

    def resume(
        self, shapes: TrainState, warn: Callable[[str], None]
    ) -> tuple[TrainState | None, Progress]:
        """Return the newest good checkpoint, or no state and no progress if there is none.

        Rows logged after that checkpoint are dropped: their steps will be taken again.

        Args:
            shapes: of the run's states, with dtypes and devices.
            warn: called with one line for each damaged checkpoint.

        Raises:
            ConfigError: if there are checkpoints, but no good one, or they are of another network;
                or if more than one epoch is logged, but no checkpoint is left.
        """
        with self._writing(ConfigError, "make it writable, or give another --workdir"):
            restored = self._checkpoints.restore_newest(shapes, warn)
            if restored is None and len(self.rows()) > 1:  # one may precede the first checkpoint
                raise ConfigError(
                    f"the workdir {self.name!r} has logs but no checkpoints any more; "
                    "restore them, or give another --workdir"
                )
            state, progress = restored or (None, Progress())
            step = 0 if state is None else int(state.step)
            self._metrics.truncate("epoch", progress.epoch)
            self._steps.truncate("step", step)
            self._tensorboard = TensorBoard(self.folder / "tensorboard", step)
            self._open.callback(self._tensorboard.close)
        return state, progress

    def save(
        self, state: TrainState, progress: Progress, step_rows: list[Row], row: Row | None = None
    ) -> None:
        """Log what has happened since the last checkpoint, and save another.

        The rows come first, so that a run killed in between takes the steps again.

        Args:
            state: to save.
            progress: at that state.
            step_rows: of the steps since the last call.
            row: of the epoch, if it ends here.

        Raises:
            TrainingError: if they cannot be written, or a number in the state is not finite.
        """
        with self._writing(
            TrainingError, "the checkpoints stay; make room, and give the same command again"
        ):
            self._steps.append(step_rows)
            if row is not None:
                self._metrics.append([row])
                self._tensorboard.write(row)
        self._checkpoints.save(int(state.step), state, progress)
        self._is_drawn = self._is_drawn and row is None

    def draw(self) -> None:
        """Draw the curves of what is saved, unless drawing would take much of the run's time."""
        is_due = time.monotonic() - self._draw_time > self._draw_seconds / _DRAW_SHARE
        if is_due and not self._is_drawn:
            self._try_to_draw()

    def rows(self) -> list[Row]:
        """Return the rows of `metrics.jsonl`."""
        return self._metrics.rows()

    def best_state(self, state: TrainState, warn: Callable[[str], None]) -> TrainState:
        """Return the state of the best epoch; the given one if its checkpoint is damaged or gone.

        Args:
            state: after the last epoch.
            warn: called with one line if the checkpoint is damaged.
        """
        step = best_row(self.rows())["step"]
        if step == int(state.step):
            return state
        try:
            return self._checkpoints.restore(step, state)[0]
        except (DamagedCheckpointError, MissingCheckpointError, OSError) as error:
            warn(f"the best checkpoint, {step}, cannot be read, so the last is tested: {error}")
            return state

    def tested(self) -> Row | None:
        """Return the results of the best epoch on the test set, if it was tested."""
        return self._tested or if_still_best(self._tested_before, self.rows())

    def record_test(self, row: Row) -> None:
        """Take the results of the best epoch on the test set; `finish` writes them."""
        self._tested = row
        with self._writing(TrainingError, "make room, and give the same command again"):
            self._tensorboard.write(row)

    def finish(self) -> None:
        """Plot the curves to `curves.png` and record the result, if there are any rows."""
        rows = self.rows()
        with self._writing(
            TrainingError, "the run is complete; make room, and give the same command for curves"
        ):
            if rows:
                self._draw()
                self._run["result"] = {"last": rows[-1]}
                if evaluated_split(rows) != "train":
                    self._run["result"]["best"] = best_row(rows)
                if tested := self.tested():
                    self._run["result"]["test"] = tested
                self._write_run()

    def what_is_left(self, step: int) -> str:
        """Return what becomes of a run that stops after a step, for its last line."""
        return what_is_left(step)

    def _open_checkpoints(self, folder: Path) -> CheckpointWriter:
        return CheckpointWriter(folder)

    def _draw(self) -> None:
        start = time.monotonic()
        unfinished = self.folder / ".unfinished.png"
        plot_curves(self.rows(), unfinished, self._title)
        unfinished.replace(self.folder / "curves.png")
        self._is_drawn, self._draw_time = True, time.monotonic()
        self._draw_seconds = self._draw_time - start

    def _try_to_draw(self) -> None:
        with contextlib.suppress(OSError):  # the end of the run draws again, or says why not
            self._draw()

    def _write_run(self) -> None:
        write_atomically(self._run_file, f"{json.dumps(self._run, indent=2)}\n")

    @contextlib.contextmanager
    def _writing(self, kind: type[Exception], advice: str) -> Iterator[None]:
        """Turn a failure to write into an error of one line."""
        try:
            yield
        except OSError as error:
            # The folder of a run on a store is on this machine, and so is room that is short.
            name = str(self.folder) if error.errno == errno.ENOSPC else self.name
            raise kind(
                f"cannot read or write the workdir {name!r} ({error.strerror or error}); {advice}"
            ) from error

    def _lock(self) -> None:
        lock = self.folder / ".lock"
        try:
            self._open.enter_context(hold_lock(lock, wait=False))
        except BlockingIOError:
            raise ConfigError(
                f"process {lock.read_text()} is training in the workdir {self.name!r}; wait "
                "until it ends, or give another --workdir"
            ) from None

    def _check_same_run(
        self, now: dict[str, Any], check: Callable[[dict[str, Any]], None]
    ) -> list[dict[str, Any]]:
        """Raise a ConfigError if the folder belongs to another run; return its earlier starts."""
        try:
            before = _read_record(self.folder)
        except ConfigError as error:
            raise ConfigError(
                f"the workdir {self.name!r} has checkpoints or logs, but {error}, so it is "
                "not known whose they are; restore it, or give another --workdir"
            ) from error
        config, data, starts = before["config"], before["data"], before["starts"]
        may_change = set(MAY_CHANGE)
        if now["config"]["model"].startswith("object "):
            may_change.add("num_classes")  # an object has the logits that it has
        changes = [
            f"{key} was {config.get(key)!r} and is {now['config'].get(key)!r}"
            for key in sorted(config.keys() | now["config"].keys())
            if config.get(key) != now["config"].get(key) and key not in may_change
        ] + _changed_facts(before, now)
        if changes:
            raise ConfigError(
                f"the workdir {self.name!r} holds a run with other settings: "
                f"{'; '.join(changes)}; give another --workdir or the same settings"
            )
        check(config)
        self._tested_before = dict(before.get("result", {}).get("test", {}))
        if data != now["data"]:
            raise ConfigError(
                f"the workdir {self.name!r} holds a run on other data (see its run.json), "
                "although the settings are the same; give another --workdir or the same data"
            )
        return starts


def _changed_facts(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return what differs that no setting tells, as far as both records have it."""
    names = {"class_names": "the list of classes", "normalization": "the normalization"}
    changes = [
        f"{name} was {before[key]!r} and is {now[key]!r}"
        for key, name in names.items()
        if key in before and key in now and before[key] != now[key]
    ]
    return changes + _model_changes(before.get("module"), now.get("module"))


def _model_changes(was: dict[str, Any] | None, now: dict[str, Any] | None) -> list[str]:
    """Return what differs between two models that were given as objects."""
    if not was or not now:
        return []
    if was["name"] != now["name"]:
        return [f"the model was {was['name']!r} and is {now['name']!r}"]
    old, new = was["fields"], now["fields"]
    return [
        f"the model's {field} was {old[field]!r} and is {new[field]!r}"
        for field in sorted(old.keys() & new.keys())  # another version may have other fields
        if old[field] != new[field]
    ]


def what_is_left(step: int) -> str:
    """Return what becomes of a run in a folder that stops after a step, for its last line."""
    return f"and saved after step {step}; the same command goes on from there"


def read_run(folder: Path) -> dict[str, Any]:
    """Return what `run.json` records: `config` (with today's keys), `data`, `starts` and more.

    Args:
        folder: of the run; nothing in it changes.

    Raises:
        ConfigError: if it is not the folder of a run, or the record cannot be read.
    """
    if not (folder / "run.json").is_file():
        what = "has no run.json" if folder.is_dir() else "is no folder"
        raise ConfigError(f"{str(folder)!r} {what}; give the folder of a run, such as 'runs/lenet'")
    try:
        return _read_record(folder)
    except ConfigError as error:
        raise ConfigError(f"the run in {str(folder)!r} cannot be read: {error}") from error


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        run = json.loads((folder / "run.json").read_text())
        run["starts"] = [dict(start) for start in run["starts"]]
        run["config"], run["data"] = _with_todays_keys(dict(run["config"])), dict(run["data"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"its run.json cannot be read ({error})") from error
    return run


def _with_todays_keys(recorded: dict[str, Any]) -> dict[str, Any]:
    """Return recorded settings under their names of today, with defaults for newer keys."""
    renamed = {_RENAMED.get(key, key): value for key, value in recorded.items()}
    return to_settings(get_default_config()) | renamed


def _changes(starts: list[dict[str, Any]], environment: dict[str, Any]) -> list[str]:
    """Return a line for each change of the environment that may change the bits of the results."""
    before = starts[-1] if starts else {}
    return [
        f"{key} was {before[key]} at the last start and is {now}: the bits may differ from there"
        for key, now in environment.items()
        if key not in ("date", "platform", "commit") and before.get(key, now) != now
    ]
