"""The nodes of ONNX that compute each operation of JAX."""

import itertools
import math
import string
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxcnn.export.onnx_graph import (
    Axes,
    Graph,
    Shape,
    UntranslatableError,
    Value,
    constant,
    onnx_type,
)

Translation = Callable[..., Value | list[Value]]
_MAX_EXACT = 2**24  # whole numbers in float32


def _sub(graph: Graph, equation: Any, x: Value, y: Value) -> Value:
    if y.array is None:
        return graph.elementwise("Sub", x, y)
    # Runtimes merge Add, but not Sub, into the convolution before it.
    return graph.elementwise("Add", x, constant(-y.array))


def _max(graph: Graph, equation: Any, x: Value, y: Value) -> Value:
    for value, other in ((x, y), (y, x)):
        if value.array is not None and (value.array == 0).all():
            return graph.elementwise("Relu", other)
        if value.array is not None and (value.array == -np.inf).all():
            return other
    return graph.elementwise("Max", x, y)


def _select(graph: Graph, equation: Any, which: Value, *cases: Value) -> Value:
    if len(cases) != 2 or equation.invars[0].aval.dtype != bool:
        raise UntranslatableError("between more than two arrays")
    return graph.elementwise("Where", which, cases[1], cases[0])


def _convert(graph: Graph, equation: Any, x: Value) -> Value:
    source, target = (onnx_type(v.aval.dtype) for v in (*equation.invars, *equation.outvars))
    return x if source == target else graph.elementwise("Cast", x, to=target)


def _broadcast(graph: Graph, equation: Any, x: Value) -> Value:
    """Add axes of size 1, which is enough for the operations that follow."""
    places, rank = equation.params["broadcast_dimensions"], len(equation.params["shape"])
    shape: list[Any] = [1] * rank
    for place, size in zip(places, x.shape, strict=True):
        shape[place] = size
    if x.array is not None:
        return constant(x.array.reshape(shape), x.name)
    added = _others(rank, places)
    name = x.name
    if added:
        name = graph.add("Unsqueeze", [name, graph.integers(range(len(places), rank))])
    return Value(tuple(shape), name, (*(places[axis] for axis in x.axes), *added))


def _transpose(graph: Graph, equation: Any, x: Value) -> Value:
    order = equation.params["permutation"]
    axes = tuple(order.index(axis) for axis in x.axes)
    return Value(tuple(x.shape[axis] for axis in order), graph.tensor(x, x.axes), axes)


def _reshape(graph: Graph, equation: Any, x: Value) -> Value:
    order = equation.params["dimensions"]  # in which the axes are read; None: as they are
    return _reshaped(graph, equation, graph.tensor(x, order, equation.invars[0].aval.shape))


def _squeeze(graph: Graph, equation: Any, x: Value) -> Value:
    return _reshaped(graph, equation, graph.tensor(x, shape=equation.invars[0].aval.shape))


def _reshaped(graph: Graph, equation: Any, tensor: str) -> Value:
    sizes = [n if isinstance(n, int) else -1 for n in equation.outvars[0].aval.shape]
    if sizes.count(-1) > 1:
        raise UntranslatableError("with the batch size in two axes")
    return _output(equation, graph.add("Reshape", [tensor, graph.integers(sizes)]))


def _reduce(op: str) -> Translation:
    def add(graph: Graph, equation: Any, x: Value) -> Value:
        gone = equation.params["axes"]
        if not gone:  # ONNX would reduce all axes
            return x
        tensor = graph.tensor(x, x.axes, equation.invars[0].aval.shape)
        positions = graph.integers([x.axes.index(axis) for axis in gone])
        left = [axis for axis in x.axes if axis not in gone]
        axes = tuple(sorted(left).index(axis) for axis in left)
        return _output(equation, graph.add(op, [tensor, positions], keepdims=0), axes)

    return add


def _window(
    size: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
) -> dict[str, Any]:
    """Return the attributes of a window that moves over some axes."""
    if min(itertools.chain(*padding), default=0) < 0:
        raise UntranslatableError("with negative padding")
    pads = [pad[end] for end in (0, 1) for pad in padding]
    attributes = {"kernel_shape": size, "strides": strides, "pads": pads}
    return attributes | ({"dilations": dilation} if set(dilation) != {1} else {})


