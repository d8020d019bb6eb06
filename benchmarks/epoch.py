"""The time of a whole LeNet epoch with its data, against a tight loop in PyTorch.

python benchmarks/epoch.py [--rounds 3]

| side   | an epoch of 60,000 training and 10,000 test images, batches of 128                   |
|--------|--------------------------------------------------------------------------------------|
| jaxcnn | as `train.py` runs it: shuffled, trained, evaluated, shown, logged, saved            |
| torch  | a tight loop: tensors in memory, shuffled by index, trained, evaluated; none is kept |
| loader | d2l's way: a DataLoader with two processes, which converts each image anew           |

d2l's images come from torchvision. Here, what its data set and `ToTensor` do to one of them is
written out, so that it need not be installed.

Each side runs in a process of its own, and they take turns. 'ratio' is a side's time over ours
within one round. Prints a table, writes `benchmarks/results/epoch.json` and prints one JSON
line. Without PyTorch, jaxcnn alone is measured.
"""

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from machine import write_record
from sides import Side, has_torch, serve, summary

ROOT = Path(__file__).parents[1]
BATCH = 128


def jaxcnn_epoch() -> Callable[[], None]:
    """Return a call that trains the next epoch as `train_and_evaluate` does."""
    from rich.console import Console

    from jaxcnn.config import get_default_config
    from jaxcnn.train import loop
    from jaxcnn.train.loggers import Loggers
    from jaxcnn.train.prepare import prepare
    from jaxcnn.train.programs import Programs
    from jaxcnn.train.record.display import Display
    from jaxcnn.train.record.progress import Progress
    from jaxcnn.train.record.signals import StopSignal
    from jaxcnn.train.record.workdir import Workdir

    config = get_default_config()
    config.batch_size = BATCH
    setup, progress = prepare(config), Progress()
    programs = Programs(setup)
    programs.compile_all().result()
    run = Workdir(tempfile.mkdtemp(), setup.settings, digests={}, environment={})
    run.resume(setup.shapes, warn=print)
    screen = Console(file=io.StringIO(), force_terminal=True)  # drawn, but not shown
    quiet = Loggers((), print)

    def epoch() -> None:
        nonlocal setup, progress
        with Display(10**6, 10**6, screen) as display:  # takes over the standard output meanwhile
            trainer = loop.Trainer(setup, programs, run, display, StopSignal(), progress, quiet)
            trainer.train_epoch()
        setup, progress = setup.starting_from(trainer.state), trainer.progress

    return epoch


def torch_epoch(batches: Callable[[str], Iterable[tuple[Any, Any]]]) -> Callable[[], None]:
    """Return a call that trains an epoch on the batches of a split, and evaluates."""
    sys.path.insert(0, str(ROOT / "tests"))
    import torch
    import torch_nets

    torch.manual_seed(0)
    model = torch_nets.lenet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def epoch() -> None:
        for images, labels in batches("train"):
            optimizer.zero_grad(set_to_none=True)
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
        with torch.no_grad():
            correct = sum(
                (model(images).argmax(1) == labels).sum() for images, labels in batches("test")
            )
        assert 0 <= int(correct) <= 10_000

    return epoch


def tensor_batches() -> Callable[[str], Iterable[tuple[Any, Any]]]:
    """Return batches by split, cut out of tensors in memory."""
    import torch

    tensors = torch_tensors()

    def batches(split: str) -> Iterable[tuple[Any, Any]]:
        images, labels = tensors[split]
        order = torch.randperm(len(labels)) if split == "train" else torch.arange(len(labels))
        for indices in order.split(BATCH):
            yield images[indices], labels[indices]

    return batches


def loader_batches() -> Callable[[str], Iterable[tuple[Any, Any]]]:
    """Return batches by split, put together by PyTorch's DataLoader image by image."""
    from torch.utils.data import DataLoader

    from jaxcnn.data import load_dataset

    loaders = {}
    for split in ("train", "test"):
        data = load_dataset("fashion_mnist", split)
        images = Images(data.images[..., 0], data.labels)
        loaders[split] = DataLoader(images, BATCH, shuffle=split == "train", num_workers=2)
    return loaders.__getitem__


class Images:
    """A data set for a DataLoader: each image is opened and converted when it is asked for.

    Args:
        pixels: uint8 [N, H, W].
        labels: [N].
    """

    def __init__(self, pixels: np.ndarray, labels: np.ndarray):
        self._pixels, self._labels = pixels, labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        import torch
        from PIL import Image

        image = np.array(Image.fromarray(self._pixels[index]))
        tensor = torch.from_numpy(image[..., None]).permute(2, 0, 1).contiguous()
        return tensor.float().div(255), int(self._labels[index])


def torch_tensors() -> dict[str, tuple[Any, Any]]:
    """Return images, float32 [N, 1, 28, 28], and labels, int64 [N], of each split."""
    import torch

    from jaxcnn.data import load_dataset

    tensors = {}
    for split in ("train", "test"):
        data = load_dataset("fashion_mnist", split)
        images = torch.from_numpy(data.images.astype(np.float32) / 255).permute(0, 3, 1, 2)
        tensors[split] = images.contiguous(), torch.from_numpy(data.labels.astype(np.int64))
    return tensors


def answer_jobs(side: str) -> None:
    """Train an epoch for each job of the parent."""
    if side == "jaxcnn":
        epoch = jaxcnn_epoch()
    else:
        epoch = torch_epoch(tensor_batches() if side == "torch" else loader_batches())

    def answer(job: dict[str, Any]) -> dict[str, Any]:
        start = time.perf_counter()
        epoch()
        return {"seconds": time.perf_counter() - start}

    serve(answer)


def main() -> None:
    """Measure, print and record; or serve as one of the sides."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/epoch.json")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        answer_jobs(options.side)
        return
    names = ["jaxcnn", *(["torch", "loader"] if has_torch() else [])]
    times: dict[str, list[float]] = {name: [] for name in names}
    with ExitStack() as stack:
        sides = [stack.enter_context(Side(name, "plain")) for name in names]
        for side in sides:
            side.ask({})  # the first epoch warms up
        for _ in range(options.rounds):
            for side in sides:
                times[side.name].append(side.ask({})["seconds"])
    print("side      s/epoch  least to most   ratio (least to most)")
    result: dict[str, Any] = {}
    for name in names:
        ratio = summary([a / b for a, b in zip(times[name], times["jaxcnn"], strict=True)])
        result[name] = {"seconds": summary(times[name]), "ratio": ratio}
        seconds = result[name]["seconds"]
        print(
            f"{name:8}  {seconds['median']:7.2f}  {seconds['min']:5.2f} to {seconds['max']:5.2f}  "
            f"{ratio['median']:6.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"
        )
    write_record(options.output, results=result)


if __name__ == "__main__":
    main()
