"""What each operation of a program does to the spans of the arrays that it takes.

A rule takes the operation and the spans of its inputs and returns those of its output, or a list.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxcnn.inspect import spans
from jaxcnn.inspect.spans import Spans

Rule = Callable[..., Spans | list[Spans]]

MAX_NUMBERS = 2**22  # of an array that is computed to follow what depends on what

# fmt: off
ELEMENTWISE = frozenset((
    "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh",
    "cbrt", "ceil", "clamp", "complex", "conj", "convert_element_type", "copy", "cos", "cosh",
    "digamma", "div", "eq", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt",
    "imag", "integer_pow", "is_finite", "le", "lgamma", "log", "log1p", "logistic", "lt", "max",
    "min", "mul", "name", "ne", "neg", "nextafter", "not", "or", "pow", "real", "reduce_precision",
    "rem", "round", "rsqrt", "select_n", "sharding_constraint", "shift_left",
    "shift_right_arithmetic", "shift_right_logical", "sign", "sin", "sinh", "sqrt", "square",
    "stop_gradient", "sub", "tan", "tanh", "xor",
))
# fmt: on


def find_rule(equation: Any, constants: Sequence[np.ndarray | None]) -> Rule | None:
    """Return the rule of an operation; None if what it does is not known.

    Args:
        equation: the operation.
        constants: its inputs where they are constants, None where they are not.
    """
    name = equation.primitive.name
    if name in ELEMENTWISE:
        return _elementwise
    if name not in ("gather", "dynamic_slice"):
        return _RULES.get(name)
    indices = [x for x in constants[1:] if x is not None]
    if len(indices) == len(constants) - 1:
        is_small = math.prod(equation.invars[0].aval.shape) <= MAX_NUMBERS
        return partial(_pick, indices) if is_small else None
    return _pick_any if name == "gather" and _takes_whole_slices(equation) else None


def _shape(equation: Any) -> tuple[int, ...]:
    return equation.outvars[0].aval.shape


def _elementwise(equation: Any, *several: Spans) -> Spans:
    rank = len(_shape(equation))
    return spans.join([x if x.bounds.ndim > 1 else spans.place(x, [], rank) for x in several])


def _pick(indices: Sequence[np.ndarray], equation: Any, x: Spans, *_: Spans) -> Spans:
    """Return the spans of numbers picked by indices that are known: pick their places."""
    shape, params = equation.invars[0].aval.shape, dict(equation.params)
    if "fill_value" in params:
        params["fill_value"] = -1
    numbers = jnp.arange(math.prod(shape), dtype=jnp.int32).reshape(shape)
    places = np.asarray(equation.primitive.bind(numbers, *map(jnp.asarray, indices), **params))
    where = zip(np.unravel_index(np.maximum(places, 0), shape), x.bounds.shape, strict=False)
    bounds = x.bounds[tuple(np.minimum(index, size - 1) for index, size in where)]
    return spans.compress(np.where((places < 0)[..., None], np.inf, bounds), {})


def _pick_any(equation: Any, x: Spans, index: Spans) -> Spans:
    """Return the spans of numbers picked by the images: of any along the axis picked from."""
    dims, rank = equation.params["dimension_numbers"], len(_shape(equation))
    if index.are_empty:
        return spans.unknown(rank)
    by_index = [axis for axis in range(rank) if axis not in dims.offset_dims]
    pairs = zip(dims.operand_batching_dims, dims.start_indices_batching_dims, strict=True)
    targets = {axis: by_index[k] for axis, k in pairs}
    targets |= zip(_offset_axes(equation), dims.offset_dims, strict=True)
    x = spans.merge(x, dims.collapsed_slice_dims)
    x = spans.place(x, [targets[axis] for axis in sorted(targets)], rank)
    return spans.join([x, spans.place(spans.merge(index, [len(by_index)]), by_index, rank)])


def _takes_whole_slices(equation: Any) -> bool:
    shape, sizes = equation.invars[0].aval.shape, equation.params["slice_sizes"]
    return all(sizes[axis] == shape[axis] for axis in _offset_axes(equation))


def _offset_axes(equation: Any) -> list[int]:
    """Return the axes that a gather neither picks from nor pairs with those of its indices."""
    dims, rank = equation.params["dimension_numbers"], len(equation.invars[0].aval.shape)
    others = {*dims.collapsed_slice_dims, *dims.operand_batching_dims}
    return [axis for axis in range(rank) if axis not in others]


def _merge(equation: Any, x: Spans, *_: Spans) -> Spans:
    params = equation.params
    return spans.merge(x, params["axes"] if "axes" in params else params["dimensions"])


def _transpose(equation: Any, x: Spans) -> Spans:
    order = equation.params["permutation"]
    return spans.place(x, np.argsort(order).tolist(), len(order))


def _broadcast(equation: Any, x: Spans, *_: Spans) -> Spans:
    before, after = equation.invars[0].aval.shape, _shape(equation)
    targets = equation.params["broadcast_dimensions"]
    patterns = {k: v for k, v in x.patterns.items() if before[k] == after[targets[k]]}
    return spans.place(x._replace(patterns=patterns), targets, len(after))


def _reshape(equation: Any, x: Spans, *_: Spans) -> Spans:
    shape, order = equation.invars[0].aval.shape, equation.params["dimensions"]
    if order is not None:  # of the axes, before they are reshaped
        x = spans.place(x, np.argsort(order).tolist(), len(order))
        shape = [shape[axis] for axis in order]
    return spans.reshape(x, list(shape), list(_shape(equation)))


def _slice(equation: Any, x: Spans) -> Spans:
    starts, strides = equation.params["start_indices"], equation.params["strides"]
    for axis, count in enumerate(_shape(equation)):
        stride = 1 if strides is None else strides[axis]
        x = spans.slide(x, axis, count, starts[axis], stride)
    return x


def _reverse(equation: Any, x: Spans) -> Spans:
    for axis in equation.params["dimensions"]:
        count = _shape(equation)[axis]
        x = spans.slide(x, axis, count, count - 1, -1)
    return x


def _pad(equation: Any, x: Spans, value: Spans) -> Spans:
    if not value.are_empty:
        return spans.unknown(len(_shape(equation)))
    for axis, (low, _, between) in enumerate(equation.params["padding_config"]):
        x = spans.slide(x, axis, _shape(equation)[axis], -low, holes=between + 1)
    return x


def _split(equation: Any, x: Spans) -> list[Spans]:
    axis, sizes = equation.params["axis"], equation.params["sizes"]
    starts = np.cumsum([0, *sizes])
    return [spans.slide(x, axis, *part) for part in zip(sizes, starts, strict=False)]


def _concatenate(equation: Any, *several: Spans) -> Spans:
    axis = equation.params["dimension"]
    return spans.concatenate(several, [x.aval.shape[axis] for x in equation.invars], axis)


def _stack(equation: Any, *several: Spans) -> Spans:
    axis, rank = equation.params["axis"], len(_shape(equation))
    targets = [k for k in range(rank) if k != axis]
    return spans.concatenate(
        [spans.place(x, targets, rank) for x in several], [1] * len(several), axis
    )


def _windows(equation: Any, x: Spans) -> Spans:
    params = equation.params
    keys = ("window_strides", "window_dimensions", "window_dilation", "base_dilation")
    moves = zip(params["padding"], *(params[key] for key in keys), strict=True)
    for axis, ((low, _), *move) in enumerate(moves):
        x = spans.slide(x, axis, _shape(equation)[axis], -low, *move)
    return x


def _convolution(equation: Any, x: Spans, kernel: Spans) -> Spans:
    params, shape = equation.params, _shape(equation)
    dims, sizes = params["dimension_numbers"], equation.invars[1].aval.shape
    if not kernel.are_empty or params["batch_group_count"] != 1:
        return spans.unknown(len(shape))
    keys = ("padding", "window_strides", "rhs_dilation", "lhs_dilation")
    for axis, out, of_kernel, (low, _), stride, dilation, holes in zip(
        dims.lhs_spec[2:],
        dims.out_spec[2:],
        dims.rhs_spec[2:],
        *(params[key] for key in keys),
        strict=True,
    ):
        window = sizes[of_kernel]
        x = spans.slide(x, axis, shape[out], -low, stride, window, dilation, holes)
    features = shape[dims.out_spec[1]]
    x = spans.mix(x, dims.lhs_spec[1], params["feature_group_count"], features)
    targets = [dims.out_spec[dims.lhs_spec.index(axis)] for axis in range(len(shape))]
    return spans.place(x, targets, len(shape))


def _product(equation: Any, *two: Spans) -> Spans:
    (summed, batched), rank = equation.params["dimension_numbers"], len(_shape(equation))
    parts, free = [], len(batched[0])
    for x, sums, batch in zip(two, summed, batched, strict=True):
        rest = [k for k in range(x.bounds.ndim - 1) if k not in sums]
        own = [k for k in rest if k not in batch]
        order = dict(zip((*batch, *own), (*range(len(batch)), *range(free, rank)), strict=False))
        free += len(own)
        parts.append(spans.place(spans.merge(x, sums), [order[k] for k in rest], rank))
    return spans.join(parts)


def _each(_: Any, *several: Spans) -> list[Spans]:
    return list(several)


_RULES: dict[str, Rule] = {
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "dot_general": _product,
    "optimization_barrier": _each,
    "pad": _pad,
    "reshape": _reshape,
    "rev": _reverse,
    "slice": _slice,
    "split": _split,
    "squeeze": _merge,
    "stack": _stack,
    "transpose": _transpose,
    **dict.fromkeys(("argmax", "argmin"), _merge),
    **{f"reduce_{kind}": _merge for kind in ("and", "max", "min", "or", "prod", "sum", "xor")},
    **{f"reduce_window_{kind}": _windows for kind in ("max", "min", "sum")},
}
