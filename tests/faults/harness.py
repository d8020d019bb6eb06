"""The real `train.py` in real processes, to be hurt: started, killed, compared."""

import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax

from jaxcnn.train.record.checkpoint import Checkpoints

ROOT = Path(__file__).parents[2]
TIMINGS = {"images_per_second", "compile_seconds"} | {
    f"{split}_seconds" for split in ("train", "validation", "test")
}


class Trainer:
    """One run of `train.py` on a few images: six epochs of eight steps, saved every third step.

    Args:
        workdir: of the run.
        model: its config's name.
        limit: bytes that a file may have; None for no limit.
        prepare: train on Fashion-MNIST, prepared beside `workdir` first, rather than on the sample.
        flags: more of them.
        xla_flags: for the environment; by default those of a user, who has none.

    Attributes:
        arguments: of `train.py`.
    """

    def __init__(
        self,
        workdir: Path,
        model: str = "lenet_modern",
        limit: int | None = None,
        prepare: bool = False,
        flags: tuple[str, ...] = (),
        xla_flags: str = "",
    ):
        self._env = {**os.environ, "XLA_FLAGS": xla_flags, "JAX_PLATFORMS": "cpu"}
        self.workdir, self.model, self.prepares = workdir, model, prepare
        self.arguments = [
            f"--config=configs/{model}.py:smoke",
            *("--config.num_epochs=6", "--config.momentum=0.9", "--config.learning_rate=0.01"),
            *("--config.batch_size=30", "--config.checkpoint_every_steps=3"),
            f"--workdir={workdir}",
            *flags,
        ]
        self.data = workdir.with_name(f"{workdir.name}-data")
        if prepare:
            self.arguments += ["--config.dataset=fashion_mnist", f"--config.data_dir={self.data}"]
        limits = ["prlimit", f"--fsize={limit}"] if limit else []
        self._command = [*limits, sys.executable, "train.py", *self.arguments]

    def start(self) -> subprocess.Popen:
        """Start it; its lines can be read from `stdout`, as they come."""
        return subprocess.Popen(
            self._command,
            cwd=ROOT,
            env=self._env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self) -> tuple[int, str]:
        """Run it to its end; return the exit status and what it printed."""
        process = self.start()
        printed, _ = process.communicate(timeout=600)
        return process.returncode, printed

    def wait_until(self, process: subprocess.Popen, words: str) -> None:
        """Wait until it prints a line with these words."""
        lines = []
        for line in process.stdout:
            if words in line:
                return
            lines.append(line)
        process.communicate()
        raise AssertionError(f"it ended without printing {words!r}: {''.join(lines)}")

    def read(self) -> list[int]:
        """Read the newest checkpoint as another process would; return its step, if there is one."""
        checkpoints = Checkpoints(self.workdir / "checkpoints")
        restored = checkpoints.restore_newest(None, warn=_fail)
        checkpoints.close()
        return [] if restored is None else [int(restored[0].step)]

    def digest(self) -> str:
        """Return the SHA-256 of all that must not depend on how often the run was stopped.

        That is every array of the last checkpoint, and the logs without their timings.
        """
        checkpoints = Checkpoints(self.workdir / "checkpoints")
        state, progress = checkpoints.restore(checkpoints.steps[-1])
        checkpoints.close()
        digest = hashlib.sha256(f"{progress}".encode())
        for path, x in jax.tree_util.tree_flatten_with_path(state)[0]:
            digest.update(f"{jax.tree_util.keystr(path)}{x.dtype}{x.shape}".encode())
            digest.update(jax.device_get(x).tobytes())
        for name in ("metrics.jsonl", "steps.jsonl"):
            for line in (self.workdir / name).read_text().splitlines():
                row = {k: v for k, v in json.loads(line).items() if k not in TIMINGS}
                digest.update(json.dumps(row).encode())
        return digest.hexdigest()


class DistributedTrainer(Trainer):
    """The same run in two processes of two devices each; `finish` and the like are the first's."""

    def start_both(self) -> list[subprocess.Popen]:
        """Start the processes; the first shows the run."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        place = ["--distributed", f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
        env = self._env | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count=2 {self._env['XLA_FLAGS']}"
        }
        return [
            subprocess.Popen(
                [*self._command, *place, f"--process_id={number}"],
                cwd=ROOT,
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for number in range(2)
        ]

    def finish_both(self) -> list[tuple[int, str]]:
        """Run them to their end; return the exit statuses and what they printed."""
        return ends_of(self.start_both())

    def wait_for_checkpoint(self, step: int) -> None:
        """Wait until the run has saved this step, or a later one."""
        folder, end = self.workdir / "checkpoints", time.monotonic() + 120
        while time.monotonic() < end:
            names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
            if any(name.isdecimal() and int(name) >= step for name in names):
                return
            time.sleep(0.05)
        raise AssertionError(f"no checkpoint of step {step} in two minutes")


def ends_of(processes: list[subprocess.Popen]) -> list[tuple[int, str]]:
    """Wait for processes; return the exit status of each and what it printed."""
    printed = [process.communicate(timeout=120)[0] for process in processes]
    return [(each.returncode, text) for each, text in zip(processes, printed, strict=True)]


def _fail(warning: str) -> None:
    raise AssertionError(warning)


def measure(
    trainer: Trainer, meanwhile: Callable[[], None] = lambda: time.sleep(0.1)
) -> tuple[float, float]:
    """Run to the end; return the seconds before training began and those of training.

    Args:
        trainer: of a new workdir.
        meanwhile: is called again and again during training.
    """
    start = time.monotonic()
    process = trainer.start()
    trainer.wait_until(process, "compiled in")
    began = time.monotonic()
    while process.poll() is None:
        meanwhile()
    process.communicate()
    assert process.returncode == 0
    return began - start, time.monotonic() - began


def kill_and_finish(trainer: Trainer, seconds: tuple[float, float], choice: random.Random) -> str:
    """Start, kill -9 at a random moment, start again and let it finish.

    Args:
        trainer: of a new workdir.
        seconds: before training begins and of training, from `measure`.
        choice: of the moment: one kill in five hits the start, the others training; where it
            prepares its data, all hit the start.

    Returns:
        What it was doing when it was killed: 'starting', 'preparing data', 'training', 'saving', or
        'done'.
    """
    before, training = seconds
    process = trainer.start()
    if trainer.prepares or choice.random() < 0.2:
        time.sleep(choice.uniform(0, before))
    else:
        trainer.wait_until(process, "compiled in")
        time.sleep(choice.uniform(0, training))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    folder = trainer.workdir / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    if process.returncode == 0:
        what = "done"
    elif any(name.startswith(".") for name in names):
        what = "saving"
    elif (trainer.workdir / "run.json").exists():
        what = "training"
    else:
        what = "preparing data" if trainer.data.exists() else "starting"
    status, printed = trainer.finish()
    assert status == 0, printed
    return what
