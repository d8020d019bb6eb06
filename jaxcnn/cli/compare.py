"""Compare runs, which may be training: results, and the settings that differ."""

import argparse
import json
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from jaxcnn.cli.output import LeftOutError, explain, line_width, table
from jaxcnn.errors import ConfigError, JaxcnnError
from jaxcnn.files import local_path

HELP = "a table of runs: results, and the settings that differ"
EXAMPLE = "jaxcnn compare runs/*"

_SECONDS = ("train_seconds", "test_seconds", "compile_seconds")  # of an epoch
_DATA = ("dataset", "max_train_examples", "max_test_examples")  # settings that say which data
_DIGITS = 12  # of a SHA-256
_FIGURES, _ALIGN = ("epochs", "best", "last", "loss", "seconds"), ">>>>>"


class Run(NamedTuple):
    """What a run has recorded.

    Attributes:
        name: its folder, as given.
        settings: its config, and `data`, from the SHA-256 of its data.
        rows: one for each finished epoch.
    """

    name: str
    settings: dict[str, Any]
    rows: list[dict[str, Any]]

    def best(self, quantity: str) -> dict[str, Any] | None:
        """Return the row with the highest value; None if there is none."""
        rows = [row for row in self.rows if quantity in row]
        return max(rows, key=lambda row: row[quantity]) if rows else None

    def last(self, quantity: str) -> float | None:
        """Return the value of the last epoch."""
        return self.rows[-1].get(quantity) if self.rows else None

    @property
    def seconds(self) -> float:
        """Of training, evaluation and compilation."""
        return sum(row.get(part, 0.0) for row in self.rows for part in _SECONDS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `jaxcnn compare` to its parser."""
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folder of a run")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each run")


def run(options: argparse.Namespace) -> Iterator[str]:
    """Yield the table, the best test accuracy first; what is no run is left out, and told."""
    runs, reasons = _read(options.runs)
    if not runs:
        raise ConfigError("; ".join(reasons))
    split = "test" if any(run.best("test_accuracy") for run in runs) else "train"
    accuracy = f"{split}_accuracy"
    runs.sort(key=lambda run: -(run.best(accuracy) or {accuracy: -1.0})[accuracy])
    differing = _differing(runs)
    if options.json:
        yield from (json.dumps(_as_json(run, split, differing)) for run in runs)
    else:
        yield from _lines(runs, split, differing)
    if reasons:
        raise LeftOutError(reasons)


def _read(folders: Sequence[str]) -> tuple[list[Run], list[str]]:
    """Return the runs, and a line for each folder that is none."""
    runs, reasons = [], []
    for name in folders:
        try:
            runs.append(_read_run(name))
        except (JaxcnnError, OSError) as error:
            reasons.append(explain(error))
    return runs, reasons


def _read_run(name: str) -> Run:
    from jaxcnn.train.record.logs import JsonLines
    from jaxcnn.train.record.workdir import read_run

    folder = local_path(name, "the folder of a run")
    record = read_run(folder)
    digests = {split: digest[:_DIGITS] for split, digest in record["data"].items()}
    settings = record["config"] | {"data": digests}
    return Run(name, settings, JsonLines(folder / "metrics.jsonl").rows())


def _differing(runs: Sequence[Run]) -> list[str]:
    """Return the keys of the settings that are not the same in all runs.

    The digests of the data are among them only where no setting tells that the data differ.
    """
    keys = list(dict.fromkeys(key for run in runs for key in run.settings))
    differing = [
        key
        for key in keys
        if any(run.settings.get(key) != runs[0].settings.get(key) for run in runs)
    ]
    is_told = any(key in differing for key in _DATA)
    return [key for key in differing if key != "data" or not is_told]


def _lines(runs: Sequence[Run], split: str, differing: Sequence[str]) -> Iterator[str]:
    yield f"{split} accuracy (best and last), {split} loss, seconds in all"
    yield ""
    figures = [(*_FIGURES, "run"), *((*_figures(run, split), run.name) for run in runs)]
    values = [differing, *([_value(run, key) for key in differing] for run in runs)]
    rows = [(*left, *right) for left, right in zip(figures, values, strict=True)]
    lines = table(rows, _ALIGN + "<" * (1 + len(differing)))
    if max(map(len, lines)) <= line_width():
        yield from lines
    else:
        yield from _narrow(runs, figures, differing)
    if len(runs) > 1 and not differing:
        yield ""
        yield "the runs differ in no setting"


def _narrow(
    runs: Sequence[Run], figures: Sequence[Sequence[str]], differing: Sequence[str]
) -> Iterator[str]:
    """Yield lines with what differs below each; the names too, where they are too long."""
    lines = table(figures, f"{_ALIGN}<")
    are_long = max(map(len, lines)) > line_width()
    if are_long:
        lines = table([row[:-1] for row in figures], _ALIGN)
    yield lines[0]
    for run, line in zip(runs, lines[1:], strict=True):
        yield line
        below = ", ".join(f"{key}={_value(run, key)}" for key in differing)
        for text in (run.name if are_long else "", below):
            yield from textwrap.wrap(
                text,
                line_width(),
                initial_indent="    ",
                subsequent_indent="    ",
                break_long_words=False,
                break_on_hyphens=False,
            )


def _figures(run: Run, split: str) -> list[str]:
    best = run.best(f"{split}_accuracy")
    numbers = (
        best and best[f"{split}_accuracy"],
        run.last(f"{split}_accuracy"),
        run.last(f"{split}_loss"),
    )
    epochs = f"{run.rows[-1]['epoch'] if run.rows else 0}/{run.settings['num_epochs']}"
    return [epochs, *("-" if x is None else f"{x:.4f}" for x in numbers), f"{run.seconds:,.1f}"]


def _value(run: Run, key: str) -> str:
    if key not in run.settings:
        return "-"
    value = run.settings[key]
    return " ".join(value.values()) if key == "data" else f"{value}" or "''"


def _as_json(run: Run, split: str, differing: Sequence[str]) -> dict[str, Any]:
    best = run.best(f"{split}_accuracy")
    return {
        "run": run.name,
        "epochs": run.rows[-1]["epoch"] if run.rows else 0,
        "num_epochs": run.settings["num_epochs"],
        "split": split,
        "best_accuracy": best and best[f"{split}_accuracy"],
        "best_epoch": best and best["epoch"],
        "last_accuracy": run.last(f"{split}_accuracy"),
        "last_loss": run.last(f"{split}_loss"),
        "seconds": run.seconds,
        "differing": {key: run.settings.get(key) for key in differing},
    }
