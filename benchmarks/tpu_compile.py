"""What a training step costs on TPUs: compiled for them, without having one.

python benchmarks/tpu_compile.py [--models lenet resnet18 vgg11] [--dtypes float32 bfloat16]
    [--kind "TPU v5e"] [--chips 1 8 256]

It takes `libtpu`, as `pip install -c constraints.txt -e '.[tpu]'` brings. The program is that of
`train.py`, whole: the loop of 50 steps, each with its batch, gradients, optimizer and metrics. Its
compiler says what memory it takes, how many operations and bytes a step has on each chip, and what
the chips exchange. From those follow the roofline (Williams et al., 2009), the time that no program
of so many operations and bytes can beat, and what the exchange adds to it; docs/scaling.md has the
model. Nothing is run, so no time is measured. Compiling takes minutes a program. Prints a table,
and writes `benchmarks/results/tpu_compile.json`, in which other programs stay as they are.
"""

import argparse
import dataclasses
import json
import math
import os
import re
import runpy
import time
from pathlib import Path
from typing import Any, NamedTuple

os.environ["JAX_PLATFORMS"] = "cpu"  # no TPU is looked for
os.environ.update(  # else libtpu asks the network what machine this is
    TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost", TPU_ACCELERATOR_TYPE="v5litepod-4"
)

import jax
import numpy as np
from jax.experimental import topologies
from machine import write_record

from jaxcnn.data import Dataset
from jaxcnn.train.parallel import DataParallel
from jaxcnn.train.prepare import prepare
from jaxcnn.train.programs import Programs
from jaxcnn.train.protocol import set_axis_name
from jaxcnn.train.setup import Setup

ROOT = Path(__file__).parents[1]
BATCH = 128  # a chip
HOP_SECONDS = 1e-6  # from a chip to its neighbour: jax-ml.github.io/scaling-book/tpus


class Kind(NamedTuple):
    """A kind of TPU; its chips form a grid, whose rows and columns are rings at 16 x 16.

    Attributes:
        flops: per second, in bfloat16, as which a TPU multiplies float32, too, by default.
        bytes: per second, from and to its memory.
        port: bytes per second that a chip sends through one of its four ports.
        prefix: of libtpu's names of its grids.
    """

    flops: float
    bytes: float
    port: float
    prefix: str


KINDS = {  # docs.cloud.google.com/tpu/docs/v5e and v6e
    "TPU v5e": Kind(197e12, 819e9, 50e9, "v5e"),
    "TPU v6e": Kind(918e12, 1638e9, 100e9, "v6e"),
}


class Grid(NamedTuple):
    """How chips are connected.

    Attributes:
        shape: of libtpu's description; for one chip, of the smallest that it has.
        ports: that a chip at a corner can send through.
        hops: between the two chips that are farthest apart.
    """

    shape: str
    ports: int
    hops: int


GRIDS = {1: Grid("2x2", 0, 0), 8: Grid("2x4", 2, 4), 256: Grid("16x16", 4, 16)}


class Described(DataParallel):
    """Devices of which there is a description alone: arrays are shapes, and programs do not run."""

    def _place(self, tree: Any, sharding: Any) -> Any:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )


class AllReduces(NamedTuple):
    """What the chips add up in a step: how often, and how many bytes."""

    count: int
    bytes: int


def create_setup(model: str, dtype: str, devices: list[Any], **changes: Any) -> Setup:
    """Return what a run of a config on these devices would need."""
    config = runpy.run_path(f"{ROOT / 'configs' / model}.py")["get_config"]()
    config.update(dtype=dtype, batch_size=BATCH * len(devices), num_devices=1, **changes)
    count = 2 * config.batch_size
    images, labels = np.zeros((count, 28, 28, 1), np.uint8), np.arange(count, dtype=np.int32) % 10
    train = Dataset(images, labels, tuple(map(str, range(10))))
    setup, parallel = prepare(config, train=train, has_test=False), Described(devices=devices)
    return dataclasses.replace(
        setup,
        parallel=parallel,
        shapes=parallel.replicate(setup.shapes),
        model=set_axis_name(setup.model, parallel.axis_name),
    )


