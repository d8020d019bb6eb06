"""Pictures of a run, drawn without a display."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

_TRAIN, _TEST = "#3366aa", "#cc5522"


def plot_curves(rows: Sequence[dict[str, Any]], path: str | Path, title: str = "") -> None:
    """Draw loss and accuracy over the epochs, training and test, into a PNG file.

    Args:
        rows: of `metrics.jsonl`, one per epoch; at least one.
        path: of the picture.
        title: above it.
    """
    # Here, so that a run starts without waiting for Matplotlib. The canvas needs no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    epochs = [row["epoch"] for row in rows]
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for split, color, marker in (("train", _TRAIN, "o"), ("test", _TEST, "s")):
            values = [row[f"{split}_{quantity}"] for row in rows]
            label = f"{split} ({values[-1]:.4f})"
            axes.plot(epochs, values, color=color, marker=marker, markersize=4, label=label)
        axes.set_xlabel("epoch")
        axes.set_ylabel(f"{quantity} (nats)" if quantity == "loss" else quantity)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
