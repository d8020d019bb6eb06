"""A run folder that the first version with this format left: it must load, and go on."""

import json
import shutil
from pathlib import Path

import optax
import pytest

from conftest import CACHED, UNEVEN, small_config
from jaxcnn.config import to_settings
from jaxcnn.errors import ConfigError
from jaxcnn.train import train_and_evaluate

pytestmark = CACHED


def config_of(**changes):
    """The config of that run, with one epoch more: LeNet on 12 x 12 pixels."""
    return small_config(**UNEVEN, image_size=12, **changes)


@pytest.fixture
def folder(tmp_path):
    """A copy of the folder: one epoch of eight steps, with keys that have other names today."""
    return shutil.copytree(Path(__file__).parent / "golden_run", tmp_path / "run")


def rows(folder, name="metrics.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@pytest.mark.slow
def test_it_goes_on_to_another_epoch(folder, capsys):
    before, steps_before = rows(folder), rows(folder, "steps.jsonl")
    state = train_and_evaluate(config_of(), folder)
    assert int(state.step) == 16
    assert "resuming after epoch 1 (step 8)" in capsys.readouterr().out
    first, second = rows(folder)
    assert [first] == before
    assert rows(folder, "steps.jsonl")[:8] == steps_before
    # What the version that wrote it got for the second epoch, up to rounding.
    assert second["train_loss"] == pytest.approx(2.3811686992645265, rel=1e-4)
    assert second["test_loss"] == pytest.approx(2.377206573486328, rel=1e-4)
    assert set(second) == set(first)
    settings = json.loads((folder / "run.json").read_text())["config"]
    assert settings == to_settings(config_of(num_classes=10))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "objects", "message"),
    [
        ({"momentum": 0.0}, {}, "momentum was 0.9 and is 0.0"),
        ({"seed": 1, "batch_size": 16}, {}, "batch_size was 32 and is 16; seed was 0 and is 1"),
        # Keys that the version did not know had today's defaults.
        (
            {"momentum": 0.0},
            {"optimizer": optax.sgd(0.1)},
            "momentum was 0.9 and is 0.0; optimizer was 'sgd' and is 'object Gradient",
        ),
    ],
)
def test_another_setting_is_refused(folder, changes, objects, message):
    before = (folder / "run.json").read_text()
    with pytest.raises(ConfigError, match=f"holds a run with other settings: {message}"):
        train_and_evaluate(config_of(**changes), folder, **objects)
    assert (folder / "run.json").read_text() == before
