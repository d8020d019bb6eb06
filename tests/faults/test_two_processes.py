"""One run in two processes of two devices each, signalled and killed."""

import functools
import json
import runpy
import signal

import jax
import numpy as np
import pytest

import harness
from conftest import QUICK_TO_COMPILE, ROOT
from harness import ends_of
from jaxcnn.train import train_and_evaluate
from jaxcnn.train.record.checkpoint import Checkpoints

pytestmark = pytest.mark.slow
FLAGS = ("--config.batch_size=30", "--config.steps_per_call=1", "--config.num_epochs=3")
Distributed = functools.partial(harness.DistributedTrainer, xla_flags=QUICK_TO_COMPILE, flags=FLAGS)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run that nothing happened to; each process reads its share of the images from disk."""
    folder, flags = tmp_path_factory.mktemp("distributed"), (*FLAGS, "--config.data_loading=stream")
    trainer = Distributed(folder / "straight", flags=flags)
    (status, printed), (other_status, other_printed) = trainer.finish_both()
    assert (status, other_status) == (0, 0), printed + other_printed
    assert "4 x cpu in 2 processes; batches of 30, padded to 32, 3 epoch(s)" in printed
    assert printed.splitlines()[-2].startswith("done: test accuracy ")
    assert other_printed == ""  # the first shows the run
    return trainer


def last_state(trainer):
    checkpoints = Checkpoints(trainer.workdir / "checkpoints")
    state, _ = checkpoints.restore(checkpoints.steps[-1])
    checkpoints.close()
    return jax.device_get(state)


def losses_of(workdir):
    lines = (workdir / "steps.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_two_processes_train_as_one(straight, tmp_path):
    config = runpy.run_path(f"{ROOT}/configs/lenet_modern.py")["get_config"]("smoke")
    config.update(batch_size=30, num_epochs=3, steps_per_call=1, num_devices=4)
    config.update(momentum=0.9, learning_rate=0.01)
    state = train_and_evaluate(config, tmp_path)
    assert len(losses_of(tmp_path)) == 24
    np.testing.assert_allclose(losses_of(straight.workdir), losses_of(tmp_path), rtol=1e-5)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(close, last_state(straight).params, jax.device_get(state).params)


def test_stopped_by_a_signal_to_one_and_then_killed_it_ends_with_the_same_bits(straight, tmp_path):
    """The signal stops both at one step; a process that is killed takes the other with it.

    Its images are in memory.
    """
    trainer = Distributed(tmp_path / "hurt")
    processes = trainer.start_both()
    trainer.wait_for_checkpoint(3)
    processes[1].send_signal(signal.SIGTERM)
    (status, printed), (other_status, other_printed) = ends_of(processes)
    assert (status, other_status) == (143, 143), printed + other_printed
    last, other_last = (text.splitlines()[-1] for text in (printed, other_printed))
    assert last.startswith("train.py: stopped by SIGTERM and saved after step ")
    assert last == other_last

    processes = trainer.start_both()
    step = int(last.split("step ")[1].split(";")[0])
    trainer.wait_for_checkpoint(step + 1)
    processes[0].kill()
    _, (status, printed) = ends_of(processes)
    assert status not in (0, None)
    assert printed == (
        "train.py: process 0 of this run has ended, so this one ends; start all again with the "
        "same command, and the run goes on from its last checkpoint\n"
    )

    ends = trainer.finish_both()
    assert [status for status, _ in ends] == [0, 0], ends
    assert trainer.digest() == straight.digest()
