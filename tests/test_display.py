"""What a person sees: a live line in a terminal, plain lines elsewhere, curves in a picture."""

import io

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from jaxcnn.inspect import plot_curves
from jaxcnn.train.record import display as display_module
from jaxcnn.train.record.display import Display

ROW = {
    "epoch": 1,
    "step": 4,
    "train_loss": 2.0,
    "train_accuracy": 0.25,
    "test_loss": 1.5,
    "test_accuracy": 0.5,
}


def show(terminal):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120, highlight=False)
    with Display(8, 2, console) as display:
        display.step(1, 3, 1000.0, {"loss": 2.25, "accuracy": 0.125})
        display._live.refresh()
        display.evaluating()
        train, test = (
            {n: ROW[f"{s}_{n}"] for n in ("loss", "accuracy")} for s in ("train", "test")
        )
        display.epoch(1, 4, 1234.5, train, test)
    return out.getvalue()


def test_terminal_shows_the_live_line_and_keeps_the_epoch():
    out = show(terminal=True)
    for words in (
        "epoch 1/2",
        "3/8",
        "1,000 images/s",
        "loss 2.2500",
        "accuracy 0.1250",
        "left",
        "evaluating",
    ):
        assert words in out
    assert "epoch 1/2  step 4  train loss 2.0000 accuracy 0.2500  test loss 1.5000" in out


def test_elsewhere_a_short_epoch_is_one_line():
    assert show(terminal=False) == (
        "epoch 1/2  step 4  train loss 2.0000 accuracy 0.2500  test loss 1.5000 accuracy 0.5000  "
        "1,234 images/s\n"
    )


def test_elsewhere_a_long_epoch_prints_in_between(monkeypatch):
    monkeypatch.setattr(display_module, "_PLAIN_SECONDS", -1.0)
    first = "epoch 1/2  step 3/8  1,000 images/s  loss 2.2500  accuracy 0.1250"
    assert show(terminal=False).splitlines()[0] == first


@pytest.mark.parametrize("epochs", [1, 10])
def test_curves_are_drawn(tmp_path, epochs):
    rows = [{**ROW, "epoch": i + 1, "train_loss": 2.0 / (i + 1)} for i in range(epochs)]
    plot_curves(rows, tmp_path / "curves.png", "a title")
    with Image.open(tmp_path / "curves.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    colors = {tuple(pixel) for pixel in np.unique(pixels, axis=0)}
    assert {(0x33, 0x66, 0xAA), (0xCC, 0x55, 0x22), (255, 255, 255)} <= colors
