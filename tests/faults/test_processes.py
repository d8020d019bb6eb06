"""The real train.py, killed, signalled, and out of room."""

import functools
import os
import random
import shutil
import signal
import subprocess
import time

import jax
import pytest

import harness
from conftest import QUICK_TO_COMPILE
from harness import kill_and_finish, measure
from jaxcnn.cli import train
from jaxcnn.train.record.checkpoint import Checkpoints

pytestmark = pytest.mark.slow
FLAGS = (
    "--config.num_epochs=3",
    "--config.augmentation=flip",
    "--config.ema_decay=0.9",
    "--config.schedule=cosine",
    "--config.data_loading=stream",
)
Trainer = functools.partial(harness.Trainer, flags=FLAGS, xla_flags=QUICK_TO_COMPILE)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run that is read again and again, which is all that happens to it: its digest and times."""
    trainer = Trainer(tmp_path_factory.mktemp("straight"))
    seen = []

    def read():
        seen.extend(trainer.read())
        time.sleep(0.2)

    before, training = measure(trainer, meanwhile=read)
    assert len(set(seen)) > 2
    assert seen == sorted(seen)
    return trainer.digest(), (before, training / 3)  # what reading leaves of the processor


def test_killed_at_a_random_moment_it_ends_with_the_same_bits(straight, tmp_path):
    """One of the cycles of which `make soak` has 200."""
    digest, seconds = straight
    trainer = Trainer(tmp_path / "killed")
    choice = random.Random(9)  # after about a third of training
    assert kill_and_finish(trainer, seconds, choice) in ("training", "saving")
    assert trainer.digest() == digest


def assert_stopped_for_want_of_room(trainer, reason):
    """It stops with one line and keeps what it has; with room it goes on."""
    status, printed = trainer.finish()
    assert status == 2, printed
    *_, last = printed.strip().splitlines()
    assert last.startswith("train.py: ")
    assert reason in last
    assert "make room" in last
    assert "Traceback" not in printed


def test_stopped_by_a_file_size_limit_and_then_by_a_signal(straight, tmp_path):
    """Each ends it with a code and a line, and nothing is lost."""
    digest, _ = straight
    limited = Trainer(tmp_path / "run", limit=150_000)  # a checkpoint takes more in one file
    assert_stopped_for_want_of_room(limited, "File too large")
    trainer = Trainer(tmp_path / "run")
    process = trainer.start()
    trainer.wait_until(process, " 1/3 ")
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "SIGTERM: saving; once more to quit at once" in printed
    assert "train.py: stopped by SIGTERM and saved after step" in printed
    assert "Traceback" not in printed
    status, printed = trainer.finish()
    assert status == 0
    assert "resuming" in printed
    assert trainer.digest() == digest


def test_a_second_signal_ends_it_at_once(tmp_path):
    slow = ("image_size=224", "batch_size=100", "max_train_examples=2000", "steps_per_call=20")
    flags = (*(f"--config.{each}" for each in slow), "--config.checkpoint_every_steps=0")
    trainer = Trainer(tmp_path / "stopped", flags=flags)  # seconds a call
    process = trainer.start()
    trainer.wait_until(process, "compiled in")
    process.send_signal(signal.SIGTERM)
    trainer.wait_until(process, "SIGTERM: saving; once more to quit at once")
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    assert "stopped by" not in printed


@pytest.fixture
def small_disk(tmp_path):
    """A file system of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs root and mount to make a small file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.usefixtures("in_repository")
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections
def test_a_full_disk_stops_it_and_nothing_is_lost(straight, tmp_path, small_disk, capsys):
    digest, _ = straight
    trainer = Trainer(small_disk / "run")
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"\0" * 900_000)
    assert_stopped_for_want_of_room(trainer, "No space left")
    checkpoints = Checkpoints(small_disk / "run" / "checkpoints")
    kept = checkpoints.steps
    checkpoints.close()
    assert kept
    ballast.unlink()
    moved = Trainer(tmp_path / "moved")  # three checkpoints and a new one need more than there is
    shutil.copytree(trainer.workdir, moved.workdir)
    status, printed = moved.finish()
    assert status == 0
    assert f"(step {kept[-1]})" in printed
    assert moved.digest() == digest
    remount = ["mount", "-o", "remount,ro", str(small_disk)]
    subprocess.run(remount, check=True)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as users
        assert train.main(trainer.arguments, "train.py") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "Read-only file system" in line
