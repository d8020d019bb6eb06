"""Receptive fields: which pixels the numbers of an array depend on.

Each operation has a rule, which moves and joins the fields of its inputs. Where the result is not
of the simple form that `Field` describes, the rule raises `UnknownError`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

Shape = Sequence[int]
Shapes = Sequence[Shape]
Move = tuple[int, int, int]  # of windows along an axis: start of the first, stride, reach


class UnknownError(Exception):
    """The field is not known."""


class Span(NamedTuple):
    """The rows of the images that the numbers of an array depend on; or the columns.

    At index i along `axis` they are first + jump * i to last + jump * i. Without an axis they are
    the same for all numbers. The padding of a layer counts as rows.
    """

    first: int
    last: int
    axis: int | None = None
    jump: int = 0

    def slide(self, start: int, stride: int, reach: int) -> "Span":
        """Return the span of windows along the axis."""
        ends = self.jump * start, self.jump * (start + reach - 1)
        first, last = self.first + min(ends), self.last + max(ends)
        return Span(first, last, self.axis, self.jump * stride)

    def whole(self, shape: Shape) -> "Span":
        """Return the span of all numbers of an array of this shape together."""
        end = 0 if self.axis is None else self.jump * (shape[self.axis] - 1)
        return Span(self.first + min(0, end), self.last + max(0, end))


class Field(NamedTuple):
    """The pixels that each number of an array depends on: a rectangle.

    Attributes:
        rows, columns: of the images.
        mixed: axes of the array along which the numbers may depend on different parts of the
            rectangle, as channels do after a concatenation. Together they depend on all of it.
    """

    rows: Span
    columns: Span
    mixed: frozenset[int] = frozenset()

    @property
    def axes(self) -> set[int | None]:
        """The axes along which rows and columns lie."""
        return {self.rows.axis, self.columns.axis}

    def size(self, shape: Shape, image: tuple[int, int]) -> tuple[int, int] | None:
        """Return (height, width) at each position of a layer's output, all channels together.

        [N, features] is one position. None if the positions differ, or the middle one lies in the
        padding of the image.
        """
        last = len(shape) - 1
        x = self if last > 1 else _place(self, shape, {0: 0} if last else {})
        # Without rows or columns, what differs along the last axis may be positions or channels.
        is_clear = x.axes == {None} if last < 2 else not x.mixed or None not in x.axes
        for span, length in zip((x.rows, x.columns), image, strict=True):
            middle = 0 if span.axis is None else span.jump * (shape[span.axis] // 2)
            is_clear &= span.first + middle < length and span.last + middle >= 0
        height, width = (int(span.last - span.first) + 1 for span in (x.rows, x.columns))
        return (height, width) if is_clear and x.mixed <= {last} else None


def apply(equation: Any, inputs: Sequence[Any]) -> list[Any]:
    """Return the fields of an operation's outputs; raise `UnknownError` if one is not known.

    What is no field among the inputs stands for an array that does not depend on the images.
    """
    before, after = ([x.aval.shape for x in some] for some in (equation.invars, equation.outvars))
    rule = RULES.get(equation.primitive.name)
    is_one = equation.params.get("y") == 0  # x to the power of 0
    if rule is None or is_one or any(0 in shape for shape in after):
        raise UnknownError
    outputs = rule(equation.params, before, after, *inputs)
    return outputs if isinstance(outputs, list) else [outputs]


def _place(x: Field, shape: Shape, targets: dict[int, int]) -> Field:
    """Move axis k to targets[k]; sum over an axis without a target."""
    rows, columns = (
        span._replace(axis=targets[span.axis]) if span.axis in targets else span.whole(shape)
        for span in (x.rows, x.columns)
    )
    return Field(rows, columns, frozenset(targets[k] for k in x.mixed if k in targets))


def _move_axes(x: Field, order: Sequence[int]) -> Field:
    return _place(x, (), {axis: k for k, axis in enumerate(order)})


def _slide(x: Field, before: Shape, after: Shape, moves: dict[int, Move]) -> Field:
    """Let windows slide along axes; a slice, padding and a reversal are such, too."""
    for axis, move in moves.items():
        is_same = (before[axis], 0, 1, 1) == (after[axis], *move)
        if axis in x.mixed and not is_same:
            raise UnknownError
        rows, columns = (s.slide(*move) if s.axis == axis else s for s in (x.rows, x.columns))
        x = Field(rows, columns, x.mixed)
    return x


def _join(several: Sequence[Any], shape: Shape) -> Field:
    """Compute something, number by number, of arrays of a shape."""
    fields = [x for x in several if isinstance(x, Field)]
    rows = _union([x.rows for x in fields], shape)
    columns = _union([x.columns for x in fields], shape)
    return Field(rows, columns, frozenset().union(*(x.mixed for x in fields)))


def _union(spans: Sequence[Span], shape: Shape) -> Span:
    if len({(span.axis, span.jump) for span in spans}) > 1:  # known if one holds all others
        shared = [span for span in spans if span.axis is None]
        if not shared or _hull(shared) != _hull([span.whole(shape) for span in spans]):
            raise UnknownError
        spans = shared
    return _hull(spans)


def _hull(spans: Sequence[Span]) -> Span:
    first, last = min(span.first for span in spans), max(span.last for span in spans)
    return spans[0]._replace(first=first, last=last)


def _concatenate(axis: int, shape: Shape, *parts: Any) -> Field:
    if any(isinstance(x, Field) and axis in x.axes for x in parts):
        raise UnknownError
    joined = _join(parts, shape)
    are_same = all(x == joined for x in parts)
    return joined if are_same else joined._replace(mixed=joined.mixed | {axis})


def _stack(axis: int, shape: Shape, *parts: Any) -> Field:
    targets = {k: k + (k >= axis) for k in range(len(shape))}
    fields = (_place(x, (), targets) if isinstance(x, Field) else x for x in parts)
    return _concatenate(axis, shape, *fields)


def _reduce(params: Any, before: Shapes, _: Shapes, x: Field) -> Field:
    removed = params["axes"] if "axes" in params else params["dimensions"]
    rest = [axis for axis in range(len(before[0])) if axis not in removed]
    return _place(x, before[0], {axis: k for k, axis in enumerate(rest)})


def _broadcast(params: Any, before: Shapes, after: Shapes, x: Field) -> Field:
    targets = enumerate(params["broadcast_dimensions"])
    return _place(x, before[0], {k: a for k, a in targets if before[0][k] == after[0][a]})


def _reshape(params: Any, before: Shapes, after: Shapes, x: Field) -> Field:
    """Keep the first axes and the last; merge or split those between."""
    (old,), (new,) = before, after
    if (order := params["dimensions"]) is not None:  # the axes are moved before
        x, old = _move_axes(x, order), [old[axis] for axis in order]
    least = min(len(old), len(new))
    head = next((k for k in range(least) if old[k] != new[k]), least)
    tail = next((k for k in range(least - head) if old[-k - 1] != new[-k - 1]), least - head)
    targets = {k: k for k in range(head)}
    targets |= {len(old) - k: len(new) - k for k in range(1, tail + 1)}
    moved = _place(x, old, targets)
    between = range(head, len(new) - tail) if (x.axes | x.mixed) - {None, *targets} else ()
    return moved._replace(mixed=moved.mixed.union(between))


def _slice(params: Any, before: Shapes, after: Shapes, x: Field) -> Field:
    starts, ones = params["start_indices"], [1] * len(before[0])
    moves = zip(starts, params["strides"] or ones, ones, strict=True)
    return _slide(x, before[0], after[0], dict(enumerate(moves)))


def _split(params: Any, before: Shapes, after: Shapes, x: Field) -> list[Field]:
    starts = [sum(params["sizes"][:k]) for k in range(len(after))]
    moves = [{params["axis"]: (start, 1, 1)} for start in starts]
    return [_slide(x, before[0], shape, move) for shape, move in zip(after, moves, strict=True)]


def _reverse(params: Any, before: Shapes, after: Shapes, x: Field) -> Field:
    moves = {axis: (before[0][axis] - 1, -1, 1) for axis in params["dimensions"]}
    return _slide(x, before[0], after[0], moves)


def _pad(params: Any, before: Shapes, after: Shapes, x: Any, value: Any) -> Field:
    padding = params["padding_config"]
    if isinstance(value, Field) or any(between for *_, between in padding):
        raise UnknownError
    constant = {axis for axis, (low, high, _) in enumerate(padding) if max(low, high) > 0}
    moves = {axis: (-low, 1, 1) for axis, (low, *_) in enumerate(padding)}
    x = _slide(x, before[0], after[0], moves)
    return x._replace(mixed=x.mixed | constant - x.axes)


def _move(padding: tuple[int, int], stride: int, dilation: int, window: int) -> Move:
    return -padding[0], stride, dilation * (window - 1) + 1


def _windows(params: Any, before: Shapes, after: Shapes, x: Field) -> Field:
    if set(params["base_dilation"]) != {1}:
        raise UnknownError
    keys = ("padding", "window_strides", "window_dilation", "window_dimensions")
    moves = map(_move, *(params[key] for key in keys))
    return _slide(x, before[0], after[0], dict(enumerate(moves)))


def _convolution(params: Any, before: Shapes, after: Shapes, x: Any, kernel: Any) -> Field:
    images, weights, result = params["dimension_numbers"]
    if isinstance(kernel, Field) or {params["batch_group_count"], *params["lhs_dilation"]} != {1}:
        raise UnknownError
    if params["feature_group_count"] > 1 and images[1] in x.axes | x.mixed:
        raise UnknownError
    targets = dict(zip(images, result, strict=True))
    sizes = [after[0][targets[axis]] for axis in range(len(targets))]
    keys = ("padding", "window_strides", "rhs_dilation")
    moves = map(_move, *(params[key] for key in keys), [before[1][axis] for axis in weights[2:]])
    x = _slide(x, before[0], sizes, dict(zip(images[2:], moves, strict=True)))
    del targets[images[1]]
    return _place(x, before[0], targets)


def _product(params: Any, before: Shapes, after: Shapes, *two: Any) -> Field:
    summed, batched = params["dimension_numbers"]
    placed, free = [], len(batched[0])
    for x, shape, sums, batch in zip(two, before, summed, batched, strict=True):
        own = [axis for axis in range(len(shape)) if axis not in (*sums, *batch)]
        places = [*range(len(batch)), *range(free, free + len(own))]
        targets = dict(zip((*batch, *own), places, strict=True))
        free += len(own)
        placed.append(_place(x, shape, targets) if isinstance(x, Field) else x)
    return _join(placed, after[0])


_ELEMENTWISE = """
abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp convert_element_type copy
cos cosh div eq erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite le log log1p
logistic lt max min mul name ne neg not or pow reduce_precision rem round rsqrt select_n shift_left
shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh xor
"""
RULES: dict[str, Callable[..., Field | list]] = {
    **dict.fromkeys(_ELEMENTWISE.split(), lambda _, before, after, *x: _join(x, after[0])),
    **{f"reduce_{kind}": _reduce for kind in ("and", "max", "min", "or", "prod", "sum", "xor")},
    **dict.fromkeys(("argmax", "argmin", "squeeze"), _reduce),
    **{f"reduce_window_{kind}": _windows for kind in ("max", "min", "sum")},
    "broadcast_in_dim": _broadcast,
    "concatenate": lambda params, _, after, *x: _concatenate(params["dimension"], after[0], *x),
    "conv_general_dilated": _convolution,
    "dot_general": _product,
    "optimization_barrier": lambda _, before, after, *inputs: list(inputs),
    "pad": _pad,
    "reshape": _reshape,
    "rev": _reverse,
    "slice": _slice,
    "split": _split,
    "stack": lambda params, _, after, *x: _stack(params["axis"], after[0], *x),
    "transpose": lambda params, before, after, x: _move_axes(x, params["permutation"]),
}
