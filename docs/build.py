"""Run `walkthrough.py` as a notebook, and keep it with its outputs: `python docs/build.py`."""

import argparse
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

DOCS = Path(__file__).parent


def build(output: Path) -> None:
    """Write `walkthrough.py` as a notebook with what its cells print; stop at a cell that fails."""
    notebook = jupytext.read(DOCS / "walkthrough.py")
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=600,
        record_timing=False,
        extra_arguments=["--log-level=ERROR"],  # no warning of a connection within one machine
    )
    client.execute()
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # else random, and every build a change
    notebook.metadata.pop("language_info", None)  # the version of this machine's Python
    nbformat.validate(notebook)
    nbformat.write(notebook, output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=DOCS / "walkthrough.ipynb")
    build(parser.parse_args().output.absolute())
