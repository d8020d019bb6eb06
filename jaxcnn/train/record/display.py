"""What a run shows while it trains: a live line in a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

_PLAIN_SECONDS = 30.0  # between two lines within an epoch, where the output is not a terminal


class Display:
    """Live progress of a run; a context manager.

    Args:
        num_steps: steps of the whole run.
        num_epochs: epochs of the whole run.
        console: where to write; standard output unless given.
    """

    def __init__(self, num_steps: int, num_epochs: int, console: Console | None = None):
        # Plain lines in Jupyter: rich takes it for a terminal, but a redrawn bar floods the cell.
        self.console = console or Console(
            highlight=False,
            soft_wrap=True,
            force_jupyter=False,
            force_terminal=sys.stdout.isatty(),
        )
        self._num_steps, self._num_epochs = num_steps, num_epochs
        self._last_line = time.monotonic()
        self._live = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=20),
            TextColumn("step"),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=self.console,
            transient=True,
            refresh_per_second=4,
            disable=not self.console.is_terminal,
            speed_estimate_period=600,
        )
        self._task = self._live.add_task(
            "", total=num_steps, visible=False, epoch=f"-/{num_epochs}", numbers=""
        )

    def __enter__(self) -> "Display":
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):  # as for `print`: the terminal may be gone
            self._live.stop()

    def print(self, text: str) -> None:
        """Print a line that stays; a failure to print does not stop the run."""
        with contextlib.suppress(OSError):
            self.console.print(text, markup=False)

    def step(self, epoch: int, step: int, rate: float, means: dict[str, float]) -> None:
        """Show the latest step whose metrics are known.

        Args:
            epoch: from 1.
            step: optimizer steps of the whole run.
            rate: images per second in this epoch.
            means: of this epoch so far, as `Metrics.means` returns them.
        """
        numbers = f"{rate:,.0f} images/s  {format_means(means, separator='  ')}"
        if self.console.is_terminal:
            self._live.update(
                self._task,
                completed=step,
                visible=True,
                epoch=f"{epoch}/{self._num_epochs}",
                numbers=numbers,
            )
        elif time.monotonic() - self._last_line > _PLAIN_SECONDS:
            self._last_line = time.monotonic()
            self.print(
                f"epoch {epoch}/{self._num_epochs}  step {step}/{self._num_steps}  {numbers}"
            )

    def evaluating(self) -> None:
        """Show that the epoch's steps are done and the test set is being evaluated."""
        self._live.update(self._task, numbers="evaluating")

    def epoch(
        self,
        epoch: int,
        step: int,
        rate: float,
        train: dict[str, float],
        test: dict[str, float] | None,
    ) -> None:
        """Print the result of a finished epoch.

        Args:
            epoch: from 1.
            step: optimizer steps of the whole run.
            rate: images per second in this epoch.
            train: means over the epoch, as `Metrics.means` returns them.
            test: means over the test set, if there is one.
        """
        self._last_line = time.monotonic()
        self.print(self._epoch_line(epoch, step, rate, train, test))

    def _epoch_line(
        self,
        epoch: int,
        step: int,
        rate: float,
        train: dict[str, float],
        test: dict[str, float] | None,
    ) -> str:
        splits = {"train": train, "test": test or {}}
        results = [f"{name} {format_means(means)}" for name, means in splits.items() if means]
        start = f"epoch {epoch}/{self._num_epochs}  step {step}"
        return "  ".join([start, *results, f"{rate:,.0f} images/s"])


def format_means(means: dict[str, float], separator: str = " ") -> str:
    """Return metrics as text.

    >>> format_means({"loss": 1.5, "accuracy": 0.25})
    'loss 1.5000 accuracy 0.2500'
    """
    return separator.join(f"{name} {mean:.4f}" for name, mean in means.items())
