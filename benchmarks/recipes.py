"""Train a recipe for each seed by its config, from a cold start, and record how long that takes.

GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python benchmarks/recipes.py fast [--runs DIR] [--seeds 0 1]
    [--title fast-7 --config.num_epochs=7 --config.warmup_epochs=1.75]

Each run is `python train.py` in a process of its own, with its folder in DIR; its seconds are those
of the process, imports, compilation and the last evaluation included. The same command repeats
nothing that is complete; a run that was stopped goes on, and its seconds are those of its log.
Writes `benchmarks/results/recipe-NAME.json`, of which `benchmarks/report.py` makes a table.
"""

import argparse
import json
import os
import runpy
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from machine import write_record
from ml_collections import ConfigDict

import jaxcnn
from jaxcnn.inspect import layer_summary

ROOT = Path(__file__).parents[1]
SECONDS = ("compile_seconds", "train_seconds", "validation_seconds", "test_seconds")


def train(name: str, seed: int, folder: Path, settings: list[str]) -> dict[str, Any]:
    """Run train.py; return the rows of its epochs, the test's, and the seconds it took."""
    seconds = folder / "process.json"  # beside the run's own files
    is_new = not folder.exists()
    command = [sys.executable, "train.py", f"--config=configs/{name}.py", f"--workdir={folder}"]
    start = time.perf_counter()
    subprocess.run(
        [*command, f"--config.seed={seed}", *settings],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    if is_new:
        seconds.write_text(json.dumps(time.perf_counter() - start))
    epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    tested = json.loads((folder / "run.json").read_text())["result"].get("test") or epochs[-1]
    logged = sum(row.get(key, 0.0) for row in epochs for key in SECONDS)
    if tested is not epochs[-1]:
        logged += tested["test_seconds"]
    return {
        "seed": seed,
        "seconds": json.loads(seconds.read_text()) if seconds.exists() else logged,
        "is_of_one_process": seconds.exists(),
        "tested": tested,
        "epochs": epochs,
    }


def config_of(name: str) -> ConfigDict:
    """Return the config of a file in configs/."""
    return runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"]()


def size(name: str) -> dict[str, Any]:
    """Return the model of a config, its parameters, and multiply-accumulates for an image."""
    config = config_of(name)
    shape = (1, config.image_size, config.image_size, 1)
    model = jaxcnn.create_model(config.model)
    layers = [row for row in layer_summary(model, shape) if row.depth == 1]
    return {
        "model": config.model,
        "parameters": sum(row.parameters for row in layers),
        "macs": sum(row.macs or 0 for row in layers),
    }


def device() -> str:
    """Return the kind of device that train.py takes, asked in a process that leaves it again."""
    code = "import jax; print(jax.devices()[0].device_kind)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.splitlines()[-1]


def main() -> None:
    """Run, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="of a file in configs/")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "recipes")
    parser.add_argument("--title", help="of the record; by default the name")
    options, settings = parser.parse_known_args()
    title, runs = options.title or options.name, []
    for seed in options.seeds:
        run = train(options.name, seed, options.runs / f"{title}-seed{seed}", settings)
        runs.append(run)
        print(
            f"{title}, seed {seed}: test accuracy {run['tested']['test_accuracy']:.4f} after epoch "
            f"{run['tested']['epoch']}, {run['seconds'] / 60:.1f} minutes",
            flush=True,
        )
    accuracies = [run["tested"]["test_accuracy"] for run in runs]
    print(f"mean {statistics.mean(accuracies):.4f}")
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    record = {"device": device(), "settings": settings, "tunables": tunables}
    record |= {**size(options.name), "runs": runs}
    path = ROOT / "benchmarks" / "results" / f"recipe-{title}.json"
    write_record(path, shows=False, **record)


if __name__ == "__main__":
    main()
