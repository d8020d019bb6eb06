"""How a training step's time and memory grow with batch size, image size and width.

python benchmarks/scaling.py [--rounds 3]

ResNet18 on random images in float32: from a base of batches of 32, 96 x 96 pixels and 64 channels
in the first stage, one of the three at a time is halved or doubled (the batch also twice). 'rate'
is relative to the base: 1 if the time grows as the arithmetic does. Memory is XLA's temporary
memory. Prints a table, writes `benchmarks/results/scaling.json` and prints one JSON line.
"""

import argparse
from pathlib import Path
from typing import Any

from machine import write_record
from sides import Side, serve, summary
from train_step import jaxcnn_steps, seconds_per_step

ROOT = Path(__file__).parents[1]
BASE = {"batch": 32, "size": 96, "width": 64}
FACTORS = {"batch": (0.5, 2, 4), "size": (0.5, 2), "width": (0.5, 2)}


def answer_jobs() -> None:
    """Measure the setting that the parent asks for."""
    from jaxcnn.models.resnet import ResNet

    def answer(job: dict[str, Any]) -> dict[str, Any]:
        model = ResNet(arch=tuple((2, job["width"] * 2**stage) for stage in range(4)))
        take, facts = jaxcnn_steps(model, job["size"], job["batch"])
        take(1)
        return facts | {"seconds": seconds_per_step(take, job["at_least"])}

    serve(answer)


def measure(setting: dict[str, int], rounds: int, at_least: float) -> dict[str, Any]:
    """Return what a setting takes, each round in a new process."""
    answers = []
    for _ in range(rounds):
        with Side("jaxcnn", "plain") as side:
            answers.append(side.ask(setting | {"at_least": at_least}))
    return setting | {
        "seconds": summary([answer["seconds"] for answer in answers]),
        "temporary_megabytes": answers[0]["temporary_megabytes"],
        "gigaflop": answers[0]["gigaflop"],
    }


def main() -> None:
    """Measure, print and record; or serve."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="per round, at least")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/scaling.json")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        answer_jobs()
        return
    settings = [BASE] + [
        BASE | {name: int(BASE[name] * factor)} for name in BASE for factor in FACTORS[name]
    ]
    print("batch  pixels  width   ms/step  (least to most)   GFLOP/s  rate  temporary MB")
    results: list[dict[str, Any]] = []
    for setting in settings:
        result = measure(setting, options.rounds, options.seconds)
        results.append(result)
        times = result["seconds"]
        result["rate"] = (result["gigaflop"] / times["median"]) / (
            results[0]["gigaflop"] / results[0]["seconds"]["median"]
        )
        print(
            f"{setting['batch']:5}  {setting['size']:6}  {setting['width']:5}  "
            f"{1e3 * times['median']:8.1f}  ({1e3 * times['min']:.1f} to {1e3 * times['max']:.1f})"
            f"  {result['gigaflop'] / times['median']:8.0f}  {result['rate']:4.2f}  "
            f"{result['temporary_megabytes']:12,.0f}",
            flush=True,
        )
    write_record(options.output, results=results)


if __name__ == "__main__":
    main()