def _pool(op: str) -> Translation:
    def add(graph: Graph, equation: Any, x: Value) -> Value:
        names = ("window_dimensions", "window_strides", "padding", "window_dilation")
        of_axis = list(zip(*(equation.params[name] for name in names), strict=True))
        still = [axis for axis, window in enumerate(of_axis) if window[:3] == (1, 1, (0, 0))]
        if len(still) < 2 or set(equation.params["base_dilation"]) != {1}:
            raise UntranslatableError("over all axes, or between elements")
        space = _others(len(of_axis), (still[0], still[-1]))
        axes = (still[0], still[-1], *space)  # batch, channels, image
        attributes = _window(*zip(*(of_axis[axis] for axis in space), strict=True))
        if op == "AveragePool" and "dilations" in attributes:
            raise UntranslatableError("with dilation")
        attributes |= {"count_include_pad": 1} if op == "AveragePool" else {}
        tensor = graph.tensor(x, axes, equation.invars[0].aval.shape)
        y = _output(equation, graph.add(op, [tensor], **attributes), axes)
        if op == "MaxPool":
            return y
        count = math.prod(attributes["kernel_shape"])  # JAX has the sums
        return graph.elementwise("Mul", y, constant(np.float32(count)))

    return add


def _conv(graph: Graph, equation: Any, x: Value, kernel: Value) -> Value:
    params, (x_shape, kernel_shape) = equation.params, (v.aval.shape for v in equation.invars)
    if set(params["lhs_dilation"]) != {1} or params["batch_group_count"] != 1:
        raise UntranslatableError("that is transposed")
    x_axes, kernel_axes, axes = params["dimension_numbers"]
    size = [kernel_shape[axis] for axis in kernel_axes[2:]]
    attributes = _window(size, params["window_strides"], params["padding"], params["rhs_dilation"])
    inputs = [graph.tensor(x, x_axes, x_shape), graph.tensor(kernel, kernel_axes, kernel_shape)]
    groups = params["feature_group_count"]
    return _output(equation, graph.add("Conv", inputs, group=groups, **attributes), tuple(axes))


def _dot(graph: Graph, equation: Any, x: Value, y: Value) -> Value:
    (of_x, of_y), (batch_of_x, batch_of_y) = equation.params["dimension_numbers"]
    x_shape, y_shape = (variable.aval.shape for variable in equation.invars)
    if not batch_of_x and len(of_x) == 1 and len(y_shape) == 2:  # a dense layer
        x_axes, y_axes = (*_others(len(x_shape), of_x), *of_x), (*of_y, *_others(2, of_y))
        inputs = [graph.tensor(x, x_axes, x_shape), graph.tensor(y, y_axes, y_shape)]
        return _output(equation, graph.add("MatMul", inputs))
    letters = iter(string.ascii_lowercase)
    x_letters = [next(letters) for _ in x_shape]
    shared = dict(zip((*batch_of_y, *of_y), (*batch_of_x, *of_x), strict=True))
    y_letters = [
        x_letters[shared[axis]] if axis in shared else next(letters) for axis in range(len(y_shape))
    ]
    out = [x_letters[axis] for axis in (*batch_of_x, *_others(len(x_shape), shared.values()))]
    out += [y_letters[axis] for axis in _others(len(y_shape), shared)]
    terms = ["".join(names[a] for a in v.axes) for names, v in ((x_letters, x), (y_letters, y))]
    inputs = [graph.tensor(x, x.axes, x_shape), graph.tensor(y, y.axes, y_shape)]
    rule = f"{terms[0]},{terms[1]}->{''.join(out)}"
    return _output(equation, graph.add("Einsum", inputs, equation=rule))


def _concatenate(graph: Graph, equation: Any, *values: Value) -> Value:
    axes = max(values, key=lambda value: value.array is None).axes
    inputs = [
        graph.tensor(value, axes, variable.aval.shape)
        for value, variable in zip(values, equation.invars, strict=True)
    ]
    axis = axes.index(equation.params["dimension"])
    return _output(equation, graph.add("Concat", inputs, axis=axis), axes)


