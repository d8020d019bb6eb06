"""What the commands share: the width of a line, tables, and files that are not overwritten."""

import argparse
import contextlib
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jaxcnn import files
from jaxcnn.errors import ConfigError, JaxcnnError, first_line

if TYPE_CHECKING:
    from jaxcnn.trained import Trained

PIPE_CLOSED = 141  # exit status, as a shell reports SIGPIPE


class LeftOutError(Exception):
    """Some of the inputs could not be used; the results of the others are there.

    Attributes:
        reasons: a line for each.
    """

    def __init__(self, reasons: Sequence[str]):
        super().__init__("; ".join(reasons))
        self.reasons = list(reasons)


def print_anything() -> None:
    """Let standard output take any text: what its encoding has not, such as 'ü', is escaped."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")


def say(line: str) -> None:
    """Print a line for the person at the terminal, which may be gone."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def show(text: str) -> int:
    """Print a text; return the exit status, which tells whether that was possible."""
    try:
        print(text, end="", flush=True)
    except OSError as error:
        flush_output()
        if isinstance(error, BrokenPipeError):
            return PIPE_CLOSED
        say(f"jaxcnn: {explain(error)}")
        return 2
    return 0


def flush_output() -> None:
    """Write what is left to print; where that fails, let it vanish, or Python would complain."""
    try:
        print(end="", flush=True)
    except OSError:
        with contextlib.suppress(OSError), open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


def explain(error: BaseException) -> str:
    """Return one line on an error: what failed, and why."""
    if isinstance(error, JaxcnnError):
        return f"{error}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return first_line(error)


def line_width() -> int:
    """Return the columns of the terminal ($COLUMNS, if it is set); 80 where there is none."""
    return shutil.get_terminal_size((80, 24)).columns


def table(rows: Sequence[Sequence[str]], align: str) -> list[str]:
    r"""Return rows as lines with columns two spaces apart.

    Args:
        rows: each of as many cells.
        align: '<' or '>' for each column.

    >>> print("\n".join(table([("class", "images"), ("Bag", "9")], "<>")))
    class  images
    Bag         9
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            f"{cell:{side}{width}}" for cell, side, width in zip(row, align, widths, strict=True)
        ).rstrip()
        for row in rows
    ]


def shorten(text: str, width: int) -> str:
    """Return a text of at most so many characters.

    >>> shorten("tench, Tinca tinca", 8)
    'tench, …'
    """
    return text if len(text) <= width else f"{text[: width - 1]}…"


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say which checkpoint of which run."""
    parser.add_argument(
        "run_folder",
        metavar="RUN",
        help="folder of the run, such as runs/lenet; or pretrained:tiny, which comes with jaxcnn",
    )
    add_which(parser)


def load_run(options: argparse.Namespace) -> "Trained":
    """Load what the arguments of `add_run` say."""
    from jaxcnn.pretrained import PREFIX, load_pretrained
    from jaxcnn.trained import load

    if not options.run_folder.startswith(PREFIX):
        return load(options.run_folder, options.which)
    if options.which != "best":
        raise ConfigError(
            f"--which is {options.which}, but {options.run_folder} has one checkpoint alone; "
            "leave it out"
        )
    return load_pretrained(options.run_folder.removeprefix(PREFIX))


def add_which(parser: argparse.ArgumentParser) -> None:
    """Add the option that says which checkpoint."""
    parser.add_argument(
        "--which",
        metavar="CHECKPOINT",
        default="best",
        type=_which,
        help="'best' (by validation, else test accuracy; the default), 'last', or a step",
    )


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add the option that lets a file be overwritten."""
    parser.add_argument("--force", action="store_true", help="overwrite a file that exists")


def check_output(path: str, force: bool) -> Path:
    """Check that a file can be written, before any work; see `jaxcnn.files.check_output`."""
    return files.check_output(path, force, how_to_force="--force")


def _which(text: str) -> str | int:
    return int(text) if text.isdecimal() else text
