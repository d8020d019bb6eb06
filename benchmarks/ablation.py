"""Train a recipe with one of its parts taken out at a time, and compare the accuracies.

python benchmarks/ablation.py fast [--seeds 0] [--parts "no shifts" ...]

Trains on 50,000 of Fashion-MNIST's training images and compares on the other 10,000, the same for
all; the test set has no part in it. Writes `benchmarks/results/ablation-NAME.json` after each run;
the same command goes on with what is missing there. `benchmarks/report.py` makes a table of it.
"""

import argparse
import dataclasses
import json
from typing import Any

import numpy as np
from machine import write_record
from recipes import ROOT, config_of

import jaxcnn

RESULTS = ROOT / "benchmarks" / "results"
WHOLE = "the whole recipe"
# What is otherwise in training, and in evaluation where the two belong together.
TRAINING: dict[str, dict[str, Any]] = {
    WHOLE: {},
    "Nesterov's momentum in place of Muon": {  # at the best rate of the search
        "optimizer": "nesterov",
        "learning_rate": 0.3,
        "momentum": 0.9,
        "weight_decay": 5e-4,
    },
    "no mirror images": {"augmentation": "shift:1", "test_augmentation": "shift:1"},
    "no shifts": {"augmentation": "flip", "test_augmentation": "flip"},
    "no smoothing of labels": {"label_smoothing": 0.0},
    "no weight decay": {"weight_decay": 0.0},
    "no warm-up": {"warmup_epochs": 0.0},
    "a constant rate after it": {"schedule": "constant"},
    "no normalization of images": {"normalization": "none"},
}
# The views to evaluate with instead, of the same weights as the whole recipe.
EVALUATION: dict[str, str] = {
    "mirror images alone at evaluation": "flip",
    "no views at evaluation": "none",
}


def held_out() -> tuple[jaxcnn.data.Dataset, jaxcnn.data.Dataset]:
    """Return the images to train on, and the 10,000 to compare on."""
    train = jaxcnn.data.load_fashion_mnist("train")
    order = np.random.default_rng(123).permutation(len(train.labels))
    return train.take(np.sort(order[10_000:])), train.take(np.sort(order[:10_000]))


def settings_of(name: str) -> dict[str, Any]:
    """Return the settings of a config file that differ from the defaults, for `jaxcnn.fit`."""
    config, defaults = config_of(name), jaxcnn.get_default_config()
    return {key: value for key, value in config.items() if value != defaults[key]}


def train(settings: dict[str, Any], seed: int, parts: dict[str, str]) -> dict[str, float]:
    """Train, and return the accuracy with the views of each part."""
    given = dict(settings) | {"seed": seed, "validation_examples": 0}
    model, epochs = given.pop("model"), given.pop("num_epochs")
    images, others = held_out()
    trained = jaxcnn.fit(model, images, epochs=epochs, **given)
    found = {}
    for part, views in parts.items():
        config = trained.config.copy_and_resolve_references()
        config.test_augmentation = views
        found[part] = dataclasses.replace(trained, config=config).evaluate(others).accuracy
    return found


def main() -> None:
    """Run, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="of a file in configs/")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--parts", nargs="+", choices=list(TRAINING), default=list(TRAINING))
    options = parser.parse_args()
    path = RESULTS / f"ablation-{options.name}.json"
    results = json.loads(path.read_text())["results"] if path.exists() else []
    recipe = settings_of(options.name)
    for seed in options.seeds:
        for part in options.parts:
            if any(each["part"] == part and each["seed"] == seed for each in results):
                continue
            settings = recipe | TRAINING[part]
            views = {part: settings["test_augmentation"]} | (EVALUATION if part == WHOLE else {})
            for name, accuracy in train(settings, seed, views).items():
                results.append({"part": name, "seed": seed, "accuracy": accuracy})
                print(f"{name}, seed {seed}: {accuracy:.4f}", flush=True)
            write_record(path, shows=False, results=results)


if __name__ == "__main__":
    main()
