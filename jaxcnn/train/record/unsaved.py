"""What records a run that leaves nothing behind, in place of a folder."""

from collections.abc import Callable

from jaxcnn.train.record.integrity import check_finite_state
from jaxcnn.train.record.logs import Row
from jaxcnn.train.record.progress import Progress
from jaxcnn.train.state import TrainState


class Unsaved:
    """Keeps the rows of a run in memory; has the methods of `Workdir` that the loop calls."""

    def __init__(self) -> None:
        self.changes: list[str] = []
        self._rows: list[Row] = []
        self._tested: Row | None = None

    def __enter__(self) -> "Unsaved":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def resume(self, shapes: TrainState, warn: Callable[[str], None]) -> tuple[None, Progress]:
        """Return no state and no progress: there is nothing to resume from."""
        return None, Progress()

    def save(
        self, state: TrainState, progress: Progress, step_rows: list[Row], row: Row | None = None
    ) -> None:
        """Keep the row of an epoch.

        Raises:
            TrainingError: if a number in the state is not finite.
        """
        check_finite_state(state.current | {"ema": state.ema}, int(state.step))
        if row is not None:
            self._rows.append(row)

    def draw(self) -> None:
        """Do nothing."""

    def rows(self) -> list[Row]:
        """Return the rows, one for each epoch."""
        return self._rows

    def best_state(self, state: TrainState, warn: Callable[[str], None]) -> TrainState:
        """Return the given state, the last: no other is kept."""
        return state

    def tested(self) -> Row | None:
        """Return the row of `record_test`."""
        return self._tested

    def record_test(self, row: Row) -> None:
        """Keep the results on the test set."""
        self._tested = row

    def finish(self) -> None:
        """Do nothing."""

    def what_is_left(self, step: int) -> str:
        """Return what becomes of a run that stops after a step, for its last line."""
        return f"after step {step}; nothing is saved, since no workdir was given"
