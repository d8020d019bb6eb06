"""How far gradients in bfloat16 are from those in float64: ours, XLA's own and PyTorch's.

python benchmarks/gradients.py [MODEL ...] [--output FILE]

Needs PyTorch and torchvision. Cross-entropy of 8 random images in training mode, without dropout,
for the same weights; PyTorch runs under autocast. An error is the length of the difference of all
gradients together, over the length of float64's. Prints a row for each network and writes
`benchmarks/results/gradients.json`.
"""

import argparse
import runpy
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from machine import write_record
from parity import CONFIGS, NETS, ROOT

import jaxcnn
from jaxcnn import interop
from jaxcnn.ops import cpu

IMAGES, MOST_PIXELS = 8, 96
ONE_SIZE = ("vgg11",)  # torchvision's dense layers are for images of 224 x 224 pixels
SIDES = ("float32", "bfloat16", "xla", "torch")


def of_jaxcnn(model: Any, variables: Any, images: np.ndarray, labels: np.ndarray) -> Any:
    """Return the gradients of the parameters, as float64."""

    def loss(params: Any) -> jax.Array:
        logits, _ = model.apply(
            {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    grads = jax.jit(jax.grad(loss))(variables["params"])
    return jax.tree.map(lambda x: np.asarray(x, np.float64), grads)


def of_torch(net: torch.nn.Module, images: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return the gradients under autocast, by the names of the state dict; buffers as they are."""
    state = {name: x.clone() for name, x in net.state_dict().items()}
    with torch.autocast("cpu", torch.bfloat16):
        logits = net.train()(torch.tensor(images.transpose(0, 3, 1, 2)))
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels, dtype=torch.int64))
    loss.backward()
    return state | {name: x.grad for name, x in net.named_parameters()}


def error(grads: Any, exact: Any) -> float:
    """Return the length of the difference over the length of the exact gradient."""
    pairs = list(zip(jax.tree.leaves(grads), jax.tree.leaves(exact), strict=True))
    wrong = sum(float(np.square(x - y).sum()) for x, y in pairs)
    return float(np.sqrt(wrong / sum(float(np.square(y).sum()) for _, y in pairs)))


def compare(name: str) -> dict[str, Any]:
    """Return the image size and the error of each side."""
    source, create = NETS[name]
    file = ROOT / "configs" / f"{CONFIGS.get(name, name)}.py"
    size = runpy.run_path(str(file))["get_config"]().image_size
    size = min(size, MOST_PIXELS) if name not in ONE_SIZE else size
    num_classes, channels = (1000, 3) if source == "torchvision" else (10, 1)
    model = jaxcnn.create_model(name, num_classes=num_classes)
    if hasattr(model, "dropout_rate"):
        model = model.clone(dropout_rate=0.0)
    torch.manual_seed(0)
    net = create(model, size)
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    random = np.random.default_rng(0)
    images = random.random((IMAGES, size, size, channels), np.float32)
    labels = random.integers(0, num_classes, IMAGES).astype(np.int32)
    convert = interop.from_torchvision if source == "torchvision" else interop.from_torch
    variables = convert(net.state_dict(), model)
    with jax.enable_x64(True):
        double = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
        exact_model = model.clone(dtype=jnp.float64, implementation="xla")
        exact = of_jaxcnn(exact_model, double, images.astype(np.float64), labels)
    half = {"dtype": jnp.bfloat16}
    grads = {
        "float32": of_jaxcnn(model, variables, images, labels),
        "bfloat16": of_jaxcnn(model.clone(**half), variables, images, labels),
        "xla": of_jaxcnn(model.clone(**half, implementation="xla"), variables, images, labels),
        "torch": convert(of_torch(net, images, labels), model)["params"],
    }
    return {"image_size": size, **{side: error(grads[side], exact) for side in SIDES}}


def main() -> None:
    """Compare, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(NETS)}")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/gradients.json")
    options = parser.parse_args()
    models, path = options.models or list(NETS), options.output
    results: dict[str, Any] = {}
    print(f"{'network':13} " + " ".join(f"{side:>9}" for side in SIDES))
    for name in models:
        results[name] = each = compare(name)
        print(f"{name:13} " + " ".join(f"{each[side]:9.1e}" for side in SIDES), flush=True)
        facts = {"convolution": cpu.status(), "torch": torch.__version__}
        write_record(path, shows=False, **facts, results=results)


if __name__ == "__main__":
    main()
