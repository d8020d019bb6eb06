"""What a training step costs on a TPU: compiled for one, without having one.

python benchmarks/tpu_compile.py [--models lenet resnet18 vgg11] [--dtypes float32 bfloat16]

It takes `libtpu`, as `pip install -c constraints.txt -e '.[tpu]'` brings. The program is that of
`train.py`, whole: the loop of 50 steps, each with its batch, gradients, optimizer and metrics. Its
compiler says what memory it takes, and how many operations and bytes a step has. From those follows
the roofline (Williams et al., 2009): the time that no program of so many operations and bytes can
beat. Nothing is run, so no time is measured. Compiling takes minutes a program. Prints a table, and
writes `benchmarks/results/tpu_compile.json`.
"""

import argparse
import dataclasses
import os
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

ROOT = Path(__file__).parents[1]
BATCH = 128  # a chip


class Chip(NamedTuple):
    """A kind of TPU.

    Attributes:
        flops: per second, in bfloat16, as which a TPU multiplies float32, too, by default.
        bytes: per second, from and to its memory.
        topology: the smallest of which libtpu has a description.
    """

    flops: float
    bytes: float
    topology: str


CHIPS = {"TPU v5e": Chip(197e12, 819e9, "v5e:2x2")}  # cloud.google.com/tpu/docs/v5e


class Described(DataParallel):
    """Devices of which there is a description alone: arrays are shapes, and programs do not run."""

    def _place(self, tree: Any, sharding: Any) -> Any:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )


def create_programs(model: str, dtype: str, devices: list[Any]) -> Programs:
    """Return the programs of a config, which begin to be compiled for the devices."""
    config = runpy.run_path(f"{ROOT / 'configs' / model}.py")["get_config"]()
    config.update(dtype=dtype, batch_size=BATCH * len(devices), num_devices=1)
    count = 2 * config.batch_size  # the more, the more the compiler counts, although few are read
    images, labels = np.zeros((count, 28, 28, 1), np.uint8), np.arange(count, dtype=np.int32) % 10
    train = Dataset(images, labels, tuple(map(str, range(10))))
    setup, parallel = prepare(config, train=train, has_test=False), Described(devices=devices)
    return Programs(
        dataclasses.replace(
            setup,
            parallel=parallel,
            shapes=parallel.replicate(setup.shapes),
            model=set_axis_name(setup.model, parallel.axis_name),
        )
    )


def describe(programs: Programs, chip: Chip) -> dict[str, float]:
    """Return what the compiler says of a step, and what the roofline makes of it."""
    start = time.perf_counter()
    compiled: Any = programs.to_train(0).result()
    seconds = time.perf_counter() - start
    costs, memory = compiled.cost_analysis(), compiled.memory_analysis()
    flops, traffic = costs["flops"], costs["bytes accessed"]
    step = max(flops / chip.flops, traffic / chip.bytes)
    held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return {
        "gigaflops": flops / 1e9,
        "gigabytes": traffic / 1e9,
        "memory_megabytes": held / 1e6,
        "compute_ms": 1e3 * flops / chip.flops,
        "memory_ms": 1e3 * traffic / chip.bytes,
        "images_per_second": BATCH / step,
        "compile_seconds": seconds,
    }


def main() -> None:
    """Compile, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["lenet", "resnet18", "vgg11"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--chip", choices=CHIPS, default="TPU v5e")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/tpu_compile.json")
    options = parser.parse_args()
    chip, results = CHIPS[options.chip], []
    topology = topologies.get_topology_desc(chip.topology, platform="tpu")
    print(
        f"{options.chip}, a step of {BATCH} images\n"
        "model         dtype      GFLOP     GB  memory, MB  compute, ms  memory, ms  images/s"
    )
    for model in options.models:
        for dtype in options.dtypes:
            programs = create_programs(model, dtype, topology.devices[:1])
            found = describe(programs, chip)
            programs.close()
            results.append({"model": model, "dtype": dtype, **found})
            print(
                f"{model:12}  {dtype:8}  {found['gigaflops']:6,.1f}  {found['gigabytes']:5.2f}  "
                f"{found['memory_megabytes']:10,.0f}  {found['compute_ms']:11.2f}  "
                f"{found['memory_ms']:10.2f}  {found['images_per_second']:8,.0f}",
                flush=True,
            )
    write_record(options.output, chip=options.chip, batch_size=BATCH, results=results)


if __name__ == "__main__":
    main()
