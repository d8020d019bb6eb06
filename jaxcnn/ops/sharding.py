"""Arrays over several devices: what their types say, and functions that must agree with it.

The type of an array says over which axes of a `shard_map` its values vary, and how it lies over the
axes of an Explicit mesh (the default of `jax.make_mesh`). Both demand a rule of every operation.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec


def vary_alike(*operands: jax.Array) -> list[jax.Array]:
    """Let all vary over the same axes of a `shard_map`, as its check demands of every operation."""
    axes = frozenset().union(*map(_varying, operands))
    missing = (tuple(axes - _varying(x)) for x in operands)
    return [
        lax.pcast(x, more, to="varying") if more else x
        for x, more in zip(operands, missing, strict=True)
    ]


def vary_over(tree: Any, axis_name: str | None) -> Any:
    """Let arrays that all devices have alike count as each device's own.

    The gradient by such an array is that of the device's own loss. By an array that all share,
    `shard_map` returns the sum over the devices, unless `check_vma=False`; `pmap` never does.

    Args:
        tree: of arrays.
        axis_name: mapped axis; None, or one of `vmap`, changes nothing.

    >>> vary_over({"bias": jax.numpy.zeros(2)}, None)
    {'bias': Array([0., 0.], dtype=float32)}
    """
    if axis_name not in jax.sharding.get_abstract_mesh().manual_axes:
        return tree
    return jax.tree.map(
        lambda x: x if axis_name in _varying(x) else lax.pcast(x, axis_name, to="varying"), tree
    )


def on_explicit_mesh(
    function: Callable[..., jax.Array], like: Callable[..., jax.Array]
) -> Callable[..., jax.Array]:
    """Return `function`, fit for arrays that lie over an Explicit mesh.

    It is computed as if XLA were to find the layouts, and its result laid out as that of `like`.

    Args:
        function: of arrays, to one array.
        like: with the same arguments, of operations whose rules JAX has; traced, never computed.

    >>> on_explicit_mesh(jax.numpy.sin, like=lambda x: x)(jax.numpy.zeros(2))
    Array([0., 0.], dtype=float32)
    """

    def call(*arrays: jax.Array) -> jax.Array:
        meshes = [jax.typeof(x).sharding.mesh for x in arrays]
        axes = {axis: mesh for mesh in meshes for axis in mesh.explicit_axes}
        if not axes:
            return function(*arrays)
        replicated = NamedSharding(next(iter(axes.values())), PartitionSpec())
        layout = jax.eval_shape(like, *arrays).sharding or replicated
        return jax.sharding.auto_axes(function, axes=tuple(axes), out_sharding=layout)(*arrays)

    return call


def is_on_explicit_mesh(x: jax.Array) -> bool:
    """Return whether the type of an array says how it lies over the axes of a mesh.

    >>> is_on_explicit_mesh(jax.numpy.zeros(2))
    False
    """
    return bool(jax.typeof(x).sharding.mesh.explicit_axes)


def _varying(x: jax.Array) -> frozenset[str]:
    """Return the axes of a `shard_map` that x varies over."""
    aval = jax.typeof(x)
    if hasattr(aval, "vma"):  # as it was called before JAX 0.10, and may be again
        return aval.vma
    return aval.manual_axis_type.varying
