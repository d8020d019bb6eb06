"""An ONNX graph that is being written, and the arrays in it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from onnx import TensorProto, helper, numpy_helper

Axes = tuple[int, ...]
Shape = tuple[Any, ...]  # sizes; the free batch size is a symbol of JAX's

IMAGES, LOGITS, BATCH = "images", "logits", "N"


class UntranslatableError(Exception):
    """An operation of the table with parameters that ONNX has nothing for."""


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
    """An array of the traced program.

    It may be less than the program has: an axis along which all elements are equal may have size 1,
    as NumPy's broadcasting and ONNX's take it. And the axes of a tensor in the graph may be in any
    order: ONNX's convolutions take channels first, and most operations any order.

    Attributes:
        shape: sizes of the axes, in the program's order.
        name: of the tensor in the graph, or of a constant in the messages of tools.
        axes: which axis of the array each axis of the tensor is.
        array: the elements, if they are constant; then in the program's order.
    """

    shape: Shape
    name: str = ""
    axes: Axes = ()
    array: np.ndarray | None = None


def constant(array: Any, name: str = "constant") -> Value:
    """Return an array whose elements are known.

    >>> constant(np.zeros(3)).axes
    (0,)
    """
    array = np.asarray(array)
    return Value(array.shape, name, tuple(range(array.ndim)), array)


def onnx_type(dtype: Any) -> int:
    """Return ONNX's number for a dtype; floating point of any precision becomes float32.

    >>> onnx_type(jnp.bfloat16) == TensorProto.FLOAT
    True
    """
    if jnp.issubdtype(dtype, jnp.floating):
        return TensorProto.FLOAT
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


class Graph:
    """Nodes and constants, each under a name of its own.

    Attributes:
        nodes: in the order of computation.
        initializers: the constants.
        scope: what the names of further nodes begin with.
    """

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.scope = ""
        self._names = {IMAGES, LOGITS, ""}
        self._stored: dict[tuple[Value, Axes], str] = {}

    def add(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Add a node; return the name of its output."""
        name = self._new_name(f"{self.scope}/{op}".lstrip("/"))
        self.nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
        return name

    def store(self, array: np.ndarray, name: str = "constant") -> str:
        """Add a constant; return its name."""
        if jnp.issubdtype(array.dtype, jnp.floating):
            array = array.astype(np.float32)
        name = self._new_name(name)
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def integers(self, numbers: Sequence[int]) -> str:
        """Add a list of integers, which some operations take as an input; return its name."""
        return self.store(np.array(numbers, np.int64), "integers")

    def tensor(self, value: Value, axes: Axes | None = None, shape: Shape | None = None) -> str:
        """Return the name of a tensor of the graph that has the elements of an array.

        Args:
            value: the array.
            axes: order of the tensor's axes; that of the program if None.
            shape: of the array in the program, to repeat what it repeats; None leaves that out.
        """
        axes = tuple(range(len(value.shape))) if axes is None else axes
        name = value.name
        if value.array is not None:
            name = self._stored.get((value, axes)) or self.store(value.array.transpose(axes), name)
            self._stored[value, axes] = name
        elif value.axes != axes:
            name = self.add("Transpose", [name], perm=[value.axes.index(axis) for axis in axes])
        if shape is None or shape == value.shape:
            return name
        # Expand leaves alone what has size 1 in its second input.
        sizes = [1 if shape[axis] == value.shape[axis] else shape[axis] for axis in axes]
        return self.add("Expand", [name, self._sizes(sizes)])

    def elementwise(self, op: str, *values: Value, **attributes: Any) -> Value:
        """Add an operation on the elements of arrays of one shape, or scalars."""
        rank = max(len(value.shape) for value in values)
        arrays = [value for value in values if len(value.shape) == rank]
        sizes = zip(*(value.shape for value in arrays), strict=True)
        shape = tuple(next((size for size in of_axis if size != 1), 1) for of_axis in sizes)
        # The order of the largest tensor: the others are transposed to it, constants here and now.
        largest = max(arrays, key=lambda x: (x.array is None, sum(n != 1 for n in x.shape)))
        inputs = [self.tensor(value, largest.axes if value.shape else ()) for value in values]
        return Value(shape, self.add(op, inputs, **attributes), largest.axes)

    def _sizes(self, sizes: Sequence[Any]) -> str:
        """Add a list of sizes, among which may be the batch's."""
        if all(isinstance(size, int) for size in sizes):
            return self.integers(sizes)
        for size in sizes:
            if not isinstance(size, int) and not f"{size}".isidentifier():
                raise UntranslatableError(f"with a size of {size}, which is not the batch's")
        batch = self.add("Shape", [IMAGES], start=0, end=1)
        parts = [self.integers([n]) if isinstance(n, int) else batch for n in sizes]
        return self.add("Concat", parts, axis=0)

    def _new_name(self, name: str) -> str:
        count, base = 1, name
        while name in self._names:
            count += 1
            name = f"{base}_{count}"
        self._names.add(name)
        return name
