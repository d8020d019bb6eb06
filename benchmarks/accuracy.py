"""Train each model for each seed, and record the test accuracy after the last epoch.

python benchmarks/accuracy.py lenet lenet_modern --seeds 0 1 2 [--epochs 10] [--runs DIR]

Each run is `python train.py` in a process of its own; one that is already complete in DIR is not
repeated. Prints a table, writes `benchmarks/results/accuracy-MODEL.json` and prints one JSON line.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from machine import describe_machine

ROOT = Path(__file__).parents[1]


def train(model: str, seed: int, epochs: int, folder: Path) -> dict:
    """Run train.py; return the last row of its metrics and the seconds spent training."""
    command = [sys.executable, "train.py", f"--config=configs/{model}.py", f"--workdir={folder}"]
    command += [f"--config.seed={seed}", f"--config.num_epochs={epochs}"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    seconds = sum(row["train_seconds"] + row["test_seconds"] for row in rows)
    return {"seed": seed, "seconds": seconds, **rows[-1]}


def main() -> None:
    """Run, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "accuracy")
    options = parser.parse_args()
    summary = {}
    print("model         seed  epochs  test accuracy  test loss  images/s  minutes")
    for model in options.models:
        runs = []
        for seed in options.seeds:
            folder = options.runs / f"{model}-{options.epochs}-seed{seed}"
            run = train(model, seed, options.epochs, folder)
            runs.append(run)
            print(
                f"{model:12}  {seed:4}  {run['epoch']:6}  {run['test_accuracy']:13.4f}  "
                f"{run['test_loss']:9.4f}  {run['images_per_second']:8,.0f}  "
                f"{run['seconds'] / 60:7.1f}",
                flush=True,
            )
        summary[model] = {
            "epochs": options.epochs,
            "test_accuracy": [run["test_accuracy"] for run in runs],
            "median_test_accuracy": statistics.median(run["test_accuracy"] for run in runs),
        }
        path = ROOT / "benchmarks" / "results" / f"accuracy-{model}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"machine": describe_machine(), "runs": runs}, indent=2) + "\n")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
