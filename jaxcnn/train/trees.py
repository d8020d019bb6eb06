"""Trees of arrays: the shapes of their leaves, and how two of them differ."""

from typing import Any

import jax
import numpy as np

Shapes = dict[str, tuple[tuple[int, ...], np.dtype]]


def shapes_of(tree: Any) -> Any:
    """Return the shape, dtype and devices of every array, in place of it.

    >>> shapes_of({"bias": jax.numpy.zeros(6)})["bias"].shape
    (6,)
    """
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def shapes_by_name(tree: Any) -> Shapes:
    """Return (shape, dtype) of every array of a tree, by names such as 'params/conv1/kernel'.

    >>> shapes_by_name({"conv1": {"bias": np.zeros(6, np.float32)}})
    {'conv1/bias': ((6,), dtype('float32'))}
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {name_of(path): (tuple(x.shape), np.dtype(x.dtype)) for path, x in leaves}


def name_of(path: Any) -> str:
    """Return a name such as 'params/conv1/kernel' for a key path of JAX's."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def first_difference(a: Shapes, b: Shapes) -> tuple[str, str, str] | None:
    """Return the name of the first array that differs and what it is in each tree, or None.

    Parameters come first, since everything else follows from them.

    >>> bias = shapes_by_name({"bias": np.zeros((3, 2), np.float32)})
    >>> first_difference(bias, {})
    ('bias', '3x2 float32', 'none')
    """
    for name in sorted(b | a, key=lambda name: not name.startswith("params/")):
        if a.get(name) != b.get(name):
            return name, _describe(a, name), _describe(b, name)
    return None


def _describe(shapes: Shapes, name: str) -> str:
    if name not in shapes:
        return "none"
    shape, dtype = shapes[name]
    return f"{'x'.join(map(str, shape)) or 'scalar'} {dtype}"
