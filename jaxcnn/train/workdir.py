"""The folder of a run: what it is, its logs and checkpoints, and going on from them."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxcnn.errors import ConfigError, TrainingError
from jaxcnn.files import hold_lock, sync, write_atomically
from jaxcnn.inspect import plot_curves
from jaxcnn.train.checkpoint import Checkpoints, Progress
from jaxcnn.train.logs import JsonLines, Row, TensorBoard
from jaxcnn.train.state import TrainState

# What may differ when a run goes on; anything else would make it another run.
MAY_CHANGE = (
    "num_epochs",
    "data_dir",
    "data_source",
    "checkpoint_every_steps",
    "num_devices",
    "steps_per_call",
)


class Workdir:
    """Where a run keeps what it makes; a context manager, since one process at a time may hold it.

    `checkpoints/<step>/`, `run.json` (config, data, and the environment of each start),
    `metrics.jsonl` (a row per epoch), `steps.jsonl` (a row per step), `curves.png` and, where
    tensorboardX is installed, `tensorboard/`.

    Args:
        folder: made if it is missing.
        config: of the run.
        digests: SHA-256 of each split of the data.
        environment: of this start, for the record.

    Attributes:
        changes: a line for each part of the environment that is not what it was at the last start.

    Raises:
        ConfigError: if the folder cannot be written, is in use, or holds another run.
    """

    def __init__(
        self,
        folder: str | Path,
        config: ConfigDict,
        digests: dict[str, str],
        environment: dict[str, Any],
    ):
        self.folder = Path(folder)
        self._open = contextlib.ExitStack()  # what must be closed, the lock among it
        self._run_file = self.folder / "run.json"
        self.changes: list[str] = []
        run: dict[str, Any] = {"config": config.to_dict(), "data": digests, "starts": []}
        try:
            with self._writing(ConfigError, "make it writable, or give another --workdir"):
                self.folder.mkdir(parents=True, exist_ok=True)
                sync([self.folder.parent])
                self._lock()
                self._checkpoints = Checkpoints(self.folder / "checkpoints")
                self._open.callback(self._checkpoints.close)
                self._metrics = JsonLines(self.folder / "metrics.jsonl")
                self._steps = JsonLines(self.folder / "steps.jsonl")
                if self._checkpoints.steps or self._metrics.rows() or self._steps.rows():
                    run["starts"] = self._check_is_the_same(run)
                    self.changes = _changes(run["starts"], environment)
                run["starts"].append(environment)
                write_atomically(self._run_file, f"{json.dumps(run, indent=2)}\n")
        except BaseException:
            self._open.close()
            raise
        self._title = f"{config.model} on {config.dataset}"

    def __enter__(self) -> "Workdir":
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def resume(self, state: TrainState, warn: Callable[[str], None]) -> tuple[TrainState, Progress]:
        """Return the newest good checkpoint, or the given state and no progress if there is none.

        Rows that were logged after that checkpoint are dropped: their steps will be taken again.

        Args:
            state: of a run that has not begun; gives shapes and devices.
            warn: called with one line for each damaged checkpoint.

        Raises:
            ConfigError: if there are checkpoints, but none that is good, or of another network; or
                if there are none any more.
        """
        with self._writing(ConfigError, "make it writable, or give another --workdir"):
            restored = self._checkpoints.restore_newest(state, warn)
            if restored is None and len(self.rows()) > 1:  # one may precede the first checkpoint
                raise ConfigError(
                    f"the workdir {str(self.folder)!r} has logs but no checkpoints any more; put "
                    "them back, or give another --workdir"
                )
            state, progress = restored or (state, Progress())
            step = int(state.step)
            self._metrics.truncate("epoch", progress.epoch)
            self._steps.truncate("step", step)
            self._tensorboard = TensorBoard(self.folder / "tensorboard", step)
            self._open.callback(self._tensorboard.close)
        return state, progress

    def save(
        self, state: TrainState, progress: Progress, step_rows: list[Row], row: Row | None = None
    ) -> None:
        """Log what has happened since the last checkpoint and save another.

        The rows come first: a run that is killed in between takes the steps again.

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

    def rows(self) -> list[Row]:
        """Return the rows of `metrics.jsonl`."""
        return self._metrics.rows()

    def draw(self) -> None:
        """Draw the curves, if there is anything to draw."""
        with self._writing(
            TrainingError, "the run is complete; make room, and give the same command for curves"
        ):
            if self.rows():
                unfinished = self.folder / ".unfinished.png"
                plot_curves(self.rows(), unfinished, self._title)
                unfinished.replace(self.folder / "curves.png")

    @contextlib.contextmanager
    def _writing(self, kind: type[Exception], advice: str) -> Iterator[None]:
        """Turn a failure to write into one line."""
        try:
            yield
        except OSError as error:
            raise kind(
                f"cannot read or write the workdir {str(self.folder)!r} "
                f"({error.strerror or error}); {advice}"
            ) from error

    def _lock(self) -> None:
        lock = self.folder / ".lock"
        try:
            self._open.enter_context(hold_lock(lock, wait=False))
        except BlockingIOError:
            raise ConfigError(
                f"process {lock.read_text()} is training in the workdir {str(self.folder)!r}; wait "
                "until it ends, or give another --workdir"
            ) from None

    def _check_is_the_same(self, now: dict[str, Any]) -> list[dict[str, Any]]:
        """Raise a ConfigError if the folder is another run's; return its earlier starts."""
        try:
            before = json.loads(self._run_file.read_text())
            config, data, starts = before["config"], before["data"], before["starts"]
            dict(config), list(starts), [dict(start) for start in starts]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"the workdir {str(self.folder)!r} has checkpoints or logs, but its run.json "
                f"cannot be read ({error}), so whose they are is not known; put it back, or give "
                "another --workdir"
            ) from error
        changes = [
            f"{key} was {config.get(key)!r} and is {now['config'].get(key)!r}"
            for key in sorted(config.keys() | now["config"].keys())
            if config.get(key) != now["config"].get(key) and key not in MAY_CHANGE
        ]
        if changes:
            raise ConfigError(
                f"the workdir {str(self.folder)!r} holds a run with other settings: "
                f"{'; '.join(changes)}; give another --workdir or the same settings"
            )
        if data != now["data"]:
            raise ConfigError(
                f"the workdir {str(self.folder)!r} holds a run on other data (see its run.json), "
                "although the settings are the same; give another --workdir or the same data"
            )
        return starts


def _changes(starts: list[dict[str, Any]], environment: dict[str, Any]) -> list[str]:
    """Return a line for each part of the environment that decides the bits and has changed."""
    before = starts[-1] if starts else {}
    return [
        f"{key} was {before[key]} at the last start and is {now}: the bits may differ from there"
        for key, now in environment.items()
        if key not in ("date", "platform") and before.get(key, now) != now
    ]
