"""What a report says of runs: read from their folders, and evaluated; nothing is drawn here."""

import dataclasses
import os
from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcnn.data import Dataset, has_pictures, is_dataset
from jaxcnn.errors import ConfigError, JaxcnnError
from jaxcnn.files import local_path
from jaxcnn.report.layers import Convolution, find_convolutions
from jaxcnn.scores import Evaluation, wilson_interval
from jaxcnn.train.record.logs import (
    JsonLines,
    Row,
    best_row,
    evaluated_rows,
    evaluated_split,
    is_out_of_patience,
)
from jaxcnn.train.record.workdir import read_run
from jaxcnn.trained import Trained, load

UNKNOWN = "-"
_MAX_MISTAKES = 24

Table = dict[str, list[str]]  # by the name of a row, a value for each run


@dataclasses.dataclass(frozen=True)
class Mistake:
    """An image that is predicted wrong.

    Attributes:
        image: uint8 [H, W, C].
        predicted: name of the class that is predicted, and its probability.
        true: name of the class that the image is of, and its probability.
    """

    image: np.ndarray
    predicted: tuple[str, float]
    true: tuple[str, float]


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as a report shows it.

    Attributes:
        name: that tells it from the other runs.
        record: of its `run.json`.
        rows: of its `metrics.jsonl`.
        notes: a sentence for each thing that cannot be shown.
        checkpoint: which one is shown; '' if none can be loaded.
        parameters: how many there are.
        evaluation: None if the data are not there.
        evaluated_on: 'test' or 'validation' for its own set, '' for other images.
        mistakes: the most confident ones.
        convolutions: in the order of the computation.
        image: uint8 [H, W, C], that the feature maps are of; None if there are no maps.
    """

    name: str
    record: dict[str, Any]
    rows: list[Row]
    notes: list[str]
    checkpoint: str = ""
    parameters: int = 0
    evaluation: Evaluation | None = None
    evaluated_on: str = ""
    mistakes: list[Mistake] = dataclasses.field(default_factory=list)
    convolutions: list[Convolution] = dataclasses.field(default_factory=list)
    image: np.ndarray | None = None


def read_records(folders: Sequence[str | Path]) -> dict[Path, dict[str, Any]]:
    """Return the `run.json` of each folder.

    Raises:
        ConfigError: if there is no folder, one is given twice, or is not the folder of a run.
    """
    paths = [local_path(folder, "folder") for folder in folders]
    if not paths:
        raise ConfigError("no run to report; give the folder of one, such as 'runs/lenet'")
    resolved = [path.resolve() for path in paths]
    records = {}
    for i, path in enumerate(paths):
        if resolved[i] in resolved[:i]:
            raise ConfigError(f"the run in {str(path)!r} is given twice; give each once")
        records[path] = read_run(path)
    return records


def collect(
    folder: Path, name: str, record: dict[str, Any], which: str | int, data: Dataset | None
) -> Run:
    """Read, evaluate and look into a run; what cannot be had becomes a note.

    Args:
        folder: of the run.
        name: of the run on the page.
        record: of its `run.json`.
        which: checkpoint; see `jaxcnn.load`.
        data: to evaluate on; None for the run's own test set, or its validation set as long as that
            has not chosen an epoch.
    """
    is_evaluated = not {"test", "validation"}.isdisjoint(record["data"])
    which = "last" if which == "best" and not is_evaluated else which
    try:
        trained = load(folder, which)
    except JaxcnnError as error:
        rows = JsonLines(folder / "metrics.jsonl").rows()
        notes = [*_progress_notes(record, rows), f"The model cannot be shown: {error}."]
        return Run(name, record, rows, notes)
    run = Run(
        name,
        record,
        trained.history,
        notes=_progress_notes(record, trained.history),
        checkpoint=_describe_checkpoint(trained),
        parameters=sum(x.size for x in jax.tree.leaves(trained.variables["params"])),
    )
    try:
        dataset, split = _load_own(trained, record) if data is None else (data, "")
        if data is not None:  # it may be one of the run's own
            given = data.digest()
            own = (split for split in ("test", "validation") if record["data"].get(split) == given)
            split = next(own, "")
        evaluation = trained.evaluate(dataset)
    except JaxcnnError as error:
        run.notes.append(f"The model cannot be evaluated: {error}.")
        return dataclasses.replace(run, convolutions=find_convolutions(trained, None))
    image = dataset.images[0].copy()  # the data set itself need not stay in memory
    mistakes = _find_mistakes(evaluation, dataset.images)
    evaluation = dataclasses.replace(evaluation, probabilities=np.zeros((0, 0)))  # nor these
    return dataclasses.replace(
        run,
        evaluation=evaluation,
        evaluated_on=split,
        mistakes=mistakes,
        convolutions=find_convolutions(trained, image),
        image=image,
    )


def _progress_notes(record: dict[str, Any], rows: list[Row]) -> list[str]:
    config = record["config"]
    wanted, done = config["num_epochs"], rows[-1]["epoch"] if rows else 0
    if done >= wanted:
        return []
    patience, every = config.get("patience", 0), config.get("evaluate_every_epochs", 1)
    if is_out_of_patience(rows, patience, every):
        return [
            f"The run ended after {done} of {wanted} epochs: no better for {patience} (patience)."
        ]
    return [f"{done} of {wanted} epochs are finished: the run is still training, or was stopped."]


def _describe_checkpoint(trained: Trained) -> str:
    epochs = [row["epoch"] for row in trained.history if row["step"] == trained.step]
    return "".join(f"epoch {epoch}, " for epoch in epochs) + f"step {trained.step:,}"


def _load_own(trained: Trained, record: dict[str, Any]) -> tuple[Dataset, str]:
    """Return the set to evaluate on, and its name; the test set is not looked at too early."""
    is_chosen = "test" in record.get("result", {})
    splits = ("test", "validation") if is_chosen else ("validation", "test")
    split = next((split for split in splits if split in record["data"]), None)
    if split is None:
        raise ConfigError("the run has no test set")
    if not is_dataset(trained.config.dataset):
        raise ConfigError(f"its data, {trained.config.dataset}, are not in jaxcnn.data.DATASETS")
    return trained.dataset(split), split


def _find_mistakes(evaluation: Evaluation, images: np.ndarray) -> list[Mistake]:
    def find(i: int, label: int) -> tuple[str, float]:
        return evaluation.class_names[label], float(evaluation.probabilities[i, label])

    labels, predicted = evaluation.labels, evaluation.probabilities.argmax(axis=1)
    return [
        Mistake(images[i].copy(), find(i, predicted[i]), find(i, labels[i]))
        for i in evaluation.mistakes()[:_MAX_MISTAKES]
    ]


def name_runs(folders: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths, all of the same length, that differ.

    >>> name_runs([Path("a/lenet"), Path("b/lenet")])
    ['a/lenet', 'b/lenet']
    """
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = [os.path.join(*each[-length:]) for each in parts]
        if len(set(names)) == len(names):
            break
    return names


