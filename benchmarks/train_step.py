"""The time of a training step, against PyTorch's and against plain XLA's convolution.

python benchmarks/train_step.py [--nets lenet ...] [--sides xla torch] [--allocators plain tuned]
    [--dtypes float32 bfloat16]

Batches of 128 random images, plain gradient descent. In bfloat16, PyTorch runs under autocast, and
ours in float32 is a side, too. A time is that of a step among several, as a trainer takes them. As
in `train.py`, one call of ours takes many steps where that is fast, and the next call is made
before one ends. The sides take turns, round after round; PyTorch runs in the memory format
(contiguous or channels_last) in which it was faster in two trials.
'ratio' is the other side's time over ours within one round. 'others' is the share of the processors
that other processes took meanwhile: above a few percent, measure again. 'of product' is the rate in
GFLOP/s over that of one large matrix product, measured in the same round. Prints a table, writes
`benchmarks/results/train_step.json` and prints one JSON line. Without PyTorch, jaxcnn alone is
measured. Plain XLA is measured with the plain allocator only.
"""

import argparse
import functools
import itertools
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from machine import write_record
from sides import ALLOCATORS, Side, has_torch, seconds, serve, summary

ROOT = Path(__file__).parents[1]
NETS = {"lenet": 28, "lenet_modern": 28, "resnet18": 96, "vgg": 224}  # image size
MAX_STEPS = 50  # of ours in a call, as in `train.py`
PASSES = 3  # forward, and the gradients by images and by kernel
PRODUCT = 2048  # rows and columns of the matrices whose product is measured


def jaxcnn_steps(model: Any, size: int, batch: int) -> tuple[Any, dict[str, Any]]:
    """Return a call that takes a number of steps of ours, and what compiling them took."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from jax import lax

    from jaxcnn.inspect import layer_summary
    from jaxcnn.ops import cpu
    from jaxcnn.train import create_train_state, train_step

    optimizer = optax.sgd(0.01)
    state = create_train_state(model, optimizer, (size, size, 1))
    rng = np.random.default_rng(0)
    # Two batches by turns, as in `train.py`: what depends on none but one would be computed once.
    images = jax.device_put(rng.random((2, batch, size, size, 1), np.float32))
    labels = jax.device_put(rng.integers(0, 10, (2, batch), np.int32))

    def step(state, images, labels):
        turn = state.step % 2
        return train_step(state, images[turn], labels[turn], model=model, optimizer=optimizer)

    def steps(state, images, labels, count):
        _, metrics = jax.eval_shape(step, state, images, labels)
        start = (state, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metrics))
        return lax.fori_loop(0, count, lambda _, carry: step(carry[0], images, labels), start)

    def one_step(state, images, labels, count):
        return step(state, images, labels)

    is_cpu = jax.default_backend() == "cpu"
    is_ours = cpu.choose_implementation() == "auto" and is_cpu
    has_loop = not is_cpu or cpu.suits_loops(step, state, images, labels)
    options = cpu.compiler_options() if is_ours else {}
    start = time.perf_counter()
    program = jax.jit(steps if has_loop else one_step, donate_argnums=0)
    program = program.lower(state, images, labels, 1).compile(options)
    compile_seconds = time.perf_counter() - start
    rows = layer_summary(model, (batch, size, size, 1))
    facts = {
        "compile_seconds": compile_seconds,
        "temporary_megabytes": program.memory_analysis().temp_size_in_bytes / 1e6,
        "gigaflop": 2e-9 * PASSES * sum(r.macs for r in rows if r.depth == 1),
    }

    def take(count: int) -> None:
        nonlocal state
        before = None
        while count > 0:
            steps = min(count, MAX_STEPS) if has_loop else 1
            state, metrics = program(state, images, labels, steps)
            jax.block_until_ready(before)
            before = metrics
            count -= steps
        jax.block_until_ready(state)

    return take, facts


def torch_steps(net: str, size: int, batch: int, dtype: str) -> tuple[Any, dict[str, Any]]:
    """Return a call that takes a number of PyTorch's steps, in its faster memory format."""
    sys.path.insert(0, str(ROOT / "tests"))
    import torch
    import torch_nets

    from jaxcnn.models import ResNet18, VGGNarrow

    build = {
        "lenet": torch_nets.lenet,
        "lenet_modern": torch_nets.lenet_modern,
        "resnet18": lambda: torch_nets.resnet(ResNet18().arch),
        "vgg": lambda: torch_nets.vgg(VGGNarrow().arch, size),
    }[net]

    def prepare(memory_format: torch.memory_format):
        torch.manual_seed(0)
        model = build().to(memory_format=memory_format)
        images = torch.rand(batch, 1, size, size).to(memory_format=memory_format)
        labels = torch.randint(0, 10, (batch,))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

        def loss() -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
                return torch.nn.functional.cross_entropy(model(images), labels)

        def take(count: int) -> None:
            for _ in range(count):
                optimizer.zero_grad(set_to_none=True)
                loss().backward()
                optimizer.step()

        take(1)
        return seconds(lambda: take(1), at_least=0.5, calls=2), take

    trials = {
        name: prepare(getattr(torch, name)) for name in ("contiguous_format", "channels_last")
    }
    name = min(trials, key=lambda name: trials[name][0])
    return trials[name][1], {"memory_format": name, "torch": torch.__version__}


def seconds_per_step(take: Callable[[int], None], at_least: float) -> float:
    """Return the time of a step among at least two, taken for about `at_least` seconds."""
    count = max(2, round(at_least / seconds(lambda: take(1), at_least=0)))
    return seconds(lambda: take(count), at_least=0) / count


