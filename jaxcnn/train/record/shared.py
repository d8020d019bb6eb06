"""What records a run of several processes: the first one's record, of which the others are told."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxcnn.errors import ConfigError
from jaxcnn.train import processes
from jaxcnn.train.record.logs import Row, if_still_best
from jaxcnn.train.record.progress import Progress
from jaxcnn.train.record.workdir import Workdir, what_is_left
from jaxcnn.train.state import TrainState

_START_ALIKE = "start all processes with the same command, versions and data"


class Shared:
    """Has the methods of `Workdir` that the loop calls, in every process.

    The first process alone reads and writes the folder, so it need not be one that all machines
    have. What the loop goes by is the same in all.

    Args:
        record: the folder, in the first process; None in the others.
        replicate: copies arrays of the host to every device.
    """

    def __init__(self, record: Workdir | None, replicate: Callable[[Any], Any]):
        self._record, self._replicate = record, replicate
        self.changes: list[str] = record.changes if record else []
        self._rows: list[Row] = []
        self._tested: Row | None = None
        self._tested_before: Row | None = None  # by an earlier start

    def __enter__(self) -> "Shared":
        return self

    def __exit__(self, *error: object) -> None:
        if self._record:
            self._record.__exit__(*error)

    def resume(
        self, shapes: TrainState, warn: Callable[[str], None]
    ) -> tuple[TrainState | None, Progress]:
        """Return what `Workdir.resume` returns in the first process."""
        state, told = None, {}
        if self._record:
            state, progress = self._record.resume(_of_one_device(shapes), warn)
            told = {
                "has_state": state is not None,
                "progress": progress.to_dict(),
                "rows": self._record.rows(),
                "tested": self._record.tested(),
            }
        told = processes.share(told)
        self._rows, self._tested_before = told["rows"], told["tested"]
        progress = Progress.from_dict(told["progress"])
        return (self._share(state, shapes) if told["has_state"] else None), progress

    def save(
        self, state: TrainState, progress: Progress, step_rows: list[Row], row: Row | None = None
    ) -> None:
        """Let the first process log and save; see `Workdir.save`."""
        if row is not None:
            self._rows.append(row)
        if self._record:
            self._record.save(jax.device_get(state), progress, step_rows, row)

    def draw(self) -> None:
        """Let the first process draw the curves."""
        if self._record:
            self._record.draw()

    def rows(self) -> list[Row]:
        """Return the rows, one for each epoch."""
        return self._rows

    def best_state(self, state: TrainState, warn: Callable[[str], None]) -> TrainState:
        """Return what `Workdir.best_state` returns in the first process."""
        best = None
        if self._record:
            best = self._record.best_state(jax.device_get(state), warn)
        return self._share(best, state)

    def tested(self) -> Row | None:
        """Return the results of the best epoch on the test set, if it was tested."""
        return self._tested or if_still_best(self._tested_before, self._rows)

    def record_test(self, row: Row) -> None:
        """Take the results of the best epoch on the test set."""
        self._tested = row
        if self._record:
            self._record.record_test(row)

    def finish(self) -> None:
        """Let the first process draw the curves and record the result."""
        if self._record:
            self._record.finish()

    def what_is_left(self, step: int) -> str:
        """Return what becomes of a run that stops after a step, for its last line."""
        return what_is_left(step)

    def _share(self, state: TrainState | None, like: TrainState) -> TrainState:
        """Return the first process's state on every device."""
        if state is None:
            state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
        return self._replicate(processes.share_arrays(jax.device_get(state)))


def check_alike(facts: dict[str, Any]) -> None:
    """Check that every process is to train the same.

    Args:
        facts: what must be the same, by names for the error; of what JSON has.

    Raises:
        ConfigError: in every process, if one of them has other facts than the first.
    """
    told = processes.share(facts)
    names = [*facts, *(name for name in told if name not in facts)]
    different = next((name for name in names if facts.get(name) != told.get(name)), None)
    others = processes.which(different is not None)
    if different is not None:
        raise ConfigError(
            f"{different} is {facts.get(different)!r} in process {jax.process_index()} and "
            f"{told.get(different)!r} in process 0; {_START_ALIKE}"
        )
    if others:
        raise ConfigError(
            f"process {' and '.join(map(str, others))} was started with other settings or data "
            f"than process 0, as its output says; {_START_ALIKE}"
        )


def _of_one_device(shapes: TrainState) -> TrainState:
    """Return shapes on this process's first device."""
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)