def data_note(runs: Sequence[Run], are_alike: bool = False) -> str:
    """Return a sentence if runs were evaluated on different images; else ''.

    Args:
        runs: of a page.
        are_alike: whether their figures, though not their curves, are of the same images.
    """

    def digests(*splits: str) -> set[str]:
        """Return those of the first of the sets that each run has."""
        data = [run.record["data"] for run in runs]
        found = (next((each[split] for split in splits if split in each), "") for each in data)
        return set(found) - {""}

    if len(digests("test")) > 1:
        if are_alike:
            return "The curves are of different test images, so they do not compare."
        if _are_sized_differently(runs):
            return (
                "The runs were tested on pictures that were made squares in different ways "
                "(image_size, aspect_ratio), so they compare if the pictures are the same."
            )
        return (
            "The runs were tested on different images, so their figures and curves do not compare."
        )
    if len(digests("validation", "test")) > 1:
        return "The curves are of different validation images, so they compare only roughly."
    return ""


def _are_sized_differently(runs: Sequence[Run]) -> bool:
    """Return whether the runs are on pictures of one name, which differ by what they became."""
    configs = [run.record["config"] for run in runs]
    is_one = len({config["dataset"] for config in configs}) == 1
    ways = {(config["image_size"], config.get("aspect_ratio")) for config in configs}
    return is_one and has_pictures(configs[0]["dataset"]) and len(ways) > 1


