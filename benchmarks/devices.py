"""Several devices beside one: how far twenty steps differ, and how many images they take.

python benchmarks/devices.py [--models lenet_modern vgg resnet18] [--devices 1 2 4 8]

The devices are virtual ones of this CPU, which share its cores: the figures of speed say what
dividing a batch costs, not what more devices gain. The steps take batches of 30 and a last one of
15, of 32 x 32 pixels, with augmentation, momentum and a moving average of the weights; each number
of devices, each way (`pmap` and `jit`) and each dtype has a process of its own. Prints a table, and
writes `benchmarks/results/devices.json` after each network and dtype. ResNet18 takes two minutes a
process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import write_record

ROOT = Path(__file__).parents[1]
STEPS, SECONDS = 20, 3.0


def prepare_run(model: str, dtype: str, devices: int, mode: str, **changes: Any) -> Any:
    """Return what a run needs, and its programs."""
    from jaxcnn.config import get_default_config
    from jaxcnn.train.prepare import prepare
    from jaxcnn.train.programs import Programs

    config = get_default_config()
    config.update(
        model=model,
        dataset="fashion_mnist_sample",
        image_size=32,
        dtype=dtype,
        learning_rate=0.02,
        momentum=0.9,
        ema_decay=0.9,
        augmentation="shift:2, flip",
        num_devices=devices,
        data_parallel=mode,
        num_epochs=20,
        **changes,
    )
    setup = prepare(config)
    return setup, Programs(setup)


def take_steps(which: tuple[str, str, int, str], output: Path) -> None:
    """Take the steps, and write the losses and the state."""
    import jax

    from jaxcnn.train.pace import Pace

    setup, programs = prepare_run(*which, batch_size=30, max_train_examples=105, steps_per_call=1)
    state, losses = setup.state, []
    pace = Pace(setup.full_batches, setup.steps_per_epoch, programs.max_steps)
    for step, count in pace.calls(0, STEPS):
        state, metrics = programs.train(state, step, count)
        losses += [each.loss() for each in metrics.per_step()]
    programs.close()
    kinds = {"params": state.params, "statistics": state.batch_stats, "ema": state.ema}
    arrays = {
        f"{kind}{jax.tree_util.keystr(path)}": np.asarray(x)
        for kind, tree in kinds.items()
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }
    np.savez(output, losses=losses, **arrays)


def measure(which: tuple[str, str, int, str]) -> float:
    """Return images per second, in batches of 128."""
    import jax

    setup, programs = prepare_run(*which, batch_size=128)
    state, steps, seconds = setup.state, 0, 0.0
    count = min(programs.max_steps, 5)
    for number in range(10**6):
        start = time.perf_counter()
        state, _ = programs.train(state, 0, count)
        jax.block_until_ready(state)
        if number:  # the first call is slower
            steps, seconds = steps + count, seconds + time.perf_counter() - start
        if seconds > SECONDS:
            break
    programs.close()
    return 128 * steps / seconds


def run(model: str, dtype: str, devices: int, mode: str, folder: Path) -> tuple[Any, float | None]:
    """Let a process take the steps; return its arrays and its images per second."""
    output = folder / f"{model}-{dtype}-{devices}-{mode}.npz"
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_ENABLE_X64": "1" if dtype == "float64" else "0",
    }
    which = [model, dtype, str(devices), mode, str(output)]
    done = subprocess.run(
        [sys.executable, __file__, "--side", *which],
        env=env,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return np.load(output), json.loads(done.stdout)


def difference(one: Any, other: Any, kind: str) -> float:
    """Return the largest difference of the arrays whose name begins so; 0 if there are none."""
    names = [name for name in one.files if name.startswith(kind)]
    return max((float(np.abs(one[name] - other[name]).max()) for name in names), default=0.0)


def main() -> None:
    """Run each, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["lenet_modern", "vgg", "resnet18"])
    parser.add_argument("--devices", nargs="+", type=int, default=[2, 4, 8])
    parser.add_argument("--dtypes", nargs="+", default=["float64", "float32"])
    parser.add_argument("--side", nargs=5, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/devices.json")
    options = parser.parse_args()
    if options.side:
        model, dtype, devices, mode, output = options.side
        which = model, dtype, int(devices), mode
        take_steps(which, Path(output))
        print(json.dumps(measure(which) if dtype == "float32" else None))
        return
    results = []
    print("network       dtype    devices        loss   parameters  statistics  average  images/s")
    with tempfile.TemporaryDirectory() as folder:
        for model in options.models:
            for dtype in options.dtypes:
                one, rate = run(model, dtype, 1, "pmap", Path(folder))
                rates = {(1, "pmap"): rate}
                for devices in options.devices:
                    for mode in ("pmap", "jit"):
                        found, rate = run(model, dtype, devices, mode, Path(folder))
                        rates[devices, mode] = rate
                        kinds = ("losses", "params", "statistics", "ema")
                        apart = {kind: difference(one, found, kind) for kind in kinds}
                        row = {"model": model, "dtype": dtype, "devices": devices, "mode": mode}
                        results.append(row | apart | {"images_per_second": rate})
                        print(
                            f"{model:12}  {dtype}  {devices:2} {mode:4}  "
                            + "  ".join(f"{x:9.1e}" for x in apart.values())
                            + (f"  {rate:8,.0f}" if rate else ""),
                            flush=True,
                        )
                if rates[1, "pmap"]:
                    row = {"model": model, "dtype": dtype, "devices": 1, "mode": "one device"}
                    results.append(row | {"images_per_second": rates[1, "pmap"]})
                    print(f"{model:12}  {dtype}   1 {'':44}{rates[1, 'pmap']:15,.0f}", flush=True)
                write_record(options.output, shows=False, steps=STEPS, results=results)


if __name__ == "__main__":
    main()
