"""Print a model's layers: shapes, parameters, multiply-adds and receptive fields."""

import argparse
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

from jaxcnn.cli.output import line_width, table
from jaxcnn.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

HELP = "the table of a model's layers"
EXAMPLE = "jaxcnn summary resnet18 --input 96 --depth 1"

_SHORT = {"output shape": "shape", "receptive field": "field"}  # headings of a narrow table
_LEFT = ("layer", "name")  # columns of text
_LEFT_OUT = ("name", "field", "multiply-adds")  # columns, the first one first


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `jaxcnn summary` to its parser."""
    parser.add_argument("model", metavar="MODEL", help="such as resnet18")
    parser.add_argument(
        "--input", type=int, default=28, metavar="PIXELS", help="of the square image (28)"
    )
    parser.add_argument(
        "--depth", type=int, help="1 for the outermost layers; all by default", metavar="N"
    )
    parser.add_argument("--nchw", action="store_true", help="shapes in d2l's order, channels first")


def run(options: argparse.Namespace) -> Iterator[str]:
    """Yield the lines of the table: the full one, or a narrow one where that is too wide."""
    from jaxcnn.inspect import layer_summary, summary_table
    from jaxcnn.models import create_model, smallest_image_size

    if options.depth is not None and options.depth < 1:
        raise ConfigError(f"--depth is {options.depth}; it must be at least 1")
    model, size = create_model(options.model), options.input
    try:
        rows = layer_summary(model, (1, size, size, 1))
    except ValueError as error:
        smallest = smallest_image_size(model)
        if smallest is None or size >= smallest:
            raise
        raise ConfigError(
            f"{options.model} takes images of {smallest} pixels or more, got {size}; give a larger "
            "--input"
        ) from error
    title = f"{options.model} for 10 classes, one gray image of {size} x {size} pixels"
    full = summary_table(rows, title, options.depth, options.nchw)
    lines = _draw(full)
    if max(map(len, lines)) <= line_width():
        yield from lines
    else:
        yield title
        yield ""
        yield from _narrow(full)


def _draw(full: "Table") -> list[str]:
    """Return the lines of a table as wide as it is."""
    from rich.console import Console

    text = io.StringIO()
    Console(file=text, width=10_000).print(full)
    return [line.rstrip() for line in text.getvalue().splitlines()]


def _narrow(full: "Table") -> list[str]:
    """Return a table without frames; if need be with short headings and without some columns.

    Shapes and numbers are never cut: if nothing more can be left out, the lines are too long.
    """
    columns = {f"{x.header}": [*map(str, x.cells), f"{x.footer}"] for x in full.columns}
    short = {
        _SHORT.get(heading, heading): [cell.replace(" x ", "x") for cell in cells]
        for heading, cells in columns.items()
    }
    fewer = [
        {heading: cells for heading, cells in short.items() if heading not in _LEFT_OUT[:count]}
        for count in range(len(_LEFT_OUT) + 1)
    ]
    for variant in (columns, *fewer):
        lines = _layout(variant)
        if max(map(len, lines)) <= line_width():
            break
    return lines


def _layout(columns: dict[str, list[str]]) -> list[str]:
    """Return the lines of columns, of which the last cell is a total."""
    rows = list(zip(*([heading, *cells] for heading, cells in columns.items()), strict=True))
    lines = table(rows, "".join("<" if heading in _LEFT else ">" for heading in columns))
    rule = "-" * max(map(len, lines))
    return [lines[0], rule, *lines[1:-1], rule, lines[-1]]