def tabulate(columns: Iterable[dict[str, str]]) -> Table:
    """Return the rows of a table, from its columns.

    >>> tabulate([{"seed": "0", "model": "vgg"}, {"seed": "1"}])
    {'seed': ['0', '1'], 'model': ['vgg', '-']}
    """
    columns = list(columns)
    keys = dict.fromkeys(key for column in columns for key in column)
    return {key: [column.get(key, UNKNOWN) for column in columns] for key in keys}


def split(table: Table) -> tuple[Table, Table]:
    """Return the rows of a table whose values differ, and those whose values are the same.

    >>> split({"seed": ["0", "1"], "model": ["vgg", "vgg"]})
    ({'seed': ['0', '1']}, {'model': ['vgg', 'vgg']})
    """
    different = {key: row for key, row in table.items() if len(set(row)) > 1}
    return different, {key: row for key, row in table.items() if key not in different}


def describe_settings(run: Run) -> dict[str, str]:
    """Return the config of a run by key."""
    return {key: str(value) or '""' for key, value in run.record["config"].items()}


def describe_environment(run: Run) -> dict[str, str]:
    """Return what a run was made with; of several starts, each value that was another."""
    values: dict[str, dict[str, None]] = {}
    for start in run.record["starts"]:
        flat = dict(start)
        versions = flat.pop("versions", {})
        flat["started (UTC)"] = str(flat.pop("date", ""))[:16].replace("T", " ")
        if devices := flat.get("devices"):
            flat["devices"] = f"{len(devices)} x {', '.join(dict.fromkeys(devices))}"
        for key, value in (flat | versions).items():
            values.setdefault(key, {})[str(value or UNKNOWN)] = None
    return {key: ", then ".join(each) for key, each in values.items()}


def describe_results(run: Run) -> dict[str, str]:
    """Return the figures of a run: those of its log, with intervals where the count is known."""
    rows, results = run.rows, {}
    if run.checkpoint:
        results = {"Checkpoint shown": run.checkpoint, "Parameters": f"{run.parameters:,}"}
    if not rows:
        return results
    last = rows[-1]
    if (split := evaluated_split(rows)) != "train":
        evaluated = evaluated_rows(rows)[-1]
        results |= _describe_accuracy(run, "Best", split, best_row(rows))
        results |= _describe_accuracy(run, "Last", split, evaluated)
        results[f"Last {split} loss"] = f"{evaluated[f'{split}_loss']:.4f}"
    if tested := run.record.get("result", {}).get("test", {}):
        results |= _describe_accuracy(run, "Chosen", "test", tested)
    seconds = sum(row["train_seconds"] for row in rows)
    images = sum(row["train_seconds"] * row["images_per_second"] for row in rows)
    compiling = sum(row.get("compile_seconds", 0.0) for row in rows)
    evaluating = sum(
        row.get(f"{of}_seconds", 0.0) for row in [*rows, tested] for of in ("validation", "test")
    )
    return results | {
        "Last training accuracy": f"{last['train_accuracy']:.4f}",
        "Last training loss": f"{last['train_loss']:.4f}",
        "Time": _duration(seconds + evaluating + compiling),
        "Time: compiling": _duration(compiling),
        "Images per second": f"{images / seconds:,.0f} in training",
    }


def _describe_accuracy(run: Run, which: str, split: str, row: Row) -> dict[str, str]:
    """Return the accuracy of an epoch, and its interval if the number of images is known."""
    accuracy, evaluation = row[f"{split}_accuracy"], run.evaluation
    described = {f"{which} {split} accuracy": f"{accuracy:.4f} in epoch {row['epoch']}"}
    if evaluation is None or run.evaluated_on != split:
        return described
    low, high = wilson_interval(round(accuracy * evaluation.count), evaluation.count)
    return described | {f"{which}: 95 % interval": f"{low:.4f} to {high:.4f}"}


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else str(timedelta(seconds=round(seconds)))
