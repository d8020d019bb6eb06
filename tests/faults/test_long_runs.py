"""What must hold over a weekend: nothing compiles again, and memory stays flat."""

import logging
import resource
from pathlib import Path

import jax
import pytest

from conftest import UNEVEN, Tiny, small_config
from jaxcnn.train import train_and_evaluate
from jaxcnn.train.programs import Programs
from jaxcnn.train.record.display import Display


@pytest.mark.slow
def test_nothing_is_compiled_after_the_first_epoch(tmp_path, monkeypatch, caplog):
    config = small_config(**UNEVEN, num_epochs=3, checkpoint_every_steps=2, steps_per_call=2)
    calls, train = [], Programs.train

    def compilations():
        return [r for r in caplog.records if "Finished XLA compilation" in r.getMessage()]

    def wrapped(*args):
        calls.append(len(compilations()))
        return train(*args)

    monkeypatch.setattr(Programs, "train", wrapped)
    jax.config.update("jax_log_compiles", True)  # of all threads, unlike `jax.log_compiles()`
    try:
        with caplog.at_level(logging.WARNING):
            train_and_evaluate(config, tmp_path, model=Tiny())
    finally:
        jax.config.update("jax_log_compiles", False)
    assert len(calls) == 3 * 5  # of 2, 2, 2 and 1 steps, and 1 with a smaller batch
    assert calls[0] > 0  # the log is heard
    programs = [r for r in compilations() if "_train_program" in r.getMessage()]
    assert len(programs) == 2
    assert len(compilations()) == calls[5]  # the first of the second epoch


def resident_megabytes():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


@pytest.mark.slow
def test_memory_stays_flat_over_two_thousand_steps(tmp_path, monkeypatch):
    config = small_config(num_epochs=25, image_size=12)
    config.max_train_examples, config.batch_size = 1280, 16  # 80 steps an epoch
    sizes = []
    monkeypatch.setattr(Display, "epoch", lambda *args: sizes.append(resident_megabytes()))
    state = train_and_evaluate(config, tmp_path)
    assert int(state.step) == 2000
    assert max(sizes[10:]) - max(sizes[:10]) < 10, sizes
