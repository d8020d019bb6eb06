"""What a traced program says of a model's layers: their costs and receptive fields.

Both are read off the operations of the program, not off the types of the layers, and so hold for
every graph. What is not understood is left empty.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

from jaxcnn.inspect import fields
from jaxcnn.inspect.calls import MARK, Call
from jaxcnn.inspect.fields import Field, Span
from jaxcnn.ops import xla

_MAX_STEPS = 64  # of a loop that is followed step by step
_LARGE = 1e3  # such a number, added before a softmax, leaves nothing of what it is added to
_OF_JAXCNN: dict[str, Callable] = {
    "conv_forward": xla.forward,
    "conv_forward_bias": xla.forward_bias,
    "conv_forward_sigmoid": xla.forward_sigmoid,
}
_RESIZE = "_resize"  # name of `jax.image.resize`, whose products only move pixels

# Operations that make masks; that make zeros of zeros; by their first letters: that put zeros
# beside other numbers; and, of those that `fields` does not know, that have no products.
_MASKING = ("eq", "floor", "ge", "gt", "iota", "le", "lt", "ne", "round")
_PRODUCTS = ("and", "conv_general_dilated", "div", "dot_general", "mul", "pow", "rem")
_MIXING = ("concatenate", "dynamic_update", "pad", "scatter", "select_n", "stack")
_CHEAP: tuple[str, ...] = (
    "bitcast_",
    "cum",
    "debug_",
    "dynamic_",
    "gather",
    "iota",
    "platform_",
    "random_",
)
_CHEAP += ("reduce", "rng_", "scatter", "sort", "top_k")


class Fixed(IntEnum):
    """An array that does not depend on the images, by what it may hide of what it meets."""

    CLEAN = 0
    ZERO = 1  # all its numbers may be 0, which hides what is multiplied by them
    MASK = 2  # some may be 0, or so large that they hide what they are added to


class At(NamedTuple):
    """Where a program runs: within the call of a layer, so many times (if known).

    A program that `jit` traced once for several layers has the marks of the first; where it runs
    again, they do not count.
    """

    call: Call
    times: int | None = 1
    is_marked: bool = True


Value = Field | Fixed | None  # None: it is not known what the array depends on


def read(program: ClosedJaxpr, calls: Sequence[Call], others: Iterable[Fixed]) -> None:
    """Complete what is known of the calls of a model's layers.

    Args:
        program: of the model. Its first argument are the images [N, H, W, C].
        calls: the first is that of the model itself.
        others: what is known of the other arguments.
    """
    _, height, width, _ = program.jaxpr.invars[0].aval.shape
    images = Field(Span(0, 0, 1, 1), Span(0, 0, 2, 1))
    _Reader(calls, (height, width)).run(program, [images, *others], At(calls[0]))


class _Reader:
    """Goes through a program in the order of its operations."""

    def __init__(self, calls: Sequence[Call], image: tuple[int, int]) -> None:
        self._calls = {call.mark: call for call in calls}
        self._image = image
        self._callers: dict[int, Any] = {}  # first operation that calls each program

    def run(self, program: Any, inputs: Sequence[Value], at: At) -> list[Value]:
        """Return the outputs of a program."""
        jaxpr, constants = getattr(program, "jaxpr", program), getattr(program, "consts", ())
        known: dict[Any, Value] = dict(zip(jaxpr.invars, inputs, strict=True))
        known |= zip(jaxpr.constvars, map(_constant, constants), strict=True)

        def values(variables: Sequence[Any]) -> list[Value]:
            return [_constant(x.val) if isinstance(x, Literal) else known[x] for x in variables]

        for equation in jaxpr.eqns:
            mark = (equation.ctx.xla_metadata or {}).get(MARK) if at.is_marked else None
            inner = at._replace(call=self._calls.get(str(mark), at.call))
            outputs = self._step(equation, values(equation.invars), inner)
            known |= zip(equation.outvars, outputs, strict=True)
        return values(jaxpr.outvars)

    def _step(self, equation: Any, inputs: list[Value], at: At) -> list[Value]:
        name, params = equation.primitive.name, equation.params
        if name in _OF_JAXCNN:
            function = partial(_OF_JAXCNN[name], geometry=params["geometry"])
            program = jax.make_jaxpr(function)(*(x.aval for x in equation.invars))
            return self.run(program, inputs, at)
        if name == "cond" and params.get("branches_platforms"):  # all compute the same
            return self.run(params["branches"][-1], inputs[1:], at)
        if name == "scan":
            return self._scan(equation, inputs, at)
        if name in ("cond", "while"):
            programs = params["branches"] if name == "cond" else [params["body_jaxpr"]]
            return self._run_blindly(equation, programs, inputs, at._replace(times=None))
        if (program := _called(equation)) is not None:
            identity = id(getattr(program, "jaxpr", program))
            is_first = self._callers.setdefault(identity, equation) is equation
            times = 0 if params.get("name") == _RESIZE and len(inputs) == 1 else at.times
            return self.run(program, inputs, At(at.call, times, at.is_marked and is_first))
        at.call.count(_products(equation), at.times)
        outputs = _outputs(equation, inputs)
        if name == "name" and params["name"] == at.call.mark:
            (x,), shape = outputs, equation.outvars[0].aval.shape
            at.call.fields.append(x.size(shape, self._image) if isinstance(x, Field) else None)
        return outputs

    def _scan(self, equation: Any, inputs: list[Value], at: At) -> list[Value]:
        """Follow the state of a loop, not what it takes and returns step by step."""
        program, length = equation.params["jaxpr"], equation.params["length"]
        inner = getattr(program, "jaxpr", program)
        if length > _MAX_STEPS:
            times = None if at.times is None else at.times * length
            return self._run_blindly(equation, [program], inputs, at._replace(times=times))
        # What has one axis less within is taken or returned step by step.
        start = len(inputs) - sum(map(_has_more_axes, equation.invars, inner.invars))
        carried = len(inner.outvars) - sum(map(_has_more_axes, equation.outvars, inner.outvars))
        fixed, state = inputs[: start - carried], inputs[start - carried : start]
        parts = [x if isinstance(x, Fixed) else None for x in inputs[start:]]
        for _ in range(length):
            state = self.run(program, [*fixed, *state, *parts], at)[:carried]
        return [*state, *_doubt(inputs, equation.outvars[carried:])]

    def _run_blindly(
        self, equation: Any, programs: Sequence[Any], inputs: list[Value], at: At
    ) -> list[Value]:
        """Go through what runs often, or perhaps, without following what it depends on."""
        for program in programs:
            self.run(program, _doubt(inputs, getattr(program, "jaxpr", program).invars), at)
        return _doubt(inputs, equation.outvars)


def _doubt(inputs: Sequence[Value], variables: Sequence[Any]) -> list[Value]:
    are_fixed = all(isinstance(x, Fixed) for x in inputs)
    return [Fixed.MASK if are_fixed else None for _ in variables]


def _has_more_axes(one: Any, other: Any) -> bool:
    return len(one.aval.shape) > len(other.aval.shape)


def _called(equation: Any) -> Any:
    """Return the program that an operation such as `jit` applies to its inputs; else None."""
    outside = [getattr(x.aval, "shape", ()) for x in (*equation.invars, *equation.outvars)]
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        program = equation.params.get(key)
        inner = getattr(program, "jaxpr", program)
        if inner is not None and len(inner.outvars) == len(equation.outvars):
            variables = (*inner.invars, *inner.outvars)
            if [getattr(x.aval, "shape", ()) for x in variables] == outside:
                return program
    return None


def _products(equation: Any) -> int | None:
    """Return the multiply-accumulates of an operation; None if they are not known."""
    name, params = equation.primitive.name, equation.params
    shapes = [x.aval.shape for x in (*equation.invars, *equation.outvars)]
    if name == "dot_general":
        (axes, _), _ = params["dimension_numbers"]
        return math.prod((*shapes[2], *(shapes[0][axis] for axis in axes))) if axes else 0
    if name == "conv_general_dilated":
        (images, kernel, y), dims = shapes, params["dimension_numbers"]
        places = zip(dims.lhs_spec[2:], dims.out_spec[2:], params["lhs_dilation"], strict=True)
        # A transposed convolution multiplies each pixel of the image by the kernel.
        pixels = (images[a] if holes > 1 else y[b] for a, b, holes in places)
        return math.prod((y[dims.out_spec[0]], *pixels, *kernel))
    return 0 if name in fields.RULES or name.startswith(_CHEAP) else None


def _outputs(equation: Any, inputs: list[Value]) -> list[Value]:
    name = equation.primitive.name
    try:
        if all(isinstance(x, Fixed) for x in inputs):
            return [_combine(name, inputs)] * len(equation.outvars)
        if None not in inputs and not _is_masked(name, inputs):
            return fields.apply(equation, inputs)
    except fields.UnknownError:
        pass
    return [None] * len(equation.outvars)


def _is_masked(name: str, inputs: Sequence[Value]) -> bool:
    """Return whether what is fixed may let less of the images through, as a mask does."""
    kept = [x for x in inputs if isinstance(x, Fixed)]
    if name == "select_n":
        return isinstance(inputs[0], Fixed)
    if name in _PRODUCTS:
        return any(kept)
    return name in ("add", "clamp", "max", "min", "sub") and Fixed.MASK in kept


def _combine(name: str, inputs: Sequence[Any]) -> Fixed:
    """Return what is known of the output of an operation that the images do not reach."""
    least, most = min(inputs, default=Fixed.CLEAN), max(inputs, default=Fixed.CLEAN)
    if name in ("gather", "dynamic_slice"):
        return inputs[0]
    if name in _MASKING or (name.startswith(_MIXING) and most):
        return Fixed.MASK
    return most if most is Fixed.MASK or name in _PRODUCTS else least


def _constant(x: Any) -> Fixed:
    if jnp.issubdtype(getattr(x, "dtype", float), jax.dtypes.extended):  # keys of random numbers
        return Fixed.CLEAN
    numbers = np.asarray(x)
    if not numbers.any():
        return Fixed.ZERO
    is_large = numbers.ndim > 0 and np.abs(numbers).max() > _LARGE
    return Fixed.MASK if is_large or not numbers.all() else Fixed.CLEAN
