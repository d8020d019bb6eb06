"""What a run logs, for people and programs to read: rows of JSON, and TensorBoard files."""

import contextlib
import json
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jaxcnn.errors import ConfigError
from jaxcnn.files import sync, write_atomically
from jaxcnn.train.metrics import Metrics

Row = dict[str, Any]


def step_row(epoch: int, step: int, metrics: Metrics) -> Row:
    """Return a row of `steps.jsonl`.

    Args:
        epoch: from 1.
        step: optimizer steps of the whole run, this one included.
        metrics: of this step's batch.

    >>> step_row(1, 8, Metrics(loss_sum=6.0, correct=1.0, count=4.0))
    {'step': 8, 'epoch': 1, 'loss': 1.5, 'accuracy': 0.25}
    """
    return {"step": step, "epoch": epoch, **metrics.means()}


def epoch_row(
    epoch: int,
    step: int,
    train: Metrics,
    train_seconds: float,
    held_out: tuple[str, Metrics, float] | None,
    compile_seconds: float,
) -> Row:
    """Return a row of `metrics.jsonl`.

    Args:
        epoch: from 1.
        step: optimizer steps of the whole run, this epoch's included.
        train: sums over the epoch's batches, each before its update.
        train_seconds: that the epoch's steps took.
        held_out: the name of the set that the epoch was evaluated on, 'validation' or 'test', the
            sums over it, and the seconds that took; None if it was not, which leaves its keys out.
        compile_seconds: that compiling took, if it preceded this epoch; else 0.

    >>> sums = Metrics(loss_sum=6.0, correct=1.0, count=4.0)
    >>> row = epoch_row(1, 8, sums, 0.5, ("test", sums, 0.1), 2.0)
    >>> row["train_loss"], row["test_accuracy"], row["images_per_second"]
    (1.5, 0.25, 8.0)
    """
    evaluated: Row = {}
    if held_out is not None:
        split, sums, seconds = held_out
        evaluated = {f"{split}_{name}": mean for name, mean in sums.means().items()}
        evaluated[f"{split}_seconds"] = seconds
    return {
        "epoch": epoch,
        "step": step,
        **{f"train_{name}": mean for name, mean in train.means().items()},
        "images_per_second": train.count / train_seconds,
        "train_seconds": train_seconds,
        **evaluated,
        "compile_seconds": compile_seconds,
    }


def test_row(step: int, rows: Sequence[Row], sums: Metrics, seconds: float) -> Row:
    """Return the results on the test set of the epoch that the validation set has chosen.

    Args:
        step: after which the epoch ended.
        rows: of the epochs.
        sums: over the test set.
        seconds: that evaluation took.

    >>> test_row(8, [{"epoch": 1, "step": 8}], Metrics(6.0, 1.0, 4.0), 0.5)
    {'epoch': 1, 'step': 8, 'test_loss': 1.5, 'test_accuracy': 0.25, 'test_seconds': 0.5}
    """
    epoch = next(row["epoch"] for row in rows if row["step"] == step)
    tested = {f"test_{name}": mean for name, mean in sums.means().items()}
    return {"epoch": epoch, "step": step, **tested, "test_seconds": seconds}


def evaluated_split(rows: Sequence[Row]) -> str:
    """Return the set whose accuracy tells how good epochs are: the one that was held out.

    >>> evaluated_split([{"train_accuracy": 0.9}, {"train_accuracy": 0.9, "test_accuracy": 0.8}])
    'test'
    >>> evaluated_split([{"train_accuracy": 0.9}])
    'train'
    """
    for split in ("validation", "test"):
        if any(f"{split}_accuracy" in row for row in rows):
            return split
    return "train"


