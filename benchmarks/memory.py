"""What memory a training step takes, what saves some of it, and the time that this costs.

python benchmarks/memory.py [--models resnet18 vgg]

The programs are those of `train.py` on this machine, one step a call, on images of random numbers;
XLA says what a program takes beside its arguments. The sides take turns, round after round, each in
a process of its own; 'time' is a side's over that of the whole batch at once within one round.
Prints a table, and writes `benchmarks/results/memory.json`.
"""

import argparse
import runpy
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from machine import write_record
from sides import Side, seconds, serve, summary

ROOT = Path(__file__).parents[1]
SIDES = {  # what the config is told
    "whole": {},
    "recompute": {"recompute": True},
    "parts": {"gradient_accumulation_steps": 4},
    "both": {"recompute": True, "gradient_accumulation_steps": 4},
}


def prepare_steps(model: str, side: str) -> tuple[Any, float]:
    """Return a call that takes a step, and the megabytes beside the arguments of its program."""
    import jax

    from jaxcnn.data import Dataset
    from jaxcnn.train.prepare import prepare
    from jaxcnn.train.programs import Programs

    config = runpy.run_path(f"{ROOT / 'configs' / model}.py")["get_config"]()
    config.update(num_devices=1, steps_per_call=1, **SIDES[side])
    images = np.random.default_rng(0).integers(0, 256, (config.batch_size, 28, 28, 1), np.uint8)
    labels = np.arange(len(images), dtype=np.int32) % 10
    train = Dataset(images, labels, tuple(map(str, range(10))))
    setup = prepare(config, train=train, has_test=False)
    programs, state = Programs(setup), setup.state
    compiled: Any = programs.to_train(0).result()

    def step() -> None:
        nonlocal state
        state, _ = programs.train(state, 0, 1)
        jax.block_until_ready(state)

    step()
    return step, compiled.memory_analysis().temp_size_in_bytes / 1e6


def answer_jobs(side: str) -> None:
    """Prepare the steps of a model, then time them whenever asked."""
    step: Any = None

    def answer(job: dict[str, Any]) -> dict[str, Any]:
        nonlocal step
        if "prepare" in job:
            step, megabytes = prepare_steps(job["prepare"], side)
            return {"megabytes": megabytes}
        return {"seconds": seconds(step, at_least=job["at_least"], calls=2)}

    serve(answer)


def measure(model: str, rounds: int, least: float) -> list[dict[str, Any]]:
    """Return what each side takes: a row per side."""
    with ExitStack() as stack:
        sides = [stack.enter_context(Side(name, "plain")) for name in SIDES]
        megabytes = {side.name: side.ask({"prepare": model})["megabytes"] for side in sides}
        times: dict[str, list[float]] = {name: [] for name in SIDES}
        for _ in range(rounds):
            for side in sides:
                times[side.name].append(side.ask({"at_least": least})["seconds"])
    return [
        {
            "model": model,
            "side": name,
            "megabytes": megabytes[name],
            "seconds": summary(times[name]),
            "ratio": summary(a / b for a, b in zip(times[name], times["whole"], strict=True)),
        }
        for name in SIDES
    ]


def main() -> None:
    """Measure, print and record; or serve as one of the sides."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["resnet18", "vgg"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="per side and round, at least")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/memory.json")
    options = parser.parse_args()
    if options.side:
        answer_jobs(options.side)
        return
    results = []
    for model in options.models:
        for row in measure(model, options.rounds, options.seconds):
            results.append(row)
            time, ratio = row["seconds"], row["ratio"]
            print(
                f"{model:10} {row['side']:10} {row['megabytes']:7,.0f} MB  "
                f"{time['median']:6.2f} s ({time['min']:.2f} to {time['max']:.2f})  "
                f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})",
                flush=True,
            )
        write_record(options.output, shows=False, results=results)


if __name__ == "__main__":
    main()
