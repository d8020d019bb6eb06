"""Put the figures in `benchmarks/results/` into the documents, and draw them.

python benchmarks/report.py

Writes the parts of README.md and of the documents in `docs/` between the two comments that name
it, `benchmarks/results/train_step.png` and `docs/images/curves-MODEL.png`. `make bench` does this
after it has measured.
"""

import json
import shlex
import statistics
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PICTURES = ("train_step", "bfloat16")  # records that are drawn
IMAGES = ROOT / "docs" / "images"
PRETRAINED = ROOT / "jaxcnn" / "pretrained"
BEGIN, END = "<!-- {}: written by benchmarks/report.py -->", "<!-- as far as here -->"
NAMES = {
    "lenet": "LeNet, 28 px",
    "lenet_modern": "LeNet's modern form, 28 px",
    "resnet18": "ResNet18, 96 px",
    "vgg": "narrow VGG, 224 px",
    "vgg11": "VGG-11, 224 px",
    "alexnet": "AlexNet, 224 px",
    "nin": "NiN, 224 px",
    "googlenet": "GoogLeNet, 96 px",
    "resnet34": "ResNet34, 96 px",
    "resnet50": "ResNet50, 96 px",
    "resnext50": "ResNeXt50, 96 px",
    "densenet": "DenseNet, 96 px",
    "small_tiny": "SmallNetTiny, 28 px",
    "small_fast": "SmallNetFast, 28 px",
    "small_best": "SmallNetBest, 28 px",
}
SOURCES = {"d2l": "d2l's", "torchvision": "torchvision's", "own": "the same layers"}
COLORS = {"jaxcnn": "#3366aa", "float32": "#88aacc", "torch": "#cc5522", "xla": "#999999"}
LABELS = {
    "jaxcnn": "jaxcnn",
    "float32": "in float32",
    "torch": "PyTorch",
    "xla": "jaxcnn with XLA's own convolutions",
}


