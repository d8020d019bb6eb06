"""What must hold over a weekend: nothing compiles again, and memory stays flat."""

import logging
import resource
from pathlib import Path

import jax

from jaxcnn.config import get_default_config, smoke
from jaxcnn.train import train_and_evaluate
from jaxcnn.train.display import Display
from jaxcnn.train.programs import TrainCall


def test_nothing_is_compiled_after_the_second_step(tmp_path, monkeypatch, caplog):
    config = smoke(get_default_config(), image_size=28)
    config.num_devices, config.num_epochs = 1, 3
    config.checkpoint_every_steps = config.steps_per_call = 2
    calls, call = [], TrainCall.__call__

    def compilations():
        return [r for r in caplog.records if "Finished XLA compilation" in r.getMessage()]

    def wrapped(self, state):
        calls.append(len(compilations()))
        return call(self, state)

    monkeypatch.setattr(TrainCall, "__call__", wrapped)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        train_and_evaluate(config, tmp_path)
    assert len(calls) == 3 * 5  # of 2, 2, 2 and 1 steps, and 1 with a smaller batch
    assert calls[1] > 0  # the log is heard
    assert len(compilations()) == calls[2]


def resident_megabytes():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def test_memory_stays_flat_over_two_thousand_steps(tmp_path, monkeypatch):
    config = smoke(get_default_config(), image_size=28)
    config.num_devices, config.num_epochs = 1, 25
    config.max_train_examples, config.batch_size = 1280, 16  # 80 steps an epoch
    sizes = []
    monkeypatch.setattr(Display, "epoch", lambda self, row: sizes.append(resident_megabytes()))
    state = train_and_evaluate(config, tmp_path)
    assert int(state.step) == 2000
    assert max(sizes[10:]) - max(sizes[:10]) < 10, sizes
