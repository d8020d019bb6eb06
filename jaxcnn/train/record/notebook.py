"""What a run shows in Jupyter: curves that grow while it trains, and a line below them."""

import base64
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from jaxcnn.inspect.figures import curves_png
from jaxcnn.train.record.display import Display, Means, format_means
from jaxcnn.train.record.logs import Row

_SECONDS = 0.5  # between two changes of the line within an epoch
_DRAW_SECONDS = 0.2  # what drawing takes, until it is known
_DRAW_SHARE = 0.1  # most of the time of a run that drawing its curves may take


def create_display(num_steps: int, num_epochs: int) -> Display:
    """Return the display that suits the place: a notebook, a terminal or a file."""
    return (NotebookDisplay if is_in_notebook() else Display)(num_steps, num_epochs)


def is_in_notebook() -> bool:
    """Return whether this is Jupyter, where what is shown goes to a cell."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    names = {kind.__name__ for kind in type(shell).__mro__}  # Colab's has a class of its own
    return "ZMQInteractiveShell" in names


class NotebookDisplay(Display):
    """Live progress of a run in a cell: the curves so far, and where it is.

    Args:
        num_steps: steps of the whole run.
        num_epochs: epochs of the whole run.
    """

    def __init__(self, num_steps: int, num_epochs: int):
        super().__init__(num_steps, num_epochs)
        self._rows: list[Row] = []
        self._handles: dict[str, Any] = {}
        self._is_drawn, self._draw_time, self._draw_seconds = True, 0.0, _DRAW_SECONDS

    def resume(self, rows: Sequence[Row]) -> None:
        """Let the curves begin with the epochs that an earlier start has finished."""
        self._rows = list(rows)

    def step(self, epoch: int, step: int, rate: float, means: Means) -> None:
        """Show the latest step whose metrics are known."""
        if time.monotonic() - self._last_line > _SECONDS:
            self._show_line(
                f"epoch {epoch}/{self._num_epochs}  step {step}/{self._num_steps}  "
                f"{rate:,.0f} images/s  {format_means(means)}"
            )

    def epoch(self, epoch: int, step: int, rate: float, results: dict[str, Means | None]) -> None:
        """Let the curves grow by an epoch."""
        evaluated = {split: means for split, means in results.items() if means}
        means = {f"{split}_{key}": x for split, of in evaluated.items() for key, x in of.items()}
        self._rows.append({"epoch": epoch, "step": step, **means})
        self._is_drawn = False
        if time.monotonic() - self._draw_time > self._draw_seconds / _DRAW_SHARE:
            self._draw()
        shown = (f"{split} {format_means(each)}" for split, each in evaluated.items())
        self._show_line("  ".join([f"epoch {epoch}/{self._num_epochs}", *shown]))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._is_drawn:
            self._draw()
        super().__exit__(kind, error, trace)

    def _draw(self) -> None:
        is_first, start = "curves" not in self._handles, time.monotonic()
        png = base64.b64encode(curves_png(self._rows)).decode()
        self._show("curves", {"image/png": png, "text/plain": "loss and accuracy by epoch"})
        self._is_drawn, self._draw_time = True, time.monotonic()
        if not is_first:  # which imports Matplotlib as well
            self._draw_seconds = self._draw_time - start

    def _show_line(self, text: str) -> None:
        self._last_line = time.monotonic()
        self._show("line", {"text/plain": text})

    def _show(self, name: str, content: dict[str, str]) -> None:
        """Show something in the cell, in place of what had the name before."""
        from IPython.display import display  # here, for it is there only in a notebook

        if name in self._handles:
            self._handles[name].update(content, raw=True)
        else:
            self._handles[name] = display(content, raw=True, display_id=True)
