"""The engine for CPUs: convolution, pooling and ReLU faster than XLA's own, with the same results.

This file is its face. Nothing outside `jaxcnn.ops` needs more than these names, and a reader can
read all of jaxcnn without opening the files behind it:

| file            |                                                                           |
|-----------------|---------------------------------------------------------------------------|
| `primitives.py` | the passes of a convolution as JAX primitives, so that `grad`, `vmap` and |
|                 | every other transformation work                                           |
| `programs.py`   | which programs the engine computes: not those divided over devices        |
| `select.py`     | which algorithm computes which pass: tables; `limits.py`: the thresholds  |
| `banded.py`, `columns.py`, `gemm.py`, `winograd.py` | the algorithms; `products.py`,        |
|                 | `chunks.py`: what they are made of                                        |
| `half.py`       | half precision: computed in float32, moved as integers                    |
| `onednn.py`     | the calls of oneDNN; `probe.py`: whether they may be used here            |
| `pool.py`       | max and average pooling; `memory.py`: what is kept and what is recomputed |
| `switch.py`     | `JAXCNN_IMPLEMENTATION`                                                   |
"""

import functools

import jax
import jax.numpy as jnp

from jaxcnn.ops.cpu import probe, programs
from jaxcnn.ops.cpu.memory import materialize, relu, remat_in_chunks, scan, suits_loops
from jaxcnn.ops.cpu.pool import max_pool, sum_tiles
from jaxcnn.ops.cpu.primitives import conv2d, dot
from jaxcnn.ops.cpu.products import product
from jaxcnn.ops.cpu.switch import IMPLEMENTATIONS, VARIABLE, choose_implementation

DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)  # of convolutions; sums are float32's in each

# For a program that runs once, such as what draws the initial weights: on CPU it is compiled with
# less optimization, which takes a third of the time and, with the tested versions, gives the same
# bits.
QUICK_TO_COMPILE = {"xla_backend_optimization_level": 1}

__all__ = [
    "DTYPES",
    "IMPLEMENTATIONS",
    "QUICK_TO_COMPILE",
    "VARIABLE",
    "choose_implementation",
    "compiler_options",
    "conv2d",
    "dot",
    "materialize",
    "max_pool",
    "product",
    "relu",
    "remat_in_chunks",
    "scan",
    "status",
    "suits_loops",
    "sum_tiles",
    "why_slower",
]


def status() -> str:
    """Return 'oneDNN in use' if oneDNN computes convolutions on this CPU, else why it does not.

    >>> status().startswith(("oneDNN in use", "oneDNN not in use: "))
    True
    """
    return f"oneDNN {probe.verdict()}"


def why_slower(implementation: str | None = None) -> str:
    """Return why convolutions are XLA's own on this CPU, or '' if they are faster.

    Args:
        implementation: as for `choose_implementation`.

    >>> why_slower("xla")
    "implementation 'xla' was chosen"
    """
    if choose_implementation(implementation) == "xla":
        return "implementation 'xla' was chosen"
    if programs.are_kept():
        return "JAX's compilation cache is on, which cannot keep oneDNN's calls"
    return "" if probe.available() else status()


@functools.cache
def compiler_options(recomputes: bool = False) -> dict[str, str | bool]:
    """Return what to tell XLA's compiler for CPUs, if this version understands it.

    It asks for the order of operations that needs the least memory. That costs no time, and a step
    of ResNet18 needs a quarter less memory than in the order that suits concurrency.

    Args:
        recomputes: whether the program computes something again to save memory, as
            `jaxcnn.layers.Recomputed` does. XLA's pass that is left out would make it forget that.

    >>> isinstance(compiler_options(), dict)
    True
    """
    options: dict[str, str | bool] = {
        "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"
    }
    if recomputes:
        options["xla_disable_hlo_passes"] = "cse_barrier_expander"
    try:
        jax.jit(lambda x: x).lower(0.0).compile(compiler_options=options)
    except Exception:  # the compiler refuses a name or value that it does not know
        return {}
    return options
