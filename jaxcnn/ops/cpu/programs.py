"""Which programs the engine computes: those of one CPU, and each device's own part of others.

In a program that `jit` divides over several devices, XLA decides how each array lies over them. It
can do so for its own operations only: those of the engine, and loops over the images of a batch,
would make it collect whole arrays on each device. There, and in a program that is exported for
other machines or kept on disk, XLA's own operations take their place.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import mlir


def is_whole(ctx: mlir.LoweringRuleContext) -> bool:
    """Return whether a program is compiled, not exported, for whole arrays of one device.

    Within `pmap`, and within `shard_map` over every axis of its mesh, arrays are whole: each device
    computes a part of its own.

    Args:
        ctx: of the rule that lowers an operation of the program.
    """
    module = ctx.module_context
    if module.lowering_parameters.for_export or are_kept():
        return False
    context: Any = module.axis_context
    if hasattr(context, "manual_axes"):
        divided = set(context.mesh.shape) - context.manual_axes
        return math.prod(context.mesh.shape[axis] for axis in divided) == 1
    return getattr(context, "num_devices", 1) == 1


def are_kept() -> bool:
    """Return whether JAX keeps compiled programs on disk, in its persistent compilation cache.

    It cannot keep oneDNN's calls: writing them reads memory that is not theirs, which ends in a
    warning with jaxlib 0.10.2 and ends the process with 0.12.0.
    """
    config: Any = jax.config  # its settings are attributes that its type does not tell
    return bool(config.jax_compilation_cache_dir and config.jax_enable_compilation_cache)


def cpu_or_default(
    *args: Any, cpu: Callable[..., jax.Array], default: Callable[..., jax.Array]
) -> jax.Array:
    """Return cpu(*args) in a program that the engine computes on a CPU, else default(*args).

    As `jax.lax.platform_dependent`, whose choice, too, is made when the program is compiled.
    """

    def on_cpu(*args: Any) -> jax.Array:
        whole = _is_whole_p.bind()
        if isinstance(whole, bool):  # outside `jit`
            return cpu(*args) if all(map(_is_on_one_device, args)) else default(*args)
        return lax.cond(whole, cpu, default, *args)

    return lax.platform_dependent(*args, cpu=on_cpu, default=default)


def _is_on_one_device(x: Any) -> bool:
    is_known = isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer)
    return not is_known or len(x.devices()) == 1


_is_whole_p = Primitive("is_whole")
_is_whole_p.def_abstract_eval(lambda: jax.core.ShapedArray((), jax.numpy.bool_))
_is_whole_p.def_impl(lambda: True)  # outside `jit`: one array at a time
mlir.register_lowering(_is_whole_p, lambda ctx: [mlir.ir_constant(jax.numpy.bool_(is_whole(ctx)))])
