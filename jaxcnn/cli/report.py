"""Write an HTML page on runs: curves, figures, mistakes, what differs."""

import argparse
from collections.abc import Iterator

from jaxcnn.cli.output import add_output, add_which, check_output

HELP = "write an HTML page on runs"
EXAMPLE = "jaxcnn report runs/lenet runs/lenet_modern -o report.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `jaxcnn report` to its parser."""
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folder of a run")
    parser.add_argument(
        "-o", "--output", metavar="FILE", default="report.html", help="the page (report.html)"
    )
    parser.add_argument("--title", help="of the page")
    add_which(parser)
    add_output(parser)


def run(options: argparse.Namespace) -> Iterator[str]:
    """Write the page, and yield its path."""
    path = check_output(options.output, options.force)
    from jaxcnn.report import write_report

    page = write_report(options.runs, path, options.which, title=options.title, force=options.force)
    yield f"{page}"
