"""The folder of a run: its config, logs and checkpoints, and going on from them."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from jaxcnn.errors import ConfigError
from jaxcnn.files import hold_lock, write_atomically
from jaxcnn.inspect import plot_curves
from jaxcnn.train.checkpoint import Checkpoints
from jaxcnn.train.logs import JsonLines, Row, TensorBoard
from jaxcnn.train.state import TrainState

# What may differ when a run goes on; anything else would make it another run.
MAY_CHANGE = ("num_epochs", "data_dir", "data_source", "num_devices", "steps_per_dispatch")


class Workdir:
    """Where a run keeps what it makes; a context manager, since one process at a time may hold it.

    `checkpoints/<step>/`, `config.json`, `metrics.jsonl` (a row per epoch), `steps.jsonl` (a row
    per step), `curves.png` and, where tensorboardX is installed, `tensorboard/`.

    Args:
        folder: made if it is missing.
        config: of the run.

    Raises:
        ConfigError: if the folder cannot be written, is in use, or holds a run with other settings.
    """

    def __init__(self, folder: str | Path, config: ConfigDict):
        self.folder = Path(folder)
        self._open = contextlib.ExitStack()  # what must be closed, the lock among it
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock()
            self._checkpoints = Checkpoints(self.folder / "checkpoints")
            self._open.callback(self._checkpoints.close)
            if self._checkpoints.steps:
                self._check_config(config)
            text = json.dumps(config.to_dict(), indent=2, sort_keys=True)
            write_atomically(self.folder / "config.json", f"{text}\n")
        except OSError as error:
            self._open.close()
            raise ConfigError(
                f"cannot write to the workdir {str(self.folder)!r}: {error.strerror}; give another "
                "--workdir"
            ) from error
        except ConfigError:
            self._open.close()
            raise
        self._title = f"{config.model} on {config.dataset}"
        self._metrics = JsonLines(self.folder / "metrics.jsonl")
        self._steps = JsonLines(self.folder / "steps.jsonl")

    def __enter__(self) -> "Workdir":
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def resume(self, state: TrainState, warn: Callable[[str], None]) -> TrainState:
        """Return the state of the newest good checkpoint, or the given one if there is none.

        Rows that were logged after that checkpoint are dropped: their steps will be taken again.

        Args:
            state: of a run that has not begun; gives shapes and devices.
            warn: called with one line for each checkpoint that cannot be read.

        Raises:
            ConfigError: if there are checkpoints, but none can be read.
        """
        had_any = bool(self._checkpoints.steps)
        restored = self._checkpoints.restore_newest(state, warn)
        if restored is None and had_any:
            raise ConfigError(
                f"no checkpoint in the workdir {str(self.folder)!r} can be read; they are in its "
                "folder 'damaged' now; give another --workdir, or the same to start anew"
            )
        state = state if restored is None else restored
        step = int(state.step)
        self._metrics.truncate(after=step)
        self._steps.truncate(after=step)
        self._tensorboard = TensorBoard(self.folder / "tensorboard", step)
        self._open.callback(self._tensorboard.close)
        return state

    def keep(self, state: TrainState, row: Row, step_rows: list[Row]) -> None:
        """Log an epoch and save its state.

        The rows come first: a run that is killed in between takes the epoch's steps again.
        """
        self._steps.append(step_rows)
        self._metrics.append([row])
        self._tensorboard.write(row)
        self._checkpoints.save(row["step"], state, row)

    def rows(self) -> list[Row]:
        """Return the rows of `metrics.jsonl`."""
        return self._metrics.rows()

    def draw(self) -> None:
        """Draw the curves, if there is anything to draw."""
        if self.rows():
            plot_curves(self.rows(), self.folder / "curves.png", self._title)

    def _lock(self) -> None:
        lock = self.folder / ".lock"
        try:
            self._open.enter_context(hold_lock(lock, wait=False))
        except BlockingIOError:
            raise ConfigError(
                f"process {lock.read_text()} is training in the workdir {str(self.folder)!r}; wait "
                "until it ends, or give another --workdir"
            ) from None

    def _check_config(self, config: ConfigDict) -> None:
        try:
            before = json.loads((self.folder / "config.json").read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise ConfigError(
                f"the workdir {str(self.folder)!r} has checkpoints, but its config.json cannot be "
                f"read ({error}), so whose they are is not known; put it back, or give another "
                "--workdir"
            ) from error
        now = config.to_dict()
        changes = [
            f"{key} was {before.get(key)!r} and is {now.get(key)!r}"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key) and key not in MAY_CHANGE
        ]
        if changes:
            raise ConfigError(
                f"the workdir {str(self.folder)!r} holds a run with other settings: "
                f"{'; '.join(changes)}; give another --workdir or the same settings"
            )
