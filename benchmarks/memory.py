"""What memory a training step takes, and what saves some of it.

python benchmarks/memory.py [--models resnet18 vgg]

The program is that of `train.py` on this machine, one step a call; XLA says what it takes beside
its arguments. Nothing is run. Prints a table, and writes `benchmarks/results/memory.json`.
"""

import argparse
import runpy
from pathlib import Path
from typing import Any

import numpy as np
from machine import write_record

from jaxcnn.data import Dataset
from jaxcnn.train.prepare import prepare
from jaxcnn.train.programs import Programs

ROOT = Path(__file__).parents[1]


def temporary_megabytes(model: str, **changes: Any) -> float:
    """Return what the program of a config takes beside its arguments.

    Args:
        model: name of the config.
        **changes: to it.
    """
    config = runpy.run_path(f"{ROOT / 'configs' / model}.py")["get_config"]()
    config.update(num_devices=1, steps_per_call=1, **changes)
    images = np.zeros((config.batch_size, 28, 28, 1), np.uint8)
    labels = np.arange(len(images), dtype=np.int32) % 10
    train = Dataset(images, labels, tuple(map(str, range(10))))
    programs = Programs(prepare(config, train=train, has_test=False))
    compiled: Any = programs.to_train(0).result()
    programs.close()
    return compiled.memory_analysis().temp_size_in_bytes / 1e6


def main() -> None:
    """Compile, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["resnet18", "vgg"])
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/memory.json")
    options = parser.parse_args()
    results = []
    for model in options.models:
        for parts in (1, 4):
            for recompute in (False, True):
                found = temporary_megabytes(
                    model, gradient_accumulation_steps=parts, recompute=recompute
                )
                row = {"model": model, "parts": parts, "recompute": recompute, "megabytes": found}
                results.append(row)
                print(f"{model:10} parts {parts}, recompute {recompute!s:5}: {found:7,.0f} MB")
    write_record(options.output, results=results)


if __name__ == "__main__":
    main()