def product_steps() -> Callable[[], Any]:
    """Return a call that takes one large matrix product, by the engine that convolutions use."""
    import jax
    import jax.numpy as jnp

    from jaxcnn.ops import cpu

    product = jax.jit(cpu.product)
    matrix = jnp.ones((PRODUCT, PRODUCT))
    return lambda: jax.block_until_ready(product(matrix, matrix))


def answer_jobs(side: str) -> None:
    """Measure what the parent asks for, until it closes the pipe."""
    steps: dict[str, Any] = {}
    product = functools.cache(product_steps)

    def answer(job: dict[str, Any]) -> dict[str, Any]:
        net = job["net"]
        if net == "product":
            product()()
            return {"gigaflops": 2e-9 * PRODUCT**3 / seconds(product(), at_least=0.2)}
        if net not in steps:  # only one net at a time stays in memory
            steps.clear()
            size, batch = job["size"], job["batch"]
            if side == "torch":
                steps[net], facts = torch_steps(net, size, batch, job["dtype"])
            else:
                import jax.numpy as jnp

                from jaxcnn.models import create_model

                dtype = "float32" if side == "float32" else job["dtype"]
                model = create_model(net, dtype=jnp.dtype(dtype))
                steps[net], facts = jaxcnn_steps(model, size, batch)
            steps[net](1)
            return facts
        return {"seconds": seconds_per_step(steps[net], job["at_least"])}

    serve(answer)


def measure(net: str, allocator: str, dtype: str, names: list[str], options: Any) -> dict[str, Any]:
    """Return the times of a net in a dtype under one setting of the allocator."""
    if allocator != "plain":  # plain XLA would keep too much memory
        names = [name for name in names if name != "xla"]
    if dtype != "float32":
        names = [*names, "float32"]
    job = {"net": net, "size": NETS[net], "batch": options.batch, "at_least": options.seconds}
    job |= {"dtype": dtype}
    with ExitStack() as stack:
        sides = [stack.enter_context(Side(name, allocator)) for name in names]
        facts = {side.name: side.ask(job) for side in sides}
        times: dict[str, list[float]] = {name: [] for name in names}
        others: dict[str, list[float]] = {name: [] for name in names}
        products = []
        for _ in range(options.rounds):
            products.append(sides[0].ask({"net": "product"})["gigaflops"])
            for side in sides:
                answer = side.ask(job)
                times[side.name].append(answer["seconds"])
                others[side.name].append(answer["others"])
    result = {key: job[key] for key in ("net", "dtype", "batch")}
    result |= {"allocator": allocator, "sides": {}}
    result["product_gigaflops"] = summary(products)
    for name in names:
        gigaflop = facts["jaxcnn"]["gigaflop"]
        shares = [gigaflop / t / p for t, p in zip(times[name], products, strict=True)]
        result["sides"][name] = facts[name] | {
            "seconds": summary(times[name]),
            "others": summary(others[name]),
            "of_product": summary(shares),
        }
        if name != "jaxcnn":
            ratios = [a / b for a, b in zip(times[name], times["jaxcnn"], strict=True)]
            result["sides"][name]["ratio"] = summary(ratios)
    return result


def row(result: dict[str, Any], name: str) -> str:
    """Return a line of the table."""
    side, ours = result["sides"][name], result["sides"]["jaxcnn"]
    times, ratio = side["seconds"], side.get("ratio")
    return (
        f"{result['net']:12}  {result['dtype']:8}  {result['allocator']:9}  {name:7}  "
        f"{1e3 * times['median']:8.1f}  "
        f"{1e3 * times['min']:7.1f} to {1e3 * times['max']:7.1f}  "
        f"{100 * side['others']['median']:8.0f}  {result['batch'] / times['median']:8,.0f}  "
        f"{ours['gigaflop'] / times['median']:7.1f}  {side['of_product']['median']:10.2f}  "
        + (f"{ratio['median']:5.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})" if ratio else "")
    )


def main() -> None:
    """Measure, print and record; or serve as one of the sides."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", nargs="+", default=["lenet", "resnet18", "vgg"], choices=NETS)
    parser.add_argument("--sides", nargs="+", choices=["xla", "torch"], default=["torch"])
    parser.add_argument("--allocators", nargs="+", default=["plain", "tuned"], choices=ALLOCATORS)
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=["float32", "bfloat16"])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="per side and round, at least")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/train_step.json")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        answer_jobs(options.side)
        return
    names = ["jaxcnn", *(name for name in options.sides if name != "torch" or has_torch())]
    header = "net           dtype     allocator  side      ms/step  least to most     others %  "
    print(header + "images/s  GFLOP/s  of product  ratio (least to most)", flush=True)
    results: list[dict[str, Any]] = []
    try:
        for case in itertools.product(options.nets, options.allocators, options.dtypes):
            results.append(measure(*case, names, options))
            print(*(row(results[-1], name) for name in results[-1]["sides"]), sep="\n", flush=True)
            ours = results[-1]["sides"]["jaxcnn"]
            print(
                f"{'':12}  jaxcnn compiled in {ours['compile_seconds']:.1f} s and takes "
                f"{ours['temporary_megabytes']:,.0f} MB of temporary memory",
                flush=True,
            )
    finally:  # a side may end, for want of memory for one
        write_record(options.output, results=results)


if __name__ == "__main__":
    main()