def evaluated_rows(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of the epochs after which the set that was held out was evaluated.

    All of them if no set was held out, or none of them was evaluated yet.

    >>> rows = [{"epoch": 1}, {"epoch": 2, "test_accuracy": 0.8}]
    >>> [row["epoch"] for row in evaluated_rows(rows)]
    [2]
    """
    split = evaluated_split(rows)
    return [row for row in rows if split == "train" or f"{split}_accuracy" in row]


def best_row(rows: Sequence[Row]) -> Row:
    """Return the row of the highest accuracy on the set that was held out, the first of equal ones.

    >>> best_row([{"epoch": 1, "test_accuracy": 0.8}, {"epoch": 2, "test_accuracy": 0.7}])["epoch"]
    1
    """
    key = f"{evaluated_split(rows)}_accuracy"
    return max(evaluated_rows(rows), key=lambda row: row[key])


def if_still_best(tested: Row | None, rows: Sequence[Row]) -> Row | None:
    """Return the results of an earlier test, if its epoch is still the best; else None.

    >>> rows = [{"step": 8, "test_accuracy": 0.8}, {"step": 16, "test_accuracy": 0.9}]
    >>> if_still_best({"step": 8}, rows[:1]), if_still_best({"step": 8}, rows)
    ({'step': 8}, None)
    """
    return tested if tested and rows and tested["step"] == best_row(rows)["step"] else None


def is_out_of_patience(rows: Sequence[Row], patience: int, every: int = 1) -> bool:
    """Return whether a run has not become better for so many epochs; 0 is no limit.

    It goes by the accuracy on the set that is held out, or else in training.

    Args:
        rows: of the finished epochs.
        patience: in epochs.
        every: after how many epochs the set that is held out is evaluated; 0: after the last one.

    Source: Prechelt, Early stopping - but when?, 1998; d2l 5.5.3.

    >>> rows = [{"epoch": 1, "test_accuracy": 0.8}, {"epoch": 2, "test_accuracy": 0.7}]
    >>> is_out_of_patience(rows, patience=1)
    True
    """
    if not patience or not every:
        return False
    rows = [row for row in rows if row["epoch"] % every == 0]
    if not rows:
        return False
    return rows[-1]["epoch"] - best_row(rows)["epoch"] >= patience


class JsonLines:
    """A file with one JSON object per line, each with an 'epoch' and a 'step'.

    Args:
        path: of the file; the first `append` creates it.

    >>> import tempfile
    >>> log = JsonLines(Path(tempfile.mkdtemp()) / "metrics.jsonl")
    >>> log.append([{"epoch": 1, "step": 1}, {"epoch": 1, "step": 2}])
    >>> log.truncate("step", 1)
    >>> log.rows()
    [{'epoch': 1, 'step': 1}]
    """

    def __init__(self, path: Path):
        self.path = path

    def rows(self) -> list[Row]:
        """Return the rows, without a last line that is incomplete.

        Raises:
            ConfigError: if any other line is not a row.
        """
        if not self.path.exists():
            return []
        *lines, _unfinished = self.path.read_bytes().split(b"\n")
        return [self._parse(line, number) for number, line in enumerate(lines, start=1)]

    def _parse(self, line: bytes, number: int) -> Row:
        try:
            row = json.loads(line)
            int(row["epoch"]), int(row["step"])
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(
                f"line {number} of {str(self.path)!r} is damaged; restore the file, or delete the "
                "line if it may be lost"
            ) from error
        return row

    def append(self, rows: Iterable[Row]) -> None:
        """Add rows; return once they are on disk."""
        is_new = not self.path.exists()
        with self.path.open("a") as file:
            file.write("".join(f"{json.dumps(row, allow_nan=False)}\n" for row in rows))
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            sync([self.path.parent])

    def truncate(self, key: str, last: int) -> None:
        """Drop the rows whose value of `key` exceeds `last`, and a last line that is incomplete."""
        if self.path.exists():
            kept = [row for row in self.rows() if row[key] <= last]
            write_atomically(self.path, "".join(f"{json.dumps(row)}\n" for row in kept))


class TensorBoard:
    """Scalars for TensorBoard; does nothing where tensorboardX is not installed.

    They are written immediately: tensorboardX's SummaryWriter writes in a thread of its own, which
    loses rows when the process is killed, and which the run would wait for forever on a full disk.

    Args:
        folder: of the event files.
        step: that the run starts from; TensorBoard hides earlier scalars of later steps.
    """

    def __init__(self, folder: Path, step: int):
        self._folder, self._start = folder, step
        self._writer: Any = None

    def _open(self) -> bool:
        """Open the file, if it is not open yet; return whether tensorboardX is there to write it.

        It is imported late: the first epoch need not wait for it.
        """
        if self._writer is not None:
            return True
        try:
            from tensorboardX import event_file_writer, summary
            from tensorboardX.proto import event_pb2
        except ImportError:
            return False
        self._folder.mkdir(exist_ok=True)
        self._event, self._scalar = event_pb2.Event, summary.scalar
        path = self._folder / f"events-{self._start}"
        self._writer = event_file_writer.EventsWriter(str(path))
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._put(self._start + 1, session_log=start)
        return True

    def write(self, row: Row) -> None:
        """Write the scalars of one epoch."""
        if not self._open():
            return
        for name, value in row.items():
            if name not in ("epoch", "step"):
                self._put(row["step"], summary=self._scalar(name, value))
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            with contextlib.suppress(OSError):  # every row has been written
                self._writer.close()

    def _put(self, step: int, **content: Any) -> None:
        self._writer.write_event(self._event(step=step, wall_time=time.time(), **content))
