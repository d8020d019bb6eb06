"""Pictures of a run, drawn without a display."""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SPLITS = (("train", "#3366aa", "o"), ("validation", "#338855", "^"), ("test", "#cc5522", "s"))


def curves_figure(rows: Sequence[dict[str, Any]], title: str = "") -> "Figure":
    """Return a figure of loss and accuracy over the epochs, of each set that they were taken on.

    Args:
        rows: as of `metrics.jsonl`, one per epoch, at least one; those of epochs after which the
            set that is held out was not evaluated lack its numbers.
        title: above it.
    """
    # Here, so that a run starts without waiting for Matplotlib. The canvas needs no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 3.6), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for split, color, marker in _SPLITS:
            key = f"{split}_{quantity}"
            epochs = [row["epoch"] for row in rows if key in row]
            values = [row[key] for row in rows if key in row]
            if not values:
                continue
            label = f"{split} ({values[-1]:.4f})"
            axes.plot(epochs, values, color=color, marker=marker, markersize=4, label=label)
        axes.set_xlabel("epoch")
        axes.set_ylabel(f"{quantity} (nats)" if quantity == "loss" else quantity)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.suptitle(title, parse_math=False)
    return figure


def save_figure(figure: "Figure", file: Any, **kwargs: Any) -> None:
    """Draw a figure into a file; letters that Matplotlib's font has not become boxes.

    Args:
        figure: of Matplotlib.
        file: its path, or what has `write`.
        **kwargs: for `savefig`.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+", UserWarning)
        figure.savefig(file, **kwargs)


def plot_curves(rows: Sequence[dict[str, Any]], path: str | Path, title: str = "") -> None:
    """Draw loss and accuracy over the epochs into a file.

    Args:
        rows: see `curves_figure`.
        path: of the picture; its suffix says the format, such as '.png'.
        title: above it.
    """
    save_figure(curves_figure(rows, title), path)


def curves_png(rows: Sequence[dict[str, Any]], title: str = "") -> bytes:
    """Return the picture of `plot_curves` as the content of a PNG file."""
    content = io.BytesIO()
    save_figure(curves_figure(rows, title), content, format="png")
    return content.getvalue()
