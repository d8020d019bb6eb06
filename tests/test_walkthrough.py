"""The walkthrough runs, and still prints what its committed notebook shows."""

import re
import tempfile
from pathlib import Path

import jupytext
import nbformat
import pytest

from conftest import QUICK_TO_COMPILE, ROOT

TEXT = ROOT / "docs" / "walkthrough.py"
NOTEBOOK = ROOT / "docs" / "walkthrough.ipynb"
LESS_TO_COMPILE = QUICK_TO_COMPILE.replace("level=0", "level=1")  # it trains for a minute, too


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(NOTEBOOK, as_version=4)


def printed(cell):
    """What a cell printed or returned, as text, and how many pictures it drew."""
    texts, pictures = [], 0
    for output in cell.outputs:
        if output.output_type == "stream":
            texts.append(output.text)
        elif "image/png" in output.data:
            pictures += 1
        else:
            texts.append(output.data["text/plain"])
    return "".join(texts), pictures


def test_the_notebook_has_the_cells_of_the_text(committed):
    cells = jupytext.read(TEXT).cells
    assert [(cell.cell_type, cell.source) for cell in cells] == [
        (cell.cell_type, cell.source) for cell in committed.cells
    ]


@pytest.mark.slow
def test_every_cell_prints_what_is_committed(committed, run_python):
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "walkthrough.ipynb"
        build = ("docs/build.py", "--output", str(output))
        done = run_python(*build, timeout=900, XLA_FLAGS=LESS_TO_COMPILE)
        assert done.returncode == 0, done.stderr
        cells = nbformat.read(output, as_version=4).cells
    for cell, expected in zip(cells, committed.cells, strict=True):
        if cell.cell_type != "code":
            continue
        (text, pictures), (expected_text, expected_pictures) = printed(cell), printed(expected)
        assert pictures == expected_pictures, cell.source
        tags = cell.metadata.get("tags", [])
        if "trained" in tags:
            accuracy, expected_accuracy = (
                float(re.search(r"test accuracy (\d\.\d+)", t)[1]) for t in (text, expected_text)
            )  # another kind of processor rounds differently, and training amplifies it
            assert accuracy == pytest.approx(expected_accuracy, abs=0.15), cell.source
        elif "varies" not in tags:  # what a trained network says of single images
            assert text == expected_text, cell.source


@pytest.mark.parametrize(
    "result",
    [
        "[[19., 25.],\n       [37., 43.]]",
        "epoch 2, loss 4.519\nepoch 4, loss 1.377\nepoch 6, loss 0.485\n"
        "epoch 8, loss 0.185\nepoch 10, loss 0.074",
        "0.9650 -1.0204",
        "[[ 56.,  72.],\n       [104., 120.]]",
        "[[ 76., 100.],\n        [148., 172.]]",
        "[[ 96., 128.],\n        [192., 224.]]",
        "53,687,091,200 operations",
        "[[ 6.,  8.],\n         [14., 16.]]",
        "(4, 6, 3, 3)",
    ],
)
def test_the_notebooks_results_are_there(committed, result):
    text = "\n".join(printed(cell)[0] for cell in committed.cells if cell.cell_type == "code")
    assert result in text
