"""Compare the logits of each network with PyTorch's, for the same random weights and images.

python benchmarks/parity.py [MODEL ...]

Needs PyTorch and torchvision. The networks are d2l's, as `tests/torch_nets.py` has them, and
torchvision's; their running averages are those of random images, not 0 and 1. Prints the number of
parameters and the largest difference, divided by the largest logit, and writes
`benchmarks/results/parity.json`.
"""

import argparse
import json
import runpy
import sys
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import torch
from machine import write_record

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
# Its own operators, which take PyTorch's build for CUDA, need not load.
sys.modules["torchvision._meta_registrations"] = ModuleType("torchvision._meta_registrations")
import torch_nets  # noqa: E402
import torchvision  # noqa: E402

import jaxcnn  # noqa: E402
from jaxcnn import interop  # noqa: E402

IMAGES = 4
# Where the file has another name than the network.
CONFIGS = {"small_tiny": "tiny", "small_fast": "fast", "small_best": "best"}


def small(model: jaxcnn.SmallNet, size: int) -> torch.nn.Module:
    """Return the same network for small images."""
    stem = model.stem_channels, model.stem_kernel_size, model.stem_pool
    return torch_nets.small(model.arch, *stem)


# The source of each network, and what makes it of a model and an image size.
NETS = {
    "lenet": ("d2l", lambda model, size: torch_nets.lenet()),
    "lenet_modern": ("d2l", lambda model, size: torch_nets.lenet_modern()),
    "alexnet": ("d2l", lambda model, size: torch_nets.alexnet(size)),
    "vgg": ("d2l", lambda model, size: torch_nets.vgg(model.arch, size)),
    "vgg11": ("torchvision", lambda *_: torchvision.models.vgg11()),
    "nin": ("d2l", lambda model, size: torch_nets.nin(model.arch)),
    "googlenet": ("d2l", lambda model, size: torch_nets.googlenet(model.arch)),
    "resnet18": ("d2l", lambda model, size: torch_nets.resnet(model.arch)),
    "densenet": ("d2l", lambda model, size: torch_nets.densenet(model.arch)),
    "small_tiny": ("own", small),
    "small_fast": ("own", small),
    "small_best": ("own", small),
    "resnet34": ("torchvision", lambda *_: torchvision.models.resnet34()),
    "resnet50": ("torchvision", lambda *_: torchvision.models.resnet50()),
    "resnext50": ("torchvision", lambda *_: torchvision.models.resnext50_32x4d()),
}


def compare(name: str) -> dict:
    """Return what was compared, and the largest difference."""
    source, create = NETS[name]
    file = ROOT / "configs" / f"{CONFIGS.get(name, name)}.py"
    config = runpy.run_path(str(file))["get_config"]()
    size = config.image_size
    num_classes, channels = (1000, 3) if source == "torchvision" else (10, 1)
    model = jaxcnn.create_model(name, num_classes=num_classes)
    torch.manual_seed(0)
    net = create(model, size)
    images = np.random.default_rng(0).random((IMAGES, size, size, channels), np.float32)
    x = torch.tensor(images.transpose(0, 3, 1, 2))
    with torch.no_grad():
        for _ in range(20):  # for the running averages
            net.train()(x)
        expected = net.eval()(x).numpy()
    convert = interop.from_torchvision if source == "torchvision" else interop.from_torch
    variables = convert(net.state_dict(), model)
    logits = np.asarray(jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images))
    difference = float(np.abs(logits - expected).max() / np.abs(expected).max())
    parameters = sum(x.size for x in jax.tree.leaves(variables["params"]))
    return {
        "source": source,
        "image_size": size,
        "num_classes": num_classes,
        "channels": channels,
        "parameters": parameters,
        "difference": difference,
    }


def main() -> None:
    """Compare, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(NETS)}")
    models = parser.parse_args().models or list(NETS)
    path = ROOT / "benchmarks" / "results" / "parity.json"
    results = json.loads(path.read_text())["results"] if len(models) < len(NETS) else {}
    for name in models:
        results[name] = each = compare(name)
        print(
            f"{name:13} {each['parameters']:12,} parameters, {each['source']:11} "
            f"{each['difference']:.1e}",
            flush=True,
        )
    write_record(path, results={name: results[name] for name in NETS if name in results})


if __name__ == "__main__":
    main()
