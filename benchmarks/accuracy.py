"""Train each model for each seed by its config, and record every epoch.

python benchmarks/accuracy.py lenet lenet_modern --seeds 0 1 2 [--epochs 10] [--runs DIR]

Each run is `python train.py` in a process of its own, with its folder in DIR. The same command
resumes what was stopped, and repeats nothing that is complete. Prints a table and writes
`benchmarks/results/accuracy-MODEL.json`, of which `benchmarks/report.py` makes the tables and
curves of the documents.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from machine import describe_machine

ROOT = Path(__file__).parents[1]


def train(model: str, seed: int, epochs: int, folder: Path) -> dict:
    """Run train.py; return the rows of its epochs."""
    command = [sys.executable, "train.py", f"--config=configs/{model}.py", f"--workdir={folder}"]
    command += [f"--config.seed={seed}", f"--config.num_epochs={epochs}"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {"seed": seed, "epochs": rows}


def main() -> None:
    """Run, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "accuracy")
    options = parser.parse_args()
    print("model         seed  epochs  test accuracy  test loss  images/s")
    for model in options.models:
        runs = []
        for seed in options.seeds:
            folder = options.runs / f"{model}-{options.epochs}-seed{seed}"
            run = train(model, seed, options.epochs, folder)
            runs.append(run)
            last = run["epochs"][-1]
            print(
                f"{model:12}  {seed:4}  {last['epoch']:6}  {last['test_accuracy']:13.4f}  "
                f"{last['test_loss']:9.4f}  {last['images_per_second']:8,.0f}",
                flush=True,
            )
        path = ROOT / "benchmarks" / "results" / f"accuracy-{model}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"machine": describe_machine(), "runs": runs}, indent=2) + "\n")


if __name__ == "__main__":
    main()
