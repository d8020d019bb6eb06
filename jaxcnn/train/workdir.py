"""The folder of a run: its config, logs and checkpoints, and going on from them."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from jaxcnn.errors import ConfigError
from jaxcnn.inspect import plot_curves
from jaxcnn.train.checkpoint import Checkpoints
from jaxcnn.train.logs import JsonLines, Row, TensorBoard, write_atomically
from jaxcnn.train.state import TrainState

# What may differ when a run goes on; anything else would make it another run.
MAY_CHANGE = ("num_epochs", "data_dir", "data_source", "num_devices", "steps_per_dispatch")


class Workdir:
    """Where a run keeps what it makes.

    `checkpoints/<step>/`, `config.json`, `metrics.jsonl` (a row per epoch), `steps.jsonl` (a row
    per step), `curves.png` and, where tensorboardX is installed, `tensorboard/`.

    Args:
        folder: made if it is missing.
        config: of the run.

    Raises:
        ConfigError: if the folder cannot be written, or holds a run with other settings.
    """

    def __init__(self, folder: str | Path, config: ConfigDict):
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._checkpoints = Checkpoints(self.folder / "checkpoints")
        except OSError as error:
            raise ConfigError(
                f"cannot write to the workdir {str(self.folder)!r}: {error.strerror}; give another "
                "--workdir"
            ) from error
        if self._checkpoints.steps:
            self._check_config(config)
        text = json.dumps(config.to_dict(), indent=2, sort_keys=True)
        write_atomically(self.folder / "config.json", f"{text}\n")
        self._title = f"{config.model} on {config.dataset}"
        self._metrics = JsonLines(self.folder / "metrics.jsonl")
        self._steps = JsonLines(self.folder / "steps.jsonl")

    def resume(self, state: TrainState) -> TrainState:
        """Return the state of the newest checkpoint, or the given one if there is none.

        Rows that were logged after that checkpoint are dropped: their steps will be taken again.
        """
        if self._checkpoints.steps:
            state = self._checkpoints.restore(self._checkpoints.steps[-1], state)
        step = int(state.step)
        self._metrics.truncate(after=step)
        self._steps.truncate(after=step)
        self._tensorboard = TensorBoard(self.folder / "tensorboard", step)
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

    def finish(self) -> None:
        """Draw the curves and close what is open."""
        plot_curves(self.rows(), self.folder / "curves.png", self._title)
        self._tensorboard.close()
        self._checkpoints.close()

    def _check_config(self, config: ConfigDict) -> None:
        before = json.loads((self.folder / "config.json").read_text())
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
