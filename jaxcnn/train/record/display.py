"""What a run shows while it trains: a live line in a terminal, plain lines elsewhere."""

import contextlib
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from jaxcnn.train.record.logs import Row

_PLAIN_SECONDS = 30.0  # between two lines within an epoch, where the output is not a terminal
_LIVE_WIDTH = 60  # columns of a terminal that has room for the live line
_BAR_WIDTH = 10
_ROWS = 20  # of the table of epochs below each of its headings

Means = dict[str, float]


class _Console(Console):
    """A console that goes quiet when its reader has gone, as after `| head`."""

    def on_broken_pipe(self) -> None:
        """Go quiet; rich would end the process."""
        self.quiet = True


class Display:
    """Live progress of a run; a context manager.

    In a terminal no line is longer than it is wide, if the words allow it.

    Args:
        num_steps: steps of the whole run.
        num_epochs: epochs of the whole run.
        console: where to write; standard output unless given.
    """

    def __init__(self, num_steps: int, num_epochs: int, console: Console | None = None):
        # Plain lines in Jupyter: rich takes it for a terminal, but a redrawn bar floods the cell.
        self.console = console or _Console(
            highlight=False, force_jupyter=False, force_terminal=sys.stdout.isatty()
        )
        self._num_steps, self._num_epochs = num_steps, num_epochs
        self._last_line = time.monotonic()
        self._num_rows = 0
        self._is_live = self.console.is_terminal and self.console.width >= _LIVE_WIDTH
        self._live = self._progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=_BAR_WIDTH),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
        )
        self._task = self._live.add_task(
            "", total=num_steps, visible=False, epoch=f"-/{num_epochs}", numbers=""
        )

    def _progress(self, *columns: ProgressColumn) -> Progress:
        return Progress(
            *columns,
            console=self.console,
            transient=True,
            refresh_per_second=4,
            disable=not self._is_live,
            speed_estimate_period=600,
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
        """Print lines that stay; a failure to print does not stop the run."""
        if self.console.is_terminal:
            text = "\n".join(map(self._wrap, text.splitlines()))
        with contextlib.suppress(OSError, UnicodeError):
            self.console.print(text, markup=False, emoji=False, soft_wrap=True)

    def _wrap(self, line: str) -> str:
        """Break a line between words, and nowhere else: a path stays whole."""
        return textwrap.fill(
            line,
            self.console.width,
            break_long_words=False,
            break_on_hyphens=False,
            drop_whitespace=len(line) > self.console.width,
        )

    def resume(self, rows: Sequence[Row]) -> None:
        """Take the results of the epochs that an earlier start has finished."""

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Show in a terminal that programs are being compiled, and for how long by now."""
        with contextlib.suppress(OSError):
            self._live.stop()
        live = self._progress(SpinnerColumn("line"), TextColumn("compiling"), TimeElapsedColumn())
        live.add_task("", total=None)
        with contextlib.suppress(OSError):
            live.start()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                live.stop()
        with contextlib.suppress(OSError):
            self._live.start()

    def step(self, epoch: int, step: int, rate: float, means: Means) -> None:
        """Show the latest step whose metrics are known.

        Args:
            epoch: from 1.
            step: optimizer steps of the whole run.
            rate: images per second in this epoch.
            means: of this epoch so far, as `Metrics.means` returns them.
        """
        if self._is_live:
            self._live.update(
                self._task,
                completed=step,
                visible=True,
                epoch=f"{epoch}/{self._num_epochs}",
                numbers=self._fitting_numbers(epoch, rate, means),
            )
        elif time.monotonic() - self._last_line > _PLAIN_SECONDS:
            self._last_line = time.monotonic()
            self.print(
                f"epoch {epoch}/{self._num_epochs}  step {step}/{self._num_steps}  "
                f"{rate:,.0f} images/s  {format_means(means)}"
            )

    def _fitting_numbers(self, epoch: int, rate: float, means: Means) -> str:
        """Return as many of the numbers as the live line has room for."""
        others = (
            f"epoch {epoch}/{self._num_epochs}  {self._num_steps}/{self._num_steps}  0:00:00 left"
        )
        room = self.console.width - len(others) - _BAR_WIDTH
        numbers = [f"{rate:,.0f} images/s", *(f"{name} {mean:.3f}" for name, mean in means.items())]
        while numbers and len("  ".join(numbers)) > room:
            numbers.pop(0)
        return "  ".join(numbers)

    def evaluating(self) -> None:
        """Show that the epoch's steps are done and the set held out is being evaluated."""
        self._live.update(self._task, numbers="evaluating")

    def epoch(self, epoch: int, step: int, rate: float, results: dict[str, Means | None]) -> None:
        """Print the result of a finished epoch, as a row of a table.

        Args:
            epoch: from 1.
            step: optimizer steps of the whole run.
            rate: images per second in this epoch.
            results: means over the epoch, 'train', and over the set that is held out, if there is
                one, by its name; as `Metrics.means` returns them, or None if it was not evaluated.
        """
        self._last_line = time.monotonic()
        headings, numbers = ["epoch"], [f"{epoch}/{self._num_epochs}"]
        for split, means in results.items():
            for i, name in enumerate(results["train"] or ()):
                headings.append(name if i else f"{split} {name}")
                numbers.append(f"{means[name]:.4f}" if means else "-")
        headings, numbers = [*headings, "images/s"], [*numbers, f"{rate:,.0f}"]
        widths = [max(len(heading), 8) for heading in headings]
        heading = _as_row(headings, widths)
        if self.console.is_terminal and len(heading) > self.console.width:
            pairs = zip(headings, numbers, strict=True)
            self.print(", ".join(f"{heading} {number}" for heading, number in pairs))
            return
        if self._num_rows % _ROWS == 0:
            self.print(heading)
        self._num_rows += 1
        self.print(_as_row(numbers, widths))


def _as_row(cells: list[str], widths: list[int]) -> str:
    return "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


def format_means(means: Means) -> str:
    """Return metrics as text.

    >>> format_means({"loss": 1.5, "accuracy": 0.25})
    'loss 1.5000  accuracy 0.2500'
    """
    return "  ".join(f"{name} {mean:.4f}" for name, mean in means.items())