def find_all_reduces(program: str) -> AllReduces:
    """Return what a program's text, optimized HLO, adds up over chips, each instruction once."""
    shapes = re.findall(r"= (.*?) all-reduce(?:-start)?\(", program)
    sizes = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8}
    arrays = [each for shape in shapes for each in re.findall(r"(\w+)\[([\d,]*)\]", shape)]
    counts = [math.prod(map(int, filter(None, dims.split(",")))) for _, dims in arrays]
    each = [sizes[dtype] * count for (dtype, _), count in zip(arrays, counts, strict=True)]
    return AllReduces(len(shapes), sum(each))


def describe(setup: Setup, kind: Kind) -> dict[str, float]:
    """Return what the compiler says of a step on each chip, and what the model makes of it."""
    start, chips = time.perf_counter(), len(setup.parallel.devices)
    programs = Programs(setup)
    compiled: Any = programs.to_train(0).result()
    programs.close()
    seconds = time.perf_counter() - start
    costs, memory = compiled.cost_analysis(), compiled.memory_analysis()
    # The compiler counts the whole training set, of which a step reads a batch.
    flops, traffic = costs["flops"], costs["bytes accessed"] - setup.train.images.nbytes
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(setup.shapes))
    reduces, grid = find_all_reduces(compiled.as_text()), GRIDS[chips]
    roofline, exchange = max(flops / kind.flops, traffic / kind.bytes), 0.0
    if chips > 1:
        sent = 2 * (chips - 1) / chips * reduces.bytes
        exchange = sent / (grid.ports * kind.port) + reduces.count * 2 * grid.hops * HOP_SECONDS
    return {
        "gigaflops": flops / 1e9,
        "gigabytes": traffic / 1e9,
        "memory_megabytes": (held + memory.temp_size_in_bytes) / 1e6,
        "compute_ms": 1e3 * flops / kind.flops,
        "memory_ms": 1e3 * traffic / kind.bytes,
        "all_reduces": reduces.count,
        "all_reduced_megabytes": reduces.bytes / 1e6,
        "exchange_ms": 1e3 * exchange,
        "images_per_second": chips * BATCH / (roofline + exchange),
        "compile_seconds": seconds,
    }


def earlier(path: Path) -> dict[tuple, dict[str, Any]]:
    """Return the results that a record has, by program."""
    results = json.loads(path.read_text())["results"] if path.exists() else []
    return {key_of(each): each for each in results}


def key_of(result: dict[str, Any]) -> tuple:
    """Return what tells a program from others."""
    return tuple(result[name] for name in ("kind", "chips", "model", "dtype"))


def main() -> None:
    """Compile, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["lenet", "resnet18", "vgg11"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--kind", choices=KINDS, default="TPU v5e")
    parser.add_argument("--chips", nargs="+", type=int, choices=GRIDS, default=list(GRIDS))
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/tpu_compile.json")
    options = parser.parse_args()
    kind, results = KINDS[options.kind], earlier(options.output)
    print(
        f"{options.kind}, a step of {BATCH} images on each chip\n"
        "chips  model     dtype      GFLOP     GB  memory, MB  compute, memory, exchange, ms  "
        "all-reduces, MB  images/s"
    )
    for chips in options.chips:
        name = f"{kind.prefix}:{GRIDS[chips].shape}"
        devices = topologies.get_topology_desc(name, platform="tpu").devices[:chips]
        for model in options.models:
            for dtype in options.dtypes:
                found = describe(create_setup(model, dtype, devices), kind)
                which = {"kind": options.kind, "chips": chips, "model": model, "dtype": dtype}
                results[key_of(which)] = which | found
                print(
                    f"{chips:5}  {model:8}  {dtype:8}  {found['gigaflops']:6,.1f}  "
                    f"{found['gigabytes']:5.2f}  {found['memory_megabytes']:10,.0f}  "
                    f"{found['compute_ms']:7.2f} {found['memory_ms']:7.2f} "
                    f"{found['exchange_ms']:13.3f}  {found['all_reduces']:5} "
                    f"{found['all_reduced_megabytes']:9.1f}  {found['images_per_second']:8,.0f}",
                    flush=True,
                )
                values = list(results.values())
                write_record(options.output, shows=False, batch_size=BATCH, results=values)


if __name__ == "__main__":
    main()
