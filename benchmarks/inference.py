"""Images per second of a trained model, beside onnxruntime on what it exports.

python benchmarks/inference.py [--models lenet resnet18] [--rounds 5]

Two sides, each in a process of its own, take turns: `Trained.predict`, and onnxruntime with the
file that `Trained.export` has written, both on uint8 images of the model's size; ours gives
probabilities, the other logits. Batches of 128, and single images. Before that, in a new process
each time, the seconds from nothing to the first prediction of a saved run of LeNet. Prints a table,
writes `benchmarks/results/inference.json` and prints one JSON line.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import write_record
from sides import Side, seconds, serve, summary

ROOT = Path(__file__).parents[1]
SIZES = {"lenet": 28, "lenet_modern": 28, "resnet18": 96, "vgg": 224}
BATCH, BATCHES = 128, 4
FIRST = """
import jaxcnn, numpy as np
jaxcnn.load({folder!r}, "last").predict(np.zeros((28, 28), np.uint8))
"""


def make(model: str) -> Any:
    """Return a model with the weights that training would start from."""
    import jax
    import optax

    import jaxcnn
    from jaxcnn.train import create_train_state

    size, config = SIZES[model], jaxcnn.get_default_config()
    config.update(model=model, image_size=size)
    net = jaxcnn.create_model(model)
    state = create_train_state(net, optax.identity(), (size, size, 1))
    names = tuple(f"class {i}" for i in range(10))
    variables = jax.device_get(state.variables)
    return jaxcnn.Trained(net, jax.device_put(variables), config, names, (size, size, 1), 0, [])


def images_of(model: str, count: int) -> Any:
    """Return random images, uint8."""
    import numpy as np

    size = SIZES[model]
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 1), np.uint8)


def predictor(side: str, model: str, path: str) -> Callable[[Any], Any]:
    """Return what classifies images on a side."""
    if side == "jaxcnn":
        return make(model).predict
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def predict(images: Any) -> list:
        calls = range(0, len(images), BATCH)
        return [session.run(None, {"images": images[i : i + BATCH]}) for i in calls]

    return predict


def answer(side: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return what answers a job: seconds per image."""
    ready: dict[str, Any] = {}

    def measure(job: dict[str, Any]) -> dict[str, Any]:
        model, count = job["model"], job["count"]
        predict = ready.setdefault(model, predictor(side, model, job["path"]))
        images = images_of(model, count)
        for _ in range(2):  # compiles
            predict(images)
        return {"seconds": seconds(lambda: predict(images), at_least=2.0, calls=3) / count}

    return measure


def time_first_prediction(rounds: int) -> dict[str, float]:
    """Return the seconds that a process takes which loads a run of LeNet and predicts an image."""
    import jaxcnn

    with tempfile.TemporaryDirectory() as folder:
        data = jaxcnn.data.load_fashion_mnist_sample("train").first(128)
        jaxcnn.fit("lenet", data, epochs=1, workdir=folder, num_devices=1)
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, "-c", FIRST.format(folder=folder)], check=True, cwd=ROOT
            )
            times.append(time.perf_counter() - start)
    return summary(times)


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["lenet", "lenet_modern", "resnet18", "vgg"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/inference.json")
    options = parser.parse_args()
    if options.side:
        serve(answer(options.side))
        return
    results: dict[str, Any] = {"first_prediction": time_first_prediction(options.rounds)}
    first = results["first_prediction"]
    print(f"LeNet from nothing to the first prediction: {first['median']:.1f} s")
    print("model         images at once  ours, images/s  ms a call  onnxruntime's over ours")
    with (
        tempfile.TemporaryDirectory() as folder,
        Side("jaxcnn", "plain") as ours,
        Side("onnxruntime", "plain") as theirs,
    ):
        for model in options.models:
            path = str(Path(folder) / f"{model}.onnx")
            make(model).export(path)
            for count in (BATCH * BATCHES, 1):
                job = {"model": model, "path": path, "count": count}
                pairs = [(ours.ask(job), theirs.ask(job)) for _ in range(options.rounds)]
                times = summary(a["seconds"] for a, _ in pairs)
                ratio = summary(b["seconds"] / a["seconds"] for a, b in pairs)
                others = max(each["others"] for pair in pairs for each in pair)
                results[f"{model}, {count}"] = {"ours": times, "ratio": ratio, "others": others}
                print(
                    f"{model:12}  {count:14}  {1 / times['median']:14,.0f}  "
                    f"{1000 * times['median'] * min(count, BATCH):9.2f}  {ratio['median']:8.2f} "
                    f"({ratio['min']:.2f} to {ratio['max']:.2f})",
                    flush=True,
                )
    write_record(options.output, results=results)


if __name__ == "__main__":
    main()
