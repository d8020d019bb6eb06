"""The time of single convolutions, pass by pass, against plain XLA's and PyTorch's.

python benchmarks/conv.py [--nets lenet ...] [--sides xla torch] [--allocators tuned] [--rounds 3]

The layers of the networks at batch 128 in float32, each shape once; the sides take turns, each in a
process of its own. 'GFLOP/s' is ours; the columns after it are the other side's time over ours, and
'others' the largest share of the processors that other processes took: above a few percent, measure
again. Prints a table, writes `benchmarks/results/conv.json` and prints one JSON line.
"""

import argparse
import json
import statistics
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from machine import write_record
from sides import ALLOCATORS, Side, has_torch, seconds, serve

ROOT = Path(__file__).parents[1]
PASSES = ("forward", "images", "kernel")  # the last two: the gradients by them
# size of the image, channels in and out, size of the kernel, stride, padding
LAYERS = {
    "lenet": [(28, 1, 6, 5, 1, 2), (14, 6, 16, 5, 1, 0)],
    "resnet18": [
        (96, 1, 64, 7, 2, 3),
        (24, 64, 64, 3, 1, 1),
        (24, 64, 128, 3, 2, 1),
        (24, 64, 128, 1, 2, 0),
        (12, 128, 128, 3, 1, 1),
        (12, 128, 256, 3, 2, 1),
        (6, 256, 256, 3, 1, 1),
        (6, 256, 512, 3, 2, 1),
        (3, 512, 512, 3, 1, 1),
    ],
    "vgg": [
        (224, 1, 16, 3, 1, 1),
        (112, 16, 32, 3, 1, 1),
        (56, 32, 64, 3, 1, 1),
        (56, 64, 64, 3, 1, 1),
        (28, 64, 128, 3, 1, 1),
        (28, 128, 128, 3, 1, 1),
        (14, 128, 128, 3, 1, 1),
    ],
}


def jaxcnn_call(operands: list[Any], stride: int, padding: int, which: str) -> Any:
    """Return a call of one pass with images, kernel and cotangent; it waits for the result."""
    import jax

    from jaxcnn.ops import conv2d

    conv = partial(conv2d, strides=stride, padding=padding)

    def compute(x, k, g):
        if which == "forward":
            return conv(x, k)
        if which == "images":
            return jax.vjp(lambda x: conv(x, k), x)[1](g)
        return jax.vjp(lambda k: conv(x, k), k)[1](g)

    arrays = [jax.device_put(operand) for operand in operands]
    program = jax.jit(compute).lower(*arrays).compile()
    return lambda: jax.block_until_ready(program(*arrays))


def torch_call(operands: list[Any], stride: int, padding: int, which: str) -> Any:
    """Return the same call of PyTorch's, with images in channels_last."""
    import torch

    x, k, g = (torch.from_numpy(operand) for operand in operands)
    x, g = x.permute(0, 3, 1, 2), g.permute(0, 3, 1, 2)
    k = k.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
    if which == "forward":
        return lambda: torch.nn.functional.conv2d(x, k, stride=stride, padding=padding)
    window, mask = [[stride] * 2, [padding] * 2, [1, 1]], [which == "images", which == "kernel"]
    backward = torch.ops.aten.convolution_backward
    return lambda: backward(g, x, k, None, *window, False, [0, 0], 1, [*mask, False])


def answer_jobs(side: str) -> None:
    """Measure what the parent asks for, until it closes the pipe."""
    import numpy as np

    calls: dict[str, Any] = {}

    def answer(job: dict[str, Any]) -> dict[str, Any]:
        key = json.dumps(job)
        if key not in calls:
            size, i, o, window, stride, padding = job["layer"]
            out = (size + 2 * padding - window) // stride + 1
            shapes = [(size, size, i), (window, window, i, o), (out, out, o)]
            shapes = [(job["batch"], *s) if len(s) == 3 else s for s in shapes]
            rng = np.random.default_rng(0)
            operands = [rng.standard_normal(shape, np.float32) for shape in shapes]
            call = torch_call if side == "torch" else jaxcnn_call
            calls.clear()
            calls[key] = call(operands, stride, padding, job["pass"])
            calls[key]()
        return {"seconds": seconds(calls[key], at_least=job["at_least"], calls=3)}

    serve(answer)


def main() -> None:
    """Measure, print and record; or serve as one of the sides."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", nargs="+", default=list(LAYERS), choices=LAYERS)
    parser.add_argument("--sides", nargs="*", choices=["xla", "torch"], default=["xla", "torch"])
    parser.add_argument("--passes", nargs="+", choices=PASSES, default=PASSES)
    parser.add_argument("--allocator", choices=ALLOCATORS, default="tuned")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.1, help="per side and round, at least")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/conv.json")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        answer_jobs(options.side)
        return
    names = ["jaxcnn", *(name for name in options.sides if name != "torch" or has_torch())]
    columns = "".join(f"{name:>7}" for name in names[1:])
    print(f"net       layer                    pass     ms      GFLOP/s{columns}  others %")
    results = []
    with ExitStack() as stack:
        sides = [stack.enter_context(Side(name, options.allocator)) for name in names]
        for net in options.nets:
            for layer in LAYERS[net]:
                for which in options.passes:
                    if which == "images" and layer[1] == 1:
                        continue  # the images of a network need no gradient
                    job = {"layer": layer, "pass": which, "batch": options.batch}
                    results.append({"net": net, **job})
                    results[-1] |= measure(sides, job | {"at_least": options.seconds}, options)
                    print(row(results[-1], names), flush=True)
    write_record(options.output, allocator=options.allocator, results=results)


def measure(sides: list[Side], job: dict[str, Any], options: Any) -> dict[str, Any]:
    """Return the median time of each side, with the warming up left out."""
    times: dict[str, list[float]] = {side.name: [] for side in sides}
    others = []
    for _ in range(options.rounds):
        for side in sides:
            answer = side.ask(job)
            times[side.name].append(answer["seconds"])
            others.append(answer["others"])
    return {
        "seconds": {name: statistics.median(values) for name, values in times.items()},
        "others": max(others),
    }


def row(result: dict[str, Any], names: list[str]) -> str:
    """Return a line of the table."""
    size, i, o, window, stride, padding = result["layer"]
    out = (size + 2 * padding - window) // stride + 1
    ours = result["seconds"]["jaxcnn"]
    gigaflop = 2e-9 * result["batch"] * out**2 * window**2 * i * o
    layer = f"{size}x{size} {i}->{o} {window}x{window}/{stride}"
    ratios = "".join(f"{result['seconds'][name] / ours:7.2f}" for name in names[1:])
    return (
        f"{result['net']:8}  {layer:23}  {result['pass']:7}  {1e3 * ours:6.2f}  "
        f"{gigaflop / ours:7.0f}{ratios}  {100 * result['others']:8.0f}"
    )


if __name__ == "__main__":
    main()