def load(name: str) -> dict[str, Any]:
    """Return a record of `benchmarks/results/`."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def spread(values: dict[str, float]) -> str:
    """Return the median and the range of a ratio."""
    return f"{values['median']:.2f} ({values['min']:.2f} to {values['max']:.2f})"


def summary() -> str:
    """Return the table of the README: a row per network, times relative to ours."""
    machine, results = load("train_step")["machine"], load("train_step")["results"]
    rows = [
        "| network | ours, ms | PyTorch | PyTorch, both with a tuned allocator | "
        "XLA's convolutions |",
        "|---|---|---|---|---|",
    ]
    for net in dict.fromkeys(result["net"] for result in results):
        plain, tuned = (
            next(r for r in results if (r["net"], r["allocator"]) == (net, allocator))["sides"]
            for allocator in ("plain", "tuned")
        )
        rows.append(
            f"| {NAMES[net]} | {milliseconds(plain['jaxcnn'])} | "
            f"{spread(plain['torch']['ratio'])} | {spread(tuned['torch']['ratio'])} | "
            f"{spread(plain['xla']['ratio'])} |"
        )
    measured = (
        f"Medians (and range over the rounds) on {machine['cores']} cores of an "
        f"{machine['processor']}, {machine['date']}, jax {machine['jax']}."
    )
    return "\n".join([*rows, "", *textwrap.wrap(measured, 100)])


def milliseconds(side: dict[str, Any]) -> str:
    """Return the median time of a step."""
    value = 1e3 * side["seconds"]["median"]
    return f"{value:.{1 if value < 100 else 0}f}"


def step_rows() -> list[str]:
    """Return the table of training steps."""
    rows = [
        "| network | allocator | ms a step | of a product's rate | PyTorch's time / ours | "
        "XLA's time / ours | temporary MB, ours and XLA's |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in load("train_step")["results"]:
        sides = result["sides"]
        ours, torch, xla = sides["jaxcnn"], sides["torch"], sides.get("xla")
        megabytes = f"{ours['temporary_megabytes']:,.0f}"
        if xla:
            megabytes += f", {xla['temporary_megabytes']:,.0f}"
        rows.append(
            f"| {NAMES[result['net']]} | {result['allocator']} | {milliseconds(ours)} | "
            f"{100 * ours['of_product']['median']:.0f} % | {spread(torch['ratio'])} | "
            f"{spread(xla['ratio']) if xla else ''} | {megabytes} |"
        )
    return rows


def bfloat16() -> str:
    """Return the table of training steps in bfloat16 on a CPU that has instructions for it."""
    record = load("bfloat16")
    rows = [
        "| network | allocator | ms a step | float32's time / bfloat16's | PyTorch's time / ours | "
        "XLA's time / ours |",
        "|---|---|---|---|---|---|",
    ]
    for result in record["results"]:
        sides = result["sides"]
        ratios = [
            spread(sides[name]["ratio"]) if name in sides else ""
            for name in ("float32", "torch", "xla")
        ]
        rows.append(
            f"| {NAMES[result['net']]} | {result['allocator']} | "
            f"{milliseconds(sides['jaxcnn'])} | {' | '.join(ratios)} |"
        )
    machine = record["machine"]
    text = (
        f"Measured on {machine['date']} on {machine['cores']} cores of an {machine['processor']} "
        f"with jax {machine['jax']}: medians, and the range over the rounds."
    )
    picture = "![time of a step in bfloat16](../benchmarks/results/bfloat16.png)"
    return "\n".join([*rows, "", picture, "", *textwrap.wrap(text, 100)])


def gradients() -> str:
    """Return the table of the errors of gradients in bfloat16: a row per network."""
    rows = [
        "| network | pixels | float32 | bfloat16 | XLA's bfloat16 | PyTorch's |",
        "|---|---|---|---|---|---|",
    ]
    for name, each in load("gradients")["results"].items():
        errors = " | ".join(f"{each[x]:.0e}" for x in ("float32", "bfloat16", "xla", "torch"))
        rows.append(f"| {NAMES[name].split(',')[0]} | {each['image_size']} | {errors} |")
    return "\n".join(rows)


def inference() -> list[str]:
    """Return the table of predictions, and where they were measured."""
    record = load("inference")
    machine, results = record["machine"], record["results"]
    rows = [
        "| network | 128 images at once, images/s | onnxruntime's time / ours | "
        "a single image, ms | onnxruntime's time / ours |",
        "|---|---|---|---|---|",
    ]
    for net in dict.fromkeys(key.split(",")[0] for key in results if ", " in key):
        many, one = results[f"{net}, 512"], results[f"{net}, 1"]
        rows.append(
            f"| {NAMES[net]} | {1 / many['ours']['median']:,.0f} | {spread(many['ratio'])} | "
            f"{1e3 * one['ours']['median']:.1f} | {spread(one['ratio'])} |"
        )
    text = (
        "From the start of a process to the first prediction of a saved LeNet: "
        f"{results['first_prediction']['median']:.1f} s. Measured on {machine['date']} on "
        f"{machine['cores']} cores of an {machine['processor']} with jax {machine['jax']}."
    )
    return [*rows, "", *textwrap.wrap(text, 100)]


def tpu() -> str:
    """Return the tables of programs compiled for TPUs: a row per network and number of chips."""
    record, rows = load("tpu_compile"), []
    groups = dict.fromkeys((each["kind"], each["dtype"]) for each in record["results"])
    for kind, dtype in groups:
        which = {"kind": kind, "dtype": dtype}
        found = [each for each in record["results"] if each | which == each]
        alone = {each["model"]: each for each in found if each["chips"] == 1}
        rows += [
            f"{kind}, {dtype}, {record['batch_size']} images a chip:",
            "",
            "| network | chips | GFLOP | GB moved | memory, MB | at least, ms | all-reduces | MB | "
            "exchange, ms | images/s | efficiency |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        found.sort(key=lambda each: each["chips"])
        for each in [each for model in alone for each in found if each["model"] == model]:
            rate, one = each["images_per_second"], alone[each["model"]]["images_per_second"]
            rows.append(
                f"| {NAMES[each['model']]} | {each['chips']} | {each['gigaflops']:,.1f} | "
                f"{each['gigabytes']:.2f} | {each['memory_megabytes']:,.1f} | "
                f"{max(each['compute_ms'], each['memory_ms']):.2f} | {each['all_reduces']} | "
                f"{each['all_reduced_megabytes']:,.1f} | {each['exchange_ms']:.2f} | "
                f"{rate:,.0f} | {100 * rate / (one * each['chips']):.0f} % |"
            )
        rows.append("")
    return "\n".join(rows[:-1])


def gpu() -> str:
    """Return the table of steps on a GPU: a row per network and dtype."""
    record = load("gpu")
    rows = [
        "| network | batch | dtype | ours, ms | with XLA's pooling | PyTorch | PyTorch compiled | "
        "its time / ours |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in record["results"]:
        sides = {name: 1e3 * x["seconds"]["median"] for name, x in each["sides"].items()}
        cells = [
            f"{sides[x]:.2f}" if x in sides else "" for x in ("jaxcnn", "xla", "torch", "compiled")
        ]
        ratio = sides["compiled"] / sides.get("jaxcnn", sides["xla"])
        rows.append(
            f"| {NAMES[each['net']]} | {each['batch']} | {each['dtype']} | {' | '.join(cells)} | "
            f"{ratio:.2f} |"
        )
    machine = record["machine"]
    text = (
        f"Medians, measured on {machine['date']} on one {record['device']} with jax "
        f"{machine['jax']} and PyTorch {record['torch']}."
    )
    return "\n".join([*rows, "", *textwrap.wrap(text, 100)])


def pretrained() -> str:
    """Return what is known of the weights that come with the package, from their lab notes."""
    lines = [
        "| name | parameters | epochs | minutes | step | test accuracy | test loss | files |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for path in sorted(PRETRAINED.glob("*.json")):
        note, name = json.loads(path.read_text()), path.stem
        parameters = load("parity")["results"][note["run"]["config"]["model"]]["parameters"]
        sizes = ", ".join(
            f"{suffix} {(PRETRAINED / f'{name}{suffix}').stat().st_size / 1000:.0f} kB"
            for suffix in (".safetensors", ".onnx", ".json")
        )
        seconds = sum(row["train_seconds"] for row in note["epochs"])
        lines.append(
            f"| `{name}` | {parameters:,} | {len(note['epochs'])} | {seconds / 60:.0f} | "
            f"{note['step']:,} | {note['test']['accuracy']:.4f} | {note['test']['loss']:.4f} | "
            f"{sizes} |"
        )
    return "\n".join(lines)


def search() -> str:
    """Return the table of the search: a row per network, with its best setting."""
    record = load("search")
    rows = [
        "| network | parameters | million multiply-adds | epochs | optimizer, rate | held-out "
        "accuracy | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    found: dict[str, dict[str, Any]] = {}
    for each in sorted(record["results"], key=lambda each: -each["accuracy"]):
        found.setdefault(each["network"], each)
    for name, each in found.items():
        rows.append(
            f"| {name} | {each['parameters']:,} | {each['million_macs']} | {each['epochs']} | "
            f"{each['optimizer']}, {each['learning_rate']:g} | {each['accuracy']:.4f} | "
            f"{each['seeds']} |"
        )
    machine = record["machine"]
    text = (
        f"With the mean of an image's and its mirror's logits. Trained on {machine['date']} on one "
        f"{machine['device']} with jax {machine['jax']}."
    )
    return "\n".join([*rows, "", *textwrap.wrap(text, 110), "", *_search_on_cpu()])


def _search_on_cpu() -> list[str]:
    """Return the lines of the table of what was tried where the recipe runs."""
    record = load("search")["on_two_cores"]
    rows = [
        "| network | parameters | million multiply-adds | epochs | mirror images | "
        "shifts as well |",
        "|---|---|---|---|---|---|",
    ]
    for each in sorted(record["results"], key=lambda each: -each["accuracy"]):
        views = each["accuracy_with_views"]
        batch = "" if each["batch_size"] == 256 else f", batches of {each['batch_size']}"
        rows.append(
            f"| {each['network']}{batch} | {each['parameters']:,} | {each['million_macs']} | "
            f"{each['epochs']} | {each['accuracy']:.4f} | {f'{views:.4f}' if views else ''} |"
        )
    machine = record["machine"]
    text = (
        "Held-out accuracy of one run each, with mirror images at evaluation, and with shifts by a "
        f"pixel as well. Trained on {machine['date']} on {machine['cores']} cores of an "
        f"{machine['processor']} with jax {machine['jax']}."
    )
    return [*rows, "", *textwrap.wrap(text, 110)]


def recipe_records() -> dict[str, dict[str, Any]]:
    """Return what `benchmarks/recipes.py` recorded, by title."""
    paths = sorted(RESULTS.glob("recipe-*.json"), key=lambda path: path.stem)
    return {path.stem.removeprefix("recipe-"): load(path.stem) for path in paths}


def recipes() -> str:
    """Return the table of the recipes on a CPU: a row for each, over its seeds."""
    rows = [
        "| recipe | parameters | million multiply-adds | epochs | minutes | test accuracy | "
        "seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    others: list[str] = []
    machines: dict[str, list[str]] = {}  # the recipes that were measured on each
    for title, record in recipe_records().items():
        if record.get("device", "cpu") != "cpu":
            continue
        runs = record["runs"]
        # Of a run that was stopped and resumed, perhaps beside others, the time says little.
        whole = [run for run in runs if run["is_of_one_process"]] or runs
        minutes = sorted(run["seconds"] / 60 for run in whole)
        accuracies = sorted(run["tested"]["test_accuracy"] for run in runs)
        took = f"{statistics.median(minutes):.1f}"
        if len(minutes) > 1:
            took += f" ({minutes[0]:.1f} to {minutes[-1]:.1f})"
        found = f"{statistics.mean(accuracies):.4f} ({accuracies[0]:.4f} to {accuracies[-1]:.4f})"
        rows.append(
            f"| {title} | {record['parameters']:,} | {record['macs'] / 1e6:.1f} | "
            f"{len(runs[0]['epochs'])} | {took} | {found} | {len(runs)} |"
        )
        machine = record["machine"]
        where = (
            f"on {machine['date']} on {machine['cores']} cores of an {machine['processor']} with "
            f"jax {machine['jax']} and `{record['tunables']}`."
        )
        machines.setdefault(where, []).append(f"`{title}`")
        if record["settings"]:
            others.append(f"`{title}` is with `{shlex.join(record['settings'])}`.")
    text = [
        "Minutes: median and range, of the runs that were not interrupted; accuracy: mean and "
        "range, of one look at the test set."
    ]
    measured = [f"{', '.join(titles)}: {where}" for where, titles in machines.items()]
    return "\n".join([*rows, "", *_wrapped(" ".join([*text, *others, *measured]))])


def _wrapped(text: str) -> list[str]:
    """Return the lines of a paragraph; no flag of a command is broken at its hyphens."""
    return textwrap.wrap(text, 110, break_on_hyphens=False)


def recipes_on_gpu() -> str:
    """Return the table of the recipes on a GPU: a row for each run."""
    rows = [
        "| recipe | seed | epochs | training, s | compiling, s | the whole process, s | "
        "test accuracy |",
        "|---|---|---|---|---|---|---|",
    ]
    others, machines = [], []
    for title, record in recipe_records().items():
        if record.get("device", "cpu") == "cpu":
            continue
        name = title.removesuffix("-gpu")
        for run in record["runs"]:
            trained, compiled = (
                sum(row[f"{key}_seconds"] for row in run["epochs"]) for key in ("train", "compile")
            )
            took = f"{run['seconds']:.0f}" if run["is_of_one_process"] else ""
            rows.append(
                f"| {name} | {run['seed']} | {len(run['epochs'])} | {trained:.1f} | "
                f"{compiled:.0f} | {took} | {run['tested']['test_accuracy']:.4f} |"
            )
        machine = record["machine"]
        machines.append(
            f"Measured on {machine['date']} on one {record['device']} with jax {machine['jax']}."
        )
        if record["settings"]:
            others.append(f"`{name}` is with `{shlex.join(record['settings'])}`.")
    return "\n".join([*rows, "", *_wrapped(" ".join([*dict.fromkeys(machines), *others]))])


def best_curve() -> str:
    """Return the table of the epochs of `best` that were evaluated, over its seeds."""
    runs = load("recipe-best-bfloat16")["runs"]
    rows = [
        "| epoch | minutes | training accuracy, by seed | on the 2,000 held-out images |",
        "|---|---|---|---|",
    ]
    whole = next(run for run in runs if run["is_of_one_process"])  # its minutes are those of all
    seconds = 0.0
    for number, row in enumerate(whole["epochs"]):
        seconds += sum(row.get(f"{part}_seconds", 0) for part in ("compile", "train", "validation"))
        each = [run["epochs"][number] for run in runs]
        if "validation_accuracy" in row:
            trained, held_out = (
                ", ".join(f"{one[f'{part}_accuracy']:.4f}" for one in each)
                for part in ("train", "validation")
            )
            rows.append(f"| {row['epoch']} | {seconds / 60:.0f} | {trained} | {held_out} |")
    return "\n".join(rows)


def ablation() -> str:
    """Return the table of what each part of the recipe is worth."""
    of: dict[str, list[float]] = {}
    for each in load("ablation-fast")["results"]:
        of.setdefault(each["part"], []).append(each["accuracy"])
    whole, *parts = [(part, statistics.mean(values)) for part, values in of.items()]
    rows = ["| | held-out accuracy | worth, points | seeds |", "|---|---|---|---|"]
    for part, mean in [whole, *sorted(parts, key=lambda each: each[1])]:
        worth = "" if part == whole[0] else f"{100 * (whole[1] - mean):.2f}"
        rows.append(f"| {part} | {mean:.4f} | {worth} | {len(of[part])} |")
    return "\n".join(rows)


def memory() -> str:
    """Return the table of what saves memory: a row per network."""
    found = load("memory")["results"]
    rows = [
        "| temporary MB of a step, its time | | `recompute` | four parts | both |",
        "|---|---|---|---|---|",
    ]
    for model in dict.fromkeys(each["model"] for each in found):
        of = {each["side"]: each for each in found if each["model"] == model}
        cells = []
        for side in ("whole", "recompute", "parts", "both"):
            cell, ratio = f"{of[side]['megabytes']:,.0f}", of[side]["ratio"]
            if side != "whole":
                cell += f", {ratio['median']:.2f} times ({ratio['min']:.2f} to {ratio['max']:.2f})"
            cells.append(cell)
        rows.append(f"| {NAMES[model]} | {' | '.join(cells)} |")
    return "\n".join(rows)


def devices() -> str:
    """Return the table of several devices beside one: a row per network, dtype and division."""
    record = load("devices")
    rows = [
        "| network, 32 px | dtype | devices | | losses | parameters | statistics | average | "
        "images/s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for each in record["results"]:
        rate = each["images_per_second"]
        kinds = ("losses", "params", "statistics", "ema")
        cells = [f"{each[kind]:.0e}" if kind in each else "" for kind in kinds]
        rows.append(
            f"| {NAMES[each['model']].split(',')[0]} | {each['dtype']} | {each['devices']} | "
            f"{each['mode'] if each['devices'] > 1 else ''} | {' | '.join(cells)} | "
            f"{f'{rate:,.0f}' if rate else ''} |"
        )
    return "\n".join(rows)


def details() -> str:
    """Return the figures of docs/performance.md."""
    machine = load("train_step")["machine"]
    epoch = load("epoch")["results"]
    startup = load("startup")["results"]
    models = startup["models"]
    first_steps = ", ".join(
        f"{NAMES[name].split(',')[0]} {models[name]['first_step']['median']:.1f} s"
        for name in models
    )
    lines = [
        *step_rows(),
        "",
        "![time of a step](../benchmarks/results/train_step.png)",
        "",
        *textwrap.wrap(
            f"A whole LeNet epoch with its data takes {epoch['jaxcnn']['seconds']['median']:.1f} "
            "s: a tight loop in PyTorch over tensors in memory takes "
            f"{spread(epoch['torch']['ratio'])} times as long, its DataLoader converting image by "
            f"image, as in d2l, {spread(epoch['loader']['ratio'])} times. From the call of "
            f"`train.py` to the first step, trained, evaluated and saved: {first_steps}; "
            f"`import jaxcnn` is {startup['import']['median']:.2f} s of it.",
            100,
        ),
        "",
        *textwrap.wrap(
            f"Measured on {machine['date']} on {machine['cores']} cores of an "
            f"{machine['processor']} with jax {machine['jax']}: medians, and the range over the "
            "rounds.",
            100,
        ),
        "",
        "`Trained.predict` beside onnxruntime with the exported file:",
        "",
        *inference(),
    ]
    return "\n".join(lines)


def trained() -> dict[str, list[dict[str, Any]]]:
    """Return the recorded runs of each model, by its name."""
    models = [
        name for name in load("parity")["results"] if (RESULTS / f"accuracy-{name}.json").exists()
    ]
    return {name: load(f"accuracy-{name}")["runs"] for name in models}


def accuracies() -> str:
    """Return the table of the README: a row per network of which runs are recorded."""
    parity = load("parity")["results"]
    rows = [
        "| `NAME` | network | parameters | PyTorch | epochs | test accuracy | seeds | minutes | "
        "curves |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in trained().items():
        minutes = min(map(fastest_minutes, runs))
        seeds = ", ".join(str(run["seed"]) for run in runs)
        found = ", ".join(f"{run['epochs'][-1]['test_accuracy']:.4f}" for run in runs)
        rows.append(
            f"| `{name}` | {NAMES[name]} | {parity[name]['parameters']:,} | "
            f"{parity[name]['difference']:.0e} | {len(runs[0]['epochs'])} | {found} | "
            f"{seeds} | {minutes:.{0 if minutes > 2 else 1}f} | "
            f"![curves](docs/images/curves-{name}.png) |"
        )
    return "\n".join(rows)


def fastest_minutes(run: dict[str, Any]) -> float:
    """Return the minutes of a run if each epoch took as long as the fastest did."""
    seconds = [row["train_seconds"] + row["test_seconds"] for row in run["epochs"]]
    return len(seconds) * min(seconds) / 60


def epochs() -> str:
    """Return the tables of docs/results.md: every epoch of the first seed of each network."""
    lines = []
    for name, runs in trained().items():
        machine = load(f"accuracy-{name}")["machine"]
        lines += [
            f"### {NAMES[name]}",
            "",
            f"Seed {runs[0]['seed']}, on {machine['cores']} cores of an {machine['processor']}, "
            f"{machine['date']}, jax {machine['jax']}.",
            "",
            "| epoch | training loss | training accuracy | test loss | test accuracy | images/s |",
            "|---|---|---|---|---|---|",
        ]
        for row in runs[0]["epochs"]:
            numbers = [
                row[f"{split}_{key}"] for split in ("train", "test") for key in ("loss", "accuracy")
            ]
            cells = [
                str(row["epoch"]),
                *(f"{x:.4f}" for x in numbers),
                f"{row['images_per_second']:,.0f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines[:-1])


def parities() -> str:
    """Return the table of the comparison with PyTorch: a row per network."""
    rows = [
        "| `NAME` | PyTorch's network | image | classes | parameters | largest difference |",
        "|---|---|---|---|---|---|",
    ]
    for name, each in load("parity")["results"].items():
        size = f"{each['image_size']} x {each['image_size']} x {each['channels']}"
        rows.append(
            f"| `{name}` | {SOURCES[each['source']]} | {size} | {each['num_classes']} | "
            f"{each['parameters']:,} | {each['difference']:.1e} |"
        )
    return "\n".join(rows)


# What is written into each document, by the name in its comment.
DOCUMENTS = {
    ROOT / "README.md": {"accuracy": accuracies, "speed": summary},
    ROOT / "docs" / "performance.md": {
        "speed": details,
        "bfloat16": bfloat16,
        "gradients": gradients,
        "memory": memory,
        "gpu": gpu,
    },
    ROOT / "docs" / "scaling.md": {"tpu": tpu},
    ROOT / "docs" / "distributed.md": {"devices": devices},
    ROOT / "docs" / "recipes.md": {
        "recipes": recipes,
        "gpu": recipes_on_gpu,
        "best": best_curve,
        "pretrained": pretrained,
        "ablation": ablation,
        "search": search,
    },
    ROOT / "docs" / "results.md": {"parity": parities, "epochs": epochs},
}


def render(document: Path) -> str:
    """Return a document with the figures of the records."""
    text = document.read_text()
    for name, make in DOCUMENTS[document].items():
        begin = BEGIN.format(name)
        before, rest = text.split(f"{begin}\n")
        _, after = rest.split(f"{END}\n", maxsplit=1)
        text = f"{before}{begin}\n{make()}\n{END}\n{after}"
    return text


def draw(path: Path, name: str) -> None:
    """Draw the times of a step in a record, relative to ours."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    results = load(name)["results"]
    axes = figure.subplots()
    sides = [side for side in COLORS if any(side in result["sides"] for result in results)]
    width = 0.8 / len(sides)
    for i, side in enumerate(sides):
        one = {"median": 1.0, "min": 1.0, "max": 1.0}
        groups = [group for group, r in enumerate(results) if side in r["sides"]]
        ratios = [results[group]["sides"][side].get("ratio", one) for group in groups]
        medians = [ratio["median"] for ratio in ratios]
        errors = [
            [ratio["median"] - ratio["min"] for ratio in ratios],
            [ratio["max"] - ratio["median"] for ratio in ratios],
        ]
        places = [group + width * (i - (len(sides) - 1) / 2) for group in groups]
        axes.bar(places, medians, 0.92 * width, yerr=errors, color=COLORS[side], label=LABELS[side])
    names = [
        textwrap.fill(NAMES[r["net"]].split(",")[0], 16) + f"\n{r['allocator']} allocator"
        for r in results
    ]
    axes.set_xticks(range(len(results)), names, fontsize=8)
    axes.axhline(1, color="black", linewidth=0.6)
    axes.set_ylabel("time of a step / ours")
    axes.margins(y=0.2)
    axes.legend(frameon=False, fontsize=8, ncols=len(sides), loc="upper left")
    figure.savefig(path, dpi=120)


def draw_curves(path: Path, runs: list[dict[str, Any]], held_out: str = "test") -> None:
    """Draw the accuracies of a model by epoch, small enough for a row of a table."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.4, 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for split, color in (("train", COLORS["jaxcnn"]), (held_out, COLORS["torch"])):
        for run in runs:
            rows = [row for row in run["epochs"] if f"{split}_accuracy" in row]
            numbers = [row["epoch"] for row in rows]
            values = [row[f"{split}_accuracy"] for row in rows]
            axes.plot(numbers, values, color=color, linewidth=1)
    axes.tick_params(labelsize=6, length=2)
    axes.set_xticks(sorted({1, len(runs[0]["epochs"])}))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Write all of them."""
    for document in DOCUMENTS:
        document.write_text(render(document))
    for name in PICTURES:
        draw(RESULTS / f"{name}.png", name)
    IMAGES.mkdir(exist_ok=True)
    for name, runs in trained().items():
        draw_curves(IMAGES / f"curves-{name}.png", runs)
    draw_curves(IMAGES / "curves-best.png", load("recipe-best-bfloat16")["runs"], "validation")


if __name__ == "__main__":
    main()
