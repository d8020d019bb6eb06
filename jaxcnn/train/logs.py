"""What a run writes for people and programs to read: rows of JSON, and TensorBoard files."""

import contextlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxcnn.errors import ConfigError
from jaxcnn.files import sync, write_atomically

Row = dict[str, Any]


class JsonLines:
    """A file with one JSON object per line, each with an 'epoch' and a 'step'.

    Args:
        path: of the file; made at the first `append`.

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
        """Return the rows; a last line that was not written to its end is left out.

        Raises:
            ConfigError: if another line is not a row.
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
                f"line {number} of {str(self.path)!r} is damaged; put the file back, or take the "
                "line out if it may be lost"
            ) from error
        return row

    def append(self, rows: Iterable[Row]) -> None:
        """Add rows; return when they are on disk."""
        is_new = not self.path.exists()
        with self.path.open("a") as file:
            file.write("".join(f"{json.dumps(row, allow_nan=False)}\n" for row in rows))
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            sync([self.path.parent])

    def truncate(self, key: str, last: int) -> None:
        """Drop the rows with more than `last` under a key, and what was not written to its end."""
        if self.path.exists():
            kept = [row for row in self.rows() if row[key] <= last]
            write_atomically(self.path, "".join(f"{json.dumps(row)}\n" for row in kept))


class TensorBoard:
    """Scalars for TensorBoard; does nothing where tensorboardX is not installed.

    They are written at once: tensorboardX's SummaryWriter has a thread of its own, which loses rows
    when the process is killed, and for which the run would wait for ever when the disk is full.

    Args:
        folder: of the event files.
        step: that the run starts from; TensorBoard hides what was written for later ones.
    """

    def __init__(self, folder: Path, step: int):
        self._writer: Any = None
        try:
            from tensorboardX import event_file_writer, summary
            from tensorboardX.proto import event_pb2
        except ImportError:
            return
        folder.mkdir(exist_ok=True)
        self._event, self._scalar = event_pb2.Event, summary.scalar
        self._writer = event_file_writer.EventsWriter(str(folder / f"events-{step}"))
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._put(step + 1, session_log=start)

    def write(self, row: Row) -> None:
        """Write the numbers of one epoch."""
        if self._writer is None:
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
