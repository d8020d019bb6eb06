"""The charts of a report: specifications of Vega-Lite, filled with data.

What does not depend on the data is in `curves.json` and `confusion.json`. Colours are variables of
the page's style sheet (as they may be in SVG), so that the charts follow its theme. Source:
https://vega.github.io/vega-lite/docs/.
"""

import json
import math
from collections.abc import Sequence
from importlib import resources
from typing import Any

from jaxcnn.report.collect import Run
from jaxcnn.scores import Evaluation

_COLORS = 8  # --run-0 to --run-7 of the style sheet
_MAX_DOTS = 50  # of a curve: more would hide its dashes
_MAX_POINTS = 250  # of a curve: a pointer does not hit more


def run_color(index: int, count: int) -> str:
    """Return the colour of a run in CSS: one of a few that are easy to tell, if they are enough."""
    if count <= _COLORS:
        return f"var(--run-{index})"
    return f"oklch(var(--run-lightness) 0.14 {360 * index / count:.0f})"


def curves(runs: Sequence[Run], quantity: str) -> dict[str, Any]:
    """Return the curves of 'loss' or 'accuracy' over the epochs, of all runs."""
    spec = _read("curves.json")
    spec["data"] = {"values": [point for run in runs for point in _points(run, quantity)]}
    encoding = spec["encoding"]
    encoding["y"]["field"] = quantity
    encoding["color"]["scale"] = {
        "domain": [run.name for run in runs],
        "range": [run_color(i, len(runs)) for i in range(len(runs))],
    }
    longest = max(len(run.rows) for run in runs)
    spec["layer"][1]["encoding"]["size"]["value"] = 24 if longest <= _MAX_DOTS else 1
    return spec


def _points(run: Run, quantity: str) -> list[dict[str, Any]]:
    """Return what a pointer on each point shows, which is why the numbers are short."""
    points = []
    for split, name in (("training", "train"), ("validation", "validation"), ("test", "test")):
        key = f"{name}_{quantity}"
        rows = [row for row in run.rows if key in row]
        every = math.ceil(len(rows) / _MAX_POINTS) or 1
        for row in rows[::-1][::every][::-1]:  # with the last
            value = float(f"{row[key]:.5g}")
            points.append({"run": run.name, "split": split, "epoch": row["epoch"], quantity: value})
    return points


def confusion(evaluation: Evaluation) -> dict[str, Any]:
    """Return the confusion matrix as a heat map: the colour of a cell is its share of its row."""
    spec = _read("confusion.json")
    names, counts = evaluation.class_names, evaluation.confusion
    cell = {"name": "cell", "expr": f"min(width, height) / {len(names)}"}
    spec["params"] = [{"name": "names", "value": list(names)}, cell]
    spec["data"] = {
        "values": [
            {
                "i": i,
                "j": j,
                "true": names[i],
                "predicted": names[j],
                "images": int(counts[i, j]),
                "share": float(counts[i, j] / counts[i].sum()),
            }
            for i, j in zip(*(axis.tolist() for axis in counts.nonzero()), strict=True)
        ]
    }
    for axis in ("x", "y"):  # by number, since two classes may have the same name
        spec["encoding"][axis]["scale"] = {"domain": list(range(len(names)))}
    return spec


def _read(name: str) -> dict[str, Any]:
    return json.loads((resources.files(__package__) / name).read_text("utf-8"))