def _stack(graph: Graph, equation: Any, *values: Value) -> Value:
    axis, where = equation.params["axis"], graph.integers([equation.params["axis"]])
    inputs = [
        graph.add("Unsqueeze", [graph.tensor(value, shape=variable.aval.shape), where])
        for value, variable in zip(values, equation.invars, strict=True)
    ]
    return _output(equation, graph.add("Concat", inputs, axis=axis))


def _unstack(graph: Graph, equation: Any, x: Value) -> list[Value]:
    axis, shape = equation.params["axis"], equation.invars[0].aval.shape
    where, values = graph.integers([axis]), []
    for i, variable in enumerate(equation.outvars):
        cut = _cut(graph, x, shape, {axis: (i, i + 1, 1)})
        tensor = graph.tensor(Value((*shape[:axis], 1, *shape[axis + 1 :]), cut, x.axes))
        name = graph.add("Squeeze", [tensor, where])
        values.append(Value(variable.aval.shape, name, tuple(range(len(shape) - 1))))
    return values


def _pad(graph: Graph, equation: Any, x: Value, value: Value) -> Value:
    padding = equation.params["padding_config"]
    if any(low < 0 or high < 0 or between for low, high, between in padding):
        raise UntranslatableError("between elements, or negative")
    pads = graph.integers([padding[axis][end] for end in (0, 1) for axis in x.axes])
    tensor = graph.tensor(x, x.axes, equation.invars[0].aval.shape)
    return _output(equation, graph.add("Pad", [tensor, pads, graph.tensor(value)]), x.axes)


def _slice(graph: Graph, equation: Any, x: Value) -> Value:
    shape, params = equation.invars[0].aval.shape, equation.params
    steps = params["strides"] or (1,) * len(shape)
    parts = zip(params["start_indices"], params["limit_indices"], steps, strict=True)
    cut = {axis: part for axis, part in enumerate(parts) if part != (0, shape[axis], 1)}
    if not all(isinstance(number, int) for part in cut.values() for number in part):
        raise UntranslatableError("of the batch")
    return _output(equation, _cut(graph, x, shape, cut), x.axes)


def _rev(graph: Graph, equation: Any, x: Value) -> Value:
    shape = equation.invars[0].aval.shape
    if 0 in equation.params["dimensions"]:
        raise UntranslatableError("of the batch")
    whole = {axis: (-1, -1 - shape[axis], -1) for axis in equation.params["dimensions"]}
    return _output(equation, _cut(graph, x, shape, whole), x.axes)


def _split(graph: Graph, equation: Any, x: Value) -> list[Value]:
    axis, shape = equation.params["axis"], equation.invars[0].aval.shape
    stops = [0, *np.cumsum(equation.params["sizes"]).tolist()]
    names = [_cut(graph, x, shape, {axis: (*part, 1)}) for part in itertools.pairwise(stops)]
    return [
        Value(variable.aval.shape, name, x.axes)
        for variable, name in zip(equation.outvars, names, strict=True)
    ]


def _cut(graph: Graph, x: Value, shape: Shape, parts: dict[int, tuple[int, int, int]]) -> str:
    """Add a Slice with (start, stop, step) of some axes of an array of this shape."""
    positions = [x.axes.index(axis) for axis in parts]
    starts, stops, steps = zip(*parts.values(), strict=True)
    numbers = (graph.integers(each) for each in (starts, stops, positions, steps))
    return graph.add("Slice", [graph.tensor(x, x.axes, shape), *numbers])


