"""What a person sees: a live line in a terminal, plain lines elsewhere, curves in a picture."""

import errno
import io
import os
import re
import signal

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from jaxcnn.errors import StoppedError
from jaxcnn.inspect import plot_curves
from jaxcnn.train.record import display as display_module
from jaxcnn.train.record import notebook
from jaxcnn.train.record.display import Display

ROW = {
    "epoch": 1,
    "step": 4,
    "train_loss": 2.0,
    "train_accuracy": 0.25,
    "test_loss": 1.5,
    "test_accuracy": 0.5,
}


def show(terminal, width=80, held_out="test"):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=width, highlight=False)
    with Display(8, 2, console) as display:
        with display.compiling():
            pass
        display.print("note: some words that are more than a narrow terminal has room for")
        display.step(1, 3, 1000.0, {"loss": 2.25, "accuracy": 0.125})
        display._live.refresh()
        display.evaluating()
        means = {s: {n: ROW[f"{s}_{n}"] for n in ("loss", "accuracy")} for s in ("train", "test")}
        results = {"train": means["train"]} | ({held_out: means["test"]} if held_out else {})
        display.epoch(1, 4, 1234.5, results)
    return out.getvalue()


def lines_of(out):
    """The lines that a terminal has shown, without the codes that move and colour."""
    return re.split(r"[\n\r]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out))


TABLE = """\
   epoch  train loss  accuracy  test loss  accuracy  images/s
     1/2      2.0000    0.2500     1.5000    0.5000     1,234
"""
VALIDATED = """\
   epoch  train loss  accuracy  validation loss  accuracy  images/s
     1/2      2.0000    0.2500           1.5000    0.5000     1,234
"""
UNTESTED = """\
   epoch  train loss  accuracy  images/s
     1/2      2.0000    0.2500     1,234
"""


@pytest.mark.parametrize("width", [80, 60, 40, 25])
def test_a_terminal_shows_whole_words_and_numbers(width):
    lines = lines_of(show(terminal=True, width=width))
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines)
    words = set(" ".join(lines).split())
    words = {word.strip(",") for word in words}
    assert {"narrow", "terminal", "1/2", "2.0000", "0.2500", "1,234", "accuracy"} <= words
    assert {"compiling", "3/8", "left", "evaluating", "0.125"} <= words or width < 60
    assert {"1,000", "images/s", "2.250"} <= words or width < 80


def test_a_terminal_keeps_the_table():
    lines = [line.rstrip() for line in lines_of(show(terminal=True))]
    assert [line for line in TABLE.splitlines() if line not in lines] == []


def test_elsewhere_a_short_epoch_is_a_row():
    note, _, rest = show(terminal=False).partition("\n")
    assert note.startswith("note: ")
    assert rest == TABLE
    assert show(terminal=False, held_out="validation").endswith(VALIDATED)
    assert show(terminal=False, held_out=None).endswith(UNTESTED)


def test_the_headings_come_again():
    out = io.StringIO()
    with Display(8, 50, Console(file=out, width=80)) as display:
        for epoch in range(50):
            display.epoch(epoch + 1, 4, 10.0, {"train": {"loss": 1.0}})
    assert [i for i, line in enumerate(out.getvalue().splitlines()) if "loss" in line] == [
        0,
        21,
        42,
    ]


def test_elsewhere_a_long_epoch_prints_in_between(monkeypatch):
    monkeypatch.setattr(display_module, "_PLAIN_SECONDS", -1.0)
    line = "epoch 1/2  step 3/8  1,000 images/s  loss 2.2500  accuracy 0.1250"
    assert show(terminal=False).splitlines()[1] == line


def test_nobody_may_read_what_is_shown(monkeypatch, capfd):
    """As where a run's output goes to `head`, which ends: the run does not."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w", closefd=False) as out, Display(8, 2) as display:
        display.console.file = out
        for _ in range(3):
            display.print("a line")
        display.console.file = None
        with pytest.raises(BrokenPipeError):
            out.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), write)
    os.close(write)


class GoneTerminal(io.StringIO):
    """A terminal that has hung up."""

    def write(self, text):
        raise OSError(errno.EIO, "Input/output error")


def test_a_terminal_that_is_gone_takes_nothing_with_it():
    console = Console(file=GoneTerminal(), force_terminal=True, width=80)
    display = Display(8, 2, console)
    with pytest.raises(StoppedError, match="saved"), display.compiling():
        raise StoppedError("saved", signal.SIGHUP)
    with display.compiling():
        display.print("a line")


def test_names_are_printed_as_they_are():
    """Neither as rich's markup, nor as its names of pictures."""
    out = io.StringIO()
    with Display(8, 2, Console(file=out, width=80)) as display:
        display.print("folder:cat: 60 [b]training[/b] images :dog:")
    assert out.getvalue() == "folder:cat: 60 [b]training[/b] images :dog:\n"


def test_letters_that_the_output_has_not_do_not_stop_a_run():
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with Display(8, 2, Console(file=out, width=80)) as display:
        display.print("runs/été")


def test_a_run_that_resumes_in_a_notebook_shows_its_earlier_epochs(monkeypatch):
    drawn = []
    monkeypatch.setattr(notebook, "curves_png", lambda rows: drawn.append(list(rows)) or b"")
    monkeypatch.setattr(notebook.NotebookDisplay, "_show", lambda *_: None)
    with notebook.NotebookDisplay(8, 4) as display:
        display.resume([{"epoch": 1, "train_loss": 2.0}, {"epoch": 2, "train_loss": 1.0}])
        display.epoch(3, 6, 10.0, {"train": {"loss": 0.5}})
    assert [row["train_loss"] for row in drawn[-1]] == [2.0, 1.0, 0.5]


@pytest.mark.parametrize("title", ["vgg on folder:price_$/cost_$", "vgg on folder:猫"])
def test_a_title_may_have_any_letters(tmp_path, title):
    plot_curves([ROW], tmp_path / "curves.png", title)
    assert (tmp_path / "curves.png").exists()


@pytest.mark.parametrize("epochs", [1, 10])
def test_curves_are_drawn(tmp_path, epochs):
    rows = [{**ROW, "epoch": i + 1, "train_loss": 2.0 / (i + 1)} for i in range(epochs)]
    plot_curves(rows, tmp_path / "curves.png", "a title")
    with Image.open(tmp_path / "curves.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    colors = {tuple(pixel) for pixel in np.unique(pixels, axis=0)}
    assert {(0x33, 0x66, 0xAA), (0xCC, 0x55, 0x22), (255, 255, 255)} <= colors
