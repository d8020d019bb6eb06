"""Evaluate a trained model on the test, validation or training set of its run."""

import argparse
import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from jaxcnn.cli.output import add_run, line_width, load_run, shorten, table

if TYPE_CHECKING:
    from jaxcnn.scores import Evaluation
    from jaxcnn.trained import Trained

HELP = "loss, accuracy and confusion matrix of a trained model"
EXAMPLE = "jaxcnn evaluate runs/lenet --which last"

_MISTAKES = 20  # that are listed where the matrix is too wide
_NAME = 40  # characters of a class's name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `jaxcnn evaluate` to its parser."""
    add_run(parser)
    parser.add_argument(
        "--split",
        choices=("test", "validation", "train"),
        default="test",
        help="on which set (test)",
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON")


def run(options: argparse.Namespace) -> Iterator[str]:
    """Evaluate a checkpoint, and yield the lines of its result."""
    import dataclasses

    trained = load_run(options)
    evaluation = trained.evaluate(options.split)
    if options.json:
        yield json.dumps(_as_json(trained, evaluation, options), allow_nan=False)
        return
    names = tuple(shorten(name, _NAME) for name in evaluation.class_names)
    short = dataclasses.replace(evaluation, class_names=names)
    low, high = evaluation.interval
    yield f"run       {trained.folder or options.run_folder}"
    yield f"model     {trained.title}, step {trained.step}{_epoch(trained)}"
    yield f"data      {short.count:,} images of the {options.split} set"
    yield f"accuracy  {short.accuracy:.4f} (95 % interval {low:.4f} to {high:.4f})"
    yield f"loss      {short.loss:.4f}"
    if _is_chosen_here(trained, options):
        yield "note      the best of several epochs on this set: on other images a little worse"
    yield ""
    yield from short.table().splitlines()
    yield ""
    yield from _confusion(short)


def _epoch(trained: "Trained") -> str:
    """Return the epoch that ends at the step, if one does."""
    epochs = [row["epoch"] for row in trained.history if row["step"] == trained.step]
    return f" (epoch {epochs[0]})" if epochs else ""


def _is_chosen_here(trained: "Trained", options: argparse.Namespace) -> bool:
    """Return whether the checkpoint is the best of several by the set that it is evaluated on."""
    from jaxcnn.train.record.logs import evaluated_rows, evaluated_split

    rows = trained.history
    is_best = options.which == "best" and len(evaluated_rows(rows)) > 1
    return is_best and evaluated_split(rows) == options.split


def _confusion(evaluation: "Evaluation") -> Iterator[str]:
    """Yield the confusion matrix; the most frequent mistakes where it is wider than a line."""
    names = evaluation.class_names
    if 3 * len(names) > line_width():  # a column takes that at least
        yield from _mistakes(evaluation)
        return
    header = ["true class", *map(str, range(len(names)))]
    rows = [
        [f"{number} {name}", *map(str, counts)]
        for number, (name, counts) in enumerate(zip(names, evaluation.confusion, strict=True))
    ]
    lines = table([header, *rows], "<" + ">" * len(names))
    if max(map(len, lines)) <= line_width():
        yield "confusion matrix (rows: the true class; columns: the predicted one)"
        yield from lines
    else:
        yield from _mistakes(evaluation)


def _mistakes(evaluation: "Evaluation") -> Iterator[str]:
    import numpy as np

    names, width = evaluation.class_names, (line_width() - 10) // 2
    counts = evaluation.confusion * (1 - np.eye(len(names), dtype=np.int64))
    most = np.argsort(-counts, axis=None, kind="stable")[:_MISTAKES]
    pairs = (divmod(int(place), len(names)) for place in most if counts.flat[place])
    rows = [
        (
            shorten(names[true], width),
            shorten(names[predicted], width),
            f"{counts[true, predicted]}",
        )
        for true, predicted in pairs
    ]
    yield "most frequent mistakes (--json has the whole confusion matrix)"
    yield from table([("true class", "predicted", "images"), *rows], "<<>")


def _as_json(
    trained: "Trained", evaluation: "Evaluation", options: argparse.Namespace
) -> dict[str, Any]:
    columns = (evaluation.precision, evaluation.recall, evaluation.f1)
    scores = zip(*([_number(x) for x in column] for column in columns), strict=True)
    images = evaluation.confusion.sum(axis=1).tolist()
    return {
        "run": str(trained.folder or options.run_folder),
        "step": trained.step,
        "split": options.split,
        "chosen_on_this_split": _is_chosen_here(trained, options),
        "count": evaluation.count,
        "loss": _number(evaluation.loss),
        "accuracy": evaluation.accuracy,
        "interval": list(evaluation.interval),
        "classes": [
            {"name": name, "images": count, "precision": precision, "recall": recall, "f1": f1}
            for name, count, (precision, recall, f1) in zip(
                evaluation.class_names, images, scores, strict=True
            )
        ],
        "confusion": evaluation.confusion.tolist(),
    }


def _number(value: float) -> float | None:
    """Return a number as JSON has it: none for NaN, as of a class that is never predicted."""
    return float(value) if math.isfinite(value) else None
