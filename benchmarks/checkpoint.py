"""What saving costs: its share of a LeNet run, and what saving in the background would gain.

python benchmarks/checkpoint.py [--epochs 6]

Alternates, in one process, an epoch of LeNet's training (60,000 images, batch 128) with a save as a
run makes it, and with a save of the same state by Orbax's AsyncCheckpointer, of which only the time
until it returns counts; then the same saves of ResNet18's state. Prints a table and one JSON line.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from machine import describe_machine

from jaxcnn.config import get_default_config
from jaxcnn.models import create_model
from jaxcnn.train import create_train_state
from jaxcnn.train.pace import Pace
from jaxcnn.train.prepare import prepare
from jaxcnn.train.programs import Programs
from jaxcnn.train.record.checkpoint import CheckpointWriter
from jaxcnn.train.record.progress import Progress


class Savers:
    """Times a save in the foreground, and the part of one in the background that blocks."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp())
        self._checkpoints = CheckpointWriter(self._folder / "checkpoints")
        self._background = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())
        self._count = 0

    def time(self, state) -> tuple[float, float]:
        """Save twice; return the seconds of each."""
        self._count += 1
        start = time.perf_counter()
        self._checkpoints.save(self._count, state, Progress(accuracy=0.0))
        foreground = time.perf_counter() - start
        tree = {name: getattr(state, name) for name in state.__dataclass_fields__}
        start = time.perf_counter()
        path = self._folder / "background" / f"{self._count}"
        self._background.save(path, args=ocp.args.StandardSave(tree))
        background = time.perf_counter() - start
        self._background.wait_until_finished()
        return foreground, background


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=6)
    options = parser.parse_args()
    config = get_default_config()
    config.num_devices = 1
    setup = prepare(config)
    state, programs, steps = setup.state, Programs(setup), setup.steps_per_epoch
    programs.compile_all().result()
    pace = Pace(setup.full_batches, steps, programs.max_steps)
    savers = Savers()
    savers.time(state)  # the first one imports and makes folders
    epochs, saves = [], []
    for epoch in range(options.epochs):
        start = time.perf_counter()
        for step, count in pace.calls(epoch * steps, (epoch + 1) * steps):
            state, _ = programs.train(state, step, count)
        jax.block_until_ready((state, list(programs.evaluate(state))))
        epochs.append(time.perf_counter() - start)
        saves.append(savers.time(state))
    result = {"machine": describe_machine()}
    resnet = create_train_state(create_model("resnet18"), setup.optimizer, (96, 96, 1))
    for name, times in (("lenet", saves), ("resnet18", [savers.time(resnet) for _ in epochs])):
        foreground, background = zip(*times, strict=True)
        result[name] = {"foreground_s": foreground, "background_s": background}
        for label, seconds in (
            ("in the foreground", foreground),
            ("in the background", background),
        ):
            print(
                f"{name:9} {label}  median {statistics.median(seconds):.3f} s "
                f"({min(seconds):.3f} to {max(seconds):.3f})"
            )
    epoch = statistics.median(epochs)
    save = statistics.median(foreground for foreground, _ in saves)
    result["lenet"] |= {"epoch_s": epochs, "share": save / (save + epoch)}
    print(f"lenet: an epoch {epoch:.2f} s, of which saving adds {100 * save / epoch:.1f} %")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
