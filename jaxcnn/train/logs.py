"""What a run writes for people and programs to read: rows of JSON, and TensorBoard files."""

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxcnn.files import write_atomically

Row = dict[str, Any]


class JsonLines:
    """A file with one JSON object per line, each with a 'step'.

    Args:
        path: of the file; made at the first `append`.

    >>> import tempfile
    >>> log = JsonLines(Path(tempfile.mkdtemp()) / "metrics.jsonl")
    >>> log.append([{"step": 1}, {"step": 2}, {"step": 3}])
    >>> log.truncate("step", 2)
    >>> log.rows()
    [{'step': 1}, {'step': 2}]
    """

    def __init__(self, path: Path):
        self.path = path

    def rows(self) -> list[Row]:
        """Return the rows; a line that was not written to its end is left out."""
        rows = []
        if self.path.exists():
            for line in self.path.read_text().splitlines():
                with contextlib.suppress(json.JSONDecodeError):
                    rows.append(json.loads(line))
        return rows

    def append(self, rows: Iterable[Row]) -> None:
        """Add rows; return when they are on disk."""
        with self.path.open("a") as file:
            file.write("".join(f"{json.dumps(row, allow_nan=False)}\n" for row in rows))
            file.flush()
            os.fsync(file.fileno())

    def truncate(self, key: str, last: int) -> None:
        """Drop the rows with more than `last` under a key, and what was not written to its end."""
        if self.path.exists():
            kept = [row for row in self.rows() if row[key] <= last]
            write_atomically(self.path, "".join(f"{json.dumps(row)}\n" for row in kept))


class TensorBoard:
    """Scalars for TensorBoard; does nothing where tensorboardX is not installed.

    Args:
        folder: of the event files.
        step: that the run starts from; TensorBoard hides what was written for later ones.
    """

    def __init__(self, folder: Path, step: int):
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            self._writer = None
        else:
            self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def write(self, row: Row) -> None:
        """Write the numbers of one epoch."""
        if self._writer is None:
            return
        for name, value in row.items():
            if name not in ("epoch", "step"):
                self._writer.add_scalar(name, value, row["step"])
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
