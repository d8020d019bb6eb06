"""The time of a training step on a GPU, against PyTorch's own and its compiled one.

python benchmarks/gpu.py [--nets lenet ...] [--dtypes float32 bfloat16] [--rounds 5]

Plain gradient descent on random images that are on the GPU already. Ours takes many steps in one
call, as `train.py` does; 'xla' is ours with XLA's own operations alone. PyTorch runs in
channels_last with cuDNN's benchmark mode, in bfloat16 under autocast; 'compiled' is
`torch.compile(mode="reduce-overhead")` of model and loss, which replays CUDA graphs. float32 is
TF32 for both, in products as well as convolutions: JAX's default, and PyTorch's
`set_float32_matmul_precision("high")`. Each side, network and dtype has a process of its own; all
compile at once, then they measure one at a time, by turns. Prints a table, in which 'ratio' is the
other side's time over ours within one round, and writes `benchmarks/results/gpu.json`.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from machine import write_record
from sides import Side, serve, summary
from train_step import jaxcnn_steps, seconds_per_step

ROOT = Path(__file__).parents[1]
NETS = {"lenet": (28, 128), "resnet18": (96, 128), "vgg11": (224, 64)}  # image size, batch size
PEERS = ("xla", "torch", "compiled")


def torch_steps(net: str, dtype: str, compiled: bool) -> Callable[[int], None]:
    """Return a call that takes a number of PyTorch's steps."""
    sys.path.insert(0, str(ROOT / "tests"))
    import torch
    import torch_nets

    from jaxcnn.models import VGG11, ResNet18

    size, batch = NETS[net]
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    build = {
        "lenet": torch_nets.lenet,
        "resnet18": lambda: torch_nets.resnet(ResNet18().arch),
        "vgg11": lambda: torch_nets.vgg(VGG11().arch, size),
    }[net]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build().to(device, memory_format=torch.channels_last)
    images = torch.rand(2, batch, 1, size, size, device=device)
    images = [x.to(memory_format=torch.channels_last) for x in images]
    labels = torch.randint(0, 10, (2, batch), device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, fused=True)

    def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            return torch.nn.functional.cross_entropy(model(x), y)

    compute = torch.compile(loss, mode="reduce-overhead") if compiled else loss

    def take(count: int) -> None:
        for i in range(count):
            if compiled:
                torch.compiler.cudagraph_mark_step_begin()
            optimizer.zero_grad(set_to_none=True)
            compute(images[i % 2], labels[i % 2]).backward()
            optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return take


def answer_jobs(side: str) -> None:
    """Measure what the parent asks for, until it closes the pipe."""
    prepared: list[Callable[[int], None]] = []

    def answer(job: dict[str, Any]) -> dict[str, Any]:
        if prepared:
            return {"seconds": seconds_per_step(prepared[0], job["at_least"])}
        start = time.perf_counter()
        if side in ("jaxcnn", "xla"):
            import jax
            import jax.numpy as jnp

            from jaxcnn.models import create_model

            size, batch = NETS[job["net"]]
            model = create_model(job["net"], dtype=jnp.dtype(job["dtype"]))
            take, _ = jaxcnn_steps(model, size, batch)
            facts = {"device": jax.devices()[0].device_kind}
        else:
            import torch

            take = torch_steps(job["net"], job["dtype"], side == "compiled")
            facts = {"torch": torch.__version__}
        for _ in range(3):
            take(3)
        prepared.append(take)
        return facts | {"first_seconds": time.perf_counter() - start}

    serve(answer)


def measure(
    case: dict[str, Any], sides: list[tuple[Side, dict[str, Any]]], rounds: int
) -> dict[str, Any]:
    """Return the times of a network in a dtype, and print them; with each side, its facts."""
    times: dict[str, list[float]] = {side.name: [] for side, _ in sides}
    for _ in range(rounds):
        for side, _ in sides:
            times[side.name].append(side.ask(case)["seconds"])
    size, batch = NETS[case["net"]]
    result = {"net": case["net"], "dtype": case["dtype"], "size": size, "batch": batch, "sides": {}}
    for side, fact in sides:
        name, taken = side.name, summary(times[side.name])
        pairs = zip(times[name], times["jaxcnn"], strict=True)
        ratio = summary(theirs / ours for theirs, ours in pairs)
        facts = {"first_seconds": fact["first_seconds"], "seconds": taken, "ratio": ratio}
        result["sides"][name] = facts
        print(
            f"{case['net']:8}  {case['dtype']:8}  {name:8}  {1e3 * taken['median']:8.3f}  "
            f"{1e3 * taken['min']:7.3f} to {1e3 * taken['max']:7.3f}  "
            f"{batch / taken['median']:9,.0f}  {ratio['median']:5.2f}",
            flush=True,
        )
    return result


def main() -> None:
    """Measure, print and record; or serve as one of the sides."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=NETS)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--sides", nargs="+", default=list(PEERS), choices=PEERS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="per side and round, at least")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/gpu.json")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        answer_jobs(options.side)
        return
    # Several processes share the GPU's memory.
    os.environ |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TORCHINDUCTOR_COMPILE_THREADS": "2"}
    cases = [
        {"net": net, "dtype": dtype, "at_least": options.seconds}
        for net in options.nets
        for dtype in options.dtypes
    ]
    results = []
    with ExitStack() as stack:
        sides = [
            (case, stack.enter_context(Side(name, "plain")))
            for case in cases
            for name in ("jaxcnn", *options.sides)
        ]
        with ThreadPoolExecutor(len(sides)) as pool:
            facts = list(pool.map(lambda each: each[1].ask(each[0]), sides))
        print("net       dtype     side       ms/step  least to most  images/s  ratio", flush=True)
        about = {key: x for fact in facts for key, x in fact.items() if key in ("device", "torch")}
        for case in cases:
            of_case = [
                (side, fact) for (of, side), fact in zip(sides, facts, strict=True) if of is case
            ]
            results.append(measure(case, of_case, options.rounds))
            write_record(options.output, shows=False, **about, results=results)


if __name__ == "__main__":
    main()
