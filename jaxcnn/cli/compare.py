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

_SECONDS = [f"{part}_seconds" for part in ("train", "validation", "test", "compile")]
# Settings that say which data
_DATA = ("dataset", "max_train_examples", "max_test_examples", "validation_examples", "seed")
_SQUARES = ("image_size", "aspect_ratio")  # and into what they turn pictures
_DIGITS = 12  # of a SHA-256


class Run(NamedTuple):
    """What a run has recorded.

    Attributes:
        name: its folder, as given.
        settings: its config, and `data`, from the SHA-256 of its data.
        rows: one for each finished epoch.
        split: the set that each epoch was evaluated on; 'train' if there was none, '' if no epoch
            is finished.
        best: the row of the best epoch, if one is finished.
        evaluated: that of the last epoch that was evaluated on the set, likewise.
        tested: results of that epoch on the test set, if a validation set has chosen it.
    """

    name: str
    settings: dict[str, Any]
    rows: list[dict[str, Any]]
    split: str = ""
    best: dict[str, Any] | None = None
    evaluated: dict[str, Any] | None = None
    tested: dict[str, Any] | None = None

    @property
    def test_accuracy(self) -> float | None:
        """Of the best epoch, if a validation set has chosen it."""
        return (self.tested or {}).get("test_accuracy")

    @property
    def epochs(self) -> int:
        """Finished ones."""
        return self.rows[-1]["epoch"] if self.rows else 0

    @property
    def best_accuracy(self) -> float | None:
        """Of the best epoch."""
        return None if self.best is None else self.best[f"{self.split}_accuracy"]

    def last(self, quantity: str) -> float | None:
        """Return the accuracy or the loss of the last epoch that was evaluated."""
        return None if self.evaluated is None else self.evaluated.get(f"{self.split}_{quantity}")

    @property
    def seconds(self) -> float:
        """Of training, evaluation and compilation."""
        return sum(
            row.get(part, 0.0) for row in [*self.rows, self.tested or {}] for part in _SECONDS
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `jaxcnn compare` to its parser."""
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folder of a run")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each run")


def run(options: argparse.Namespace) -> Iterator[str]:
    """Yield the table, the best accuracy first; what is no run is left out, and told."""
    runs, reasons = _read(options.runs)
    if not runs:
        raise ConfigError("; ".join(reasons))
    runs.sort(key=lambda run: (run.split == "train", -(run.best_accuracy or 0.0)))
    differing = _differing(runs)
    if options.json:
        yield from (json.dumps(_as_json(run, differing)) for run in runs)
    else:
        yield from _lines(runs, differing)
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
    from jaxcnn.train.record.logs import JsonLines, best_row, evaluated_rows, evaluated_split
    from jaxcnn.train.record.workdir import read_run

    folder = local_path(name, "the folder of a run")
    record = read_run(folder)
    digests = {split: digest[:_DIGITS] for split, digest in record["data"].items()}
    settings = record["config"] | {"data": digests}
    rows = JsonLines(folder / "metrics.jsonl").rows()
    if not rows:
        return Run(name, settings, rows)
    tested = record.get("result", {}).get("test", {})
    last = evaluated_rows(rows)[-1]
    return Run(name, settings, rows, evaluated_split(rows), best_row(rows), last, tested)


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
    from jaxcnn.data import has_pictures

    sizes = _SQUARES if has_pictures(runs[0].settings["dataset"]) else ()
    is_told = any(key in differing for key in (*_DATA, *sizes))
    return [key for key in differing if key != "data" or not is_told]


def _lines(runs: Sequence[Run], differing: Sequence[str]) -> Iterator[str]:
    splits = list(dict.fromkeys(run.split for run in runs if run.split)) or ["test"]
    if len(splits) == 1:
        best = "best, chosen by it;" if splits[0] == "test" else "best and"
        yield f"{splits[0]} accuracy ({best} last), loss, seconds"
    else:
        yield "accuracy (best and last) and loss on each run's own set, seconds in all"
    yield ""
    columns = {
        "epochs": [f"{run.epochs}/{run.settings['num_epochs']}" for run in runs],
        "on": [run.split or "-" for run in runs],
        "best": [_decimal(run.best_accuracy) for run in runs],
        "last": [_decimal(run.last("accuracy")) for run in runs],
        "loss": [_decimal(run.last("loss")) for run in runs],
        "test": [_decimal(run.test_accuracy) for run in runs],
        "seconds": [f"{run.seconds:,.1f}" for run in runs],
        "run": [run.name for run in runs],
    }
    if len(splits) == 1:
        del columns["on"]
    if all(run.test_accuracy is None for run in runs):
        del columns["test"]
    figures = [list(columns), *map(list, zip(*columns.values(), strict=True))]
    values = [differing, *([_value(run, key) for key in differing] for run in runs)]
    rows = [(*left, *right) for left, right in zip(figures, values, strict=True)]
    align = ">" * (len(columns) - 1)
    lines = table(rows, align + "<" * (1 + len(differing)))
    if max(map(len, lines)) <= line_width():
        yield from lines
    else:
        yield from _narrow(runs, figures, align, differing)
    if len(runs) > 1 and not differing:
        yield ""
        yield "the runs differ in no setting"


def _narrow(
    runs: Sequence[Run], figures: Sequence[Sequence[str]], align: str, differing: Sequence[str]
) -> Iterator[str]:
    """Yield lines with what differs below each; the names too, where they are too long."""
    lines = table(figures, f"{align}<")
    are_long = max(map(len, lines)) > line_width()
    if are_long:
        lines = table([row[:-1] for row in figures], align)
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


def _decimal(number: float | None) -> str:
    return "-" if number is None else f"{number:.4f}"


def _value(run: Run, key: str) -> str:
    if key not in run.settings:
        return "-"
    value = run.settings[key]
    return " ".join(value.values()) if key == "data" else f"{value}" or "''"


def _as_json(run: Run, differing: Sequence[str]) -> dict[str, Any]:
    return {
        "run": run.name,
        "epochs": run.epochs,
        "num_epochs": run.settings["num_epochs"],
        "split": run.split or None,
        "best_accuracy": run.best_accuracy,
        "best_epoch": run.best and run.best["epoch"],
        "last_accuracy": run.last("accuracy"),
        "last_loss": run.last("loss"),
        "test_accuracy": run.test_accuracy,
        "seconds": run.seconds,
        "differing": {key: run.settings.get(key) for key in differing},
    }