def _gather(graph: Graph, equation: Any, x: Value, indices: Value) -> Value:
    """Translate indexing with constants, such as x[:, 0] and x[:, ::2, ::2].

    What it makes of the numbers of an image's elements are the numbers of those to take.
    """
    params, shape = equation.params, equation.invars[0].aval.shape
    numbers = params["dimension_numbers"]
    is_batch_whole = 0 not in numbers.start_index_map and numbers.offset_dims[:1] == (0,)
    if indices.array is None or not is_batch_whole or numbers.operand_batching_dims:
        raise UntranslatableError("at computed positions, or of the batch")
    count = math.prod(shape[1:])
    image = np.arange(count, dtype=np.float32).reshape(1, *shape[1:])
    table = np.broadcast_to(indices.array, equation.invars[1].aval.shape)
    params = params | {"slice_sizes": (1, *params["slice_sizes"][1:])}
    taken = np.asarray(equation.primitive.bind(image, table, **params)).ravel()
    if count > _MAX_EXACT or np.isnan(taken).any():
        raise UntranslatableError("of too many elements, or outside of the array")
    rows = graph.add("Reshape", [graph.tensor(x, shape=shape), graph.integers([-1, count])])
    inputs = [rows, graph.integers(taken.astype(int).tolist())]
    return _reshaped(graph, equation, graph.add("Gather", inputs, axis=1))


def _output(equation: Any, name: str, axes: Axes | None = None) -> Value:
    """Return the output of an operation; its axes are those of the program if none are given."""
    shape = equation.outvars[0].aval.shape
    return Value(shape, name, tuple(range(len(shape))) if axes is None else axes)


def _others(rank: int, axes: Any) -> Axes:
    return tuple(axis for axis in range(rank) if axis not in axes)


def _elementwise(op: str) -> Translation:
    return lambda graph, equation, *values: graph.elementwise(op, *values)


def untranslatable(graph: Graph, equation: Any, *values: Value) -> Value:
    """Stand in for an operation that is not in the table."""
    raise UntranslatableError("")


def _same(graph: Graph, equation: Any, *values: Value) -> list[Value]:
    return list(values)


_ONE, _TWO = constant(np.float32(1)), constant(np.float32(2))
_SAME_MATHS = (
    "abs:Abs add:Add and:And ceil:Ceil cos:Cos div:Div eq:Equal erf:Erf exp:Exp floor:Floor "
    "ge:GreaterOrEqual gt:Greater le:LessOrEqual log:Log logistic:Sigmoid lt:Less min:Min mul:Mul "
    "neg:Neg not:Not or:Or pow:Pow sign:Sign sin:Sin sqrt:Sqrt tanh:Tanh"
)

# Called as NODES[name](graph, equation, *inputs), for an operation of the program; returns its
# output, or a list of them. Add an operation here.
NODES: dict[str, Translation] = {
    **{name: _elementwise(op) for name, op in (each.split(":") for each in _SAME_MATHS.split())},
    **dict.fromkeys(("copy", "copy_p", "name", "optimization_barrier", "stop_gradient"), _same),
    "broadcast_in_dim": _broadcast,
    "clamp": lambda g, e, low, x, high: g.elementwise("Min", g.elementwise("Max", x, low), high),
    "concatenate": _concatenate,
    "conv_general_dilated": _conv,
    "convert_element_type": _convert,
    "dot_general": _dot,
    "erfc": lambda g, e, x: g.elementwise("Sub", _ONE, g.elementwise("Erf", x)),
    "exp2": lambda g, e, x: g.elementwise("Pow", _TWO, x),
    "expm1": lambda g, e, x: g.elementwise("Sub", g.elementwise("Exp", x), _ONE),
    "gather": _gather,
    "integer_pow": lambda g, e, x: g.elementwise("Pow", x, constant(np.float32(e.params["y"]))),
    "log1p": lambda g, e, x: g.elementwise("Log", g.elementwise("Add", x, _ONE)),
    "max": _max,
    "ne": lambda g, e, x, y: g.elementwise("Not", g.elementwise("Equal", x, y)),
    "pad": _pad,
    "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"),
    "reduce_sum": _reduce("ReduceSum"),
    "reduce_window_max": _pool("MaxPool"),
    "reduce_window_sum": _pool("AveragePool"),
    "reshape": _reshape,
    "rev": _rev,
    "rsqrt": lambda g, e, x: g.elementwise("Reciprocal", g.elementwise("Sqrt", x)),
    "select_n": _select,
    "slice": _slice,
    "split": _split,
    "square": lambda g, e, x: g.elementwise("Mul", x, x),
    "squeeze": _squeeze,
    "stack": _stack,
    "sub": _sub,
    "transpose": _transpose,
    "unstack": _unstack,
}
