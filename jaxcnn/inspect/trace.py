"""What a traced program says of a model's layers: what their outputs depend on, and their costs.

Both are read off the operations of the program, not off the types of the layers, and so hold for
every graph. Two marks, put around the call of a layer while the model is traced, tell what belongs
to it: a scope, in which its operations lie, and a name for each array that it returns.
"""

import itertools
import math
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import ClosedJaxpr, Literal

from jaxcnn.inspect import spans
from jaxcnn.inspect.rules import ELEMENTWISE, MAX_NUMBERS, find_rule
from jaxcnn.inspect.spans import Spans
from jaxcnn.ops import xla

_MARK = "jaxcnn_layer_"
_NUMBERS = itertools.count()
_MAX_STEPS = 64  # of a loop that is followed step by step
_LARGE = 1e3  # such a number, added before a softmax, leaves nothing of what it is added to
_OF_JAXCNN: dict[str, Callable] = {
    "conv_forward": xla.forward,
    "conv_forward_sigmoid": xla.forward_sigmoid,
}

# What else may be computed of constants, and what else has no products, by its first letters.
# fmt: off
_COMPUTABLE = (
    "arg", "broadcast", "concatenate", "cum", "dynamic_", "gather", "iota", "pad", "reduce_",
    "reshape", "rev", "scatter", "slice", "sort", "split", "squeeze", "stack", "transpose",
)
# fmt: on
_CHEAP = ("bitcast_", "debug_", "optimization_", "platform_", "random_", "reduce", "rng_", "top_k")


class Value(NamedTuple):
    """What is known of an array of the program.

    Attributes:
        rows: of the image, that its numbers depend on.
        columns: of the image, likewise.
        constant: its numbers, if they depend on neither images nor variables.
        is_sparse: whether some of its numbers, not all, are zero by construction, as in a mask.
    """

    rows: Spans
    columns: Spans
    constant: np.ndarray | None = None
    is_sparse: bool = False

    @property
    def depends(self) -> bool:
        """Whether a number of it depends on the images."""
        return not (self.rows.are_empty and self.columns.are_empty)

    def at(self, i: int) -> "Value":
        """Return what is known of its part i, along the first axis."""
        rows, columns = (
            spans.merge(spans.slide(x, 0, 1, i), [0]) for x in (self.rows, self.columns)
        )
        constant = None if self.constant is None else self.constant[i]
        return Value(rows, columns, constant, self.is_sparse)


@dataclass(eq=False)
class Layer:
    """The call of a layer.

    Attributes:
        number: in the order of the calls.
        parent: the call that it is made within; None for the model's.
        extents: (rows, columns) that one output depends on, of each array that it returns, each
            time that it runs; None where that is not the same for all outputs, or not known.
        products: multiply-accumulates outside the calls within it; None if they are not known.
    """

    number: int
    parent: "Layer | None"
    extents: list[tuple[int, int] | None] = field(default_factory=list)
    products: int | None = 0

    def count(self, products: int | None, times: int | None) -> None:
        """Add multiply-accumulates that are made so many times."""
        if products == 0:
            return
        if self.products is None or products is None or times is None:
            self.products = None
        else:
            self.products += times * products

    def scope(self) -> AbstractContextManager:
        """Return the scope for its operations."""
        return jax.named_scope(self.mark)

    def name_arrays(self, outputs: Any) -> Any:
        """Return its outputs, any tree, with their arrays named as such."""

        def name(x: Any) -> Any:
            is_key = jnp.issubdtype(getattr(x, "dtype", int), jax.dtypes.extended)
            return checkpoint_name(x, self.mark) if isinstance(x, jax.Array) and not is_key else x

        return jax.tree.map(name, outputs)

    @property
    def mark(self) -> str:
        """The name of its scope and of its outputs."""
        return f"{_MARK}{self.number}"


def without_cache() -> AbstractContextManager:
    """Return a context in which functions under `jit` are traced anew, for it alone.

    Else they would keep the marks of another time, and programs compiled afterwards have them too.
    """
    return set_xla_metadata(**{_MARK: str(next(_NUMBERS))})


def read(program: ClosedJaxpr, layers: Sequence[Layer]) -> None:
    """Complete what is known of the layers of a model.

    Args:
        program: of the model. Its first argument are the images [N, H, W, C], the others variables
            and keys of random numbers.
        layers: by number; the first is the model itself.
    """
    (_, height, width, _), *variables = (x.aval.shape for x in program.jaxpr.invars)
    images = Value(spans.of_images(height, 1), spans.of_images(width, 2))
    inputs = [images, *map(_variable, variables)]
    # Constants may be infinite.
    with jax.ensure_compile_time_eval(), jax.debug_nans(False), jax.debug_infs(False):
        _Reader(layers).run(program, inputs, layers[0], 1)


class _Reader:
    """Goes through a program in the order of its operations."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._layers = layers
        self._callers: dict[int, Any] = {}  # first operation that calls each program
        self._is_unmarked = False

    def run(
        self, program: Any, inputs: Sequence[Value], layer: Layer, times: int | None
    ) -> list[Value]:
        """Return the outputs of a program, within a layer, that runs so many times (if known)."""
        jaxpr, constants = getattr(program, "jaxpr", program), getattr(program, "consts", ())
        known: dict[Any, Value] = dict(zip(jaxpr.invars, inputs, strict=True))
        known |= zip(jaxpr.constvars, map(_constant, constants), strict=True)

        def values(variables: Sequence[Any]) -> list[Value]:
            return [_constant(x.val) if isinstance(x, Literal) else known[x] for x in variables]

        for equation in jaxpr.eqns:
            inner = self._innermost(equation, layer)
            outputs = self._step(equation, values(equation.invars), inner, times)
            known |= zip(equation.outvars, outputs, strict=True)
        return values(jaxpr.outvars)

    def _innermost(self, equation: Any, layer: Layer) -> Layer:
        """Return the layer, within another, that an operation lies in."""
        stack = "" if self._is_unmarked else str(equation.source_info.name_stack)
        for number in re.findall(rf"{_MARK}(\d+)", stack):
            if self._layers[int(number)].parent is layer:
                layer = self._layers[int(number)]
        return layer

    def _step(
        self, equation: Any, inputs: list[Value], layer: Layer, times: int | None
    ) -> list[Value]:
        name, params = equation.primitive.name, equation.params
        if name in _OF_JAXCNN:
            function = partial(_OF_JAXCNN[name], geometry=params["geometry"])
            program = jax.make_jaxpr(function)(*(x.aval for x in equation.invars))
            return self.run(program, inputs, layer, times)
        if name == "scan":
            return self._scan(equation, inputs, layer, times)
        if name == "while":
            return self._run_blindly(equation, [params["body_jaxpr"]], inputs, layer, None)
        if name == "cond":
            return self._cond(equation, inputs, layer, times)
        if (program := _called(equation)) is not None:
            return self._call(program, equation, inputs, layer, times)
        layer.count(_products(equation, inputs), times)
        outputs = _outputs(equation, inputs)
        if name == "name" and params["name"] == layer.mark:
            layer.extents.append(spans.extent(outputs[0].rows, outputs[0].columns))
        return outputs

    def _call(
        self, program: Any, equation: Any, inputs: list[Value], layer: Layer, times: int | None
    ) -> list[Value]:
        """Run a program that an operation calls.

        A function that `jit` traced once for several layers has the marks of the first. Where it is
        called again, its operations are those of the layer around.
        """
        before = self._is_unmarked
        caller = self._callers.setdefault(id(getattr(program, "jaxpr", program)), equation)
        self._is_unmarked = before or caller is not equation
        outputs = self.run(program, inputs, layer, times)
        self._is_unmarked = before
        return outputs

    def _scan(
        self, equation: Any, inputs: list[Value], layer: Layer, times: int | None
    ) -> list[Value]:
        params, program = equation.params, equation.params["jaxpr"]
        length, inner = params["length"], getattr(program, "jaxpr", program)
        # It runs over the first axis of what has one less within.
        sliced = sum(map(_has_more_axes, equation.invars, inner.invars))
        carried = len(inner.outvars) - sum(map(_has_more_axes, equation.outvars, inner.outvars))
        fixed = len(inputs) - carried - sliced
        if length > _MAX_STEPS:
            total = None if times is None else times * length
            return self._run_blindly(equation, [program], inputs, layer, total)
        constants, state = inputs[:fixed], inputs[fixed : fixed + carried]
        outputs: dict[int, list[Value]] = {}
        for i in reversed(range(length)) if params["reverse"] else range(length):
            parts = [x.at(i) for x in inputs[fixed + carried :]]
            results = self.run(program, [*constants, *state, *parts], layer, times)
            state, outputs[i] = results[:carried], results[carried:]
        steps = [outputs[i] for i in range(length)]
        return state + [_stacked(parts) for parts in zip(*steps, strict=True)]

    def _cond(
        self, equation: Any, inputs: list[Value], layer: Layer, times: int | None
    ) -> list[Value]:
        branches, which = equation.params["branches"], inputs[0].constant
        if equation.params.get("branches_platforms"):  # which compute the same
            which = np.array(len(branches) - 1)
        if which is None:
            return self._run_blindly(equation, branches, inputs, layer, None)
        branch = branches[int(np.clip(which, 0, len(branches) - 1))]
        return self.run(branch, inputs[1:], layer, times)

    def _run_blindly(
        self,
        equation: Any,
        programs: Sequence[Any],
        inputs: Sequence[Value],
        layer: Layer,
        times: int | None,
    ) -> list[Value]:
        """Go through what runs often, or perhaps, without following what it depends on."""
        value = _unknown if any(x.depends for x in inputs) else _variable
        for program in programs:
            variables = getattr(program, "jaxpr", program).invars
            self.run(program, [value(x.aval.shape) for x in variables], layer, times)
        return [value(x.aval.shape) for x in equation.outvars]


def _has_more_axes(one: Any, other: Any) -> bool:
    return len(one.aval.shape) > len(other.aval.shape)


def _variable(shape: Sequence[int]) -> Value:
    return Value(spans.nothing(len(shape)), spans.nothing(len(shape)))


def _unknown(shape: Sequence[int]) -> Value:
    return Value(spans.unknown(len(shape)), spans.unknown(len(shape)))


def _constant(x: Any) -> Value:
    if jnp.issubdtype(getattr(x, "dtype", float), jax.dtypes.extended):
        return _variable(x.shape)
    numbers = np.asarray(x)
    is_sparse = 0 < np.count_nonzero(numbers) < numbers.size
    return _variable(numbers.shape)._replace(constant=numbers, is_sparse=bool(is_sparse))


def _stacked(steps: Sequence[Value]) -> Value:
    rank = steps[0].rows.bounds.ndim

    def stack(several: Sequence[Spans]) -> Spans:
        parts = [spans.place(x, range(1, rank), rank) for x in several]
        return spans.concatenate(parts, [1] * len(parts), 0)

    rows, columns = stack([x.rows for x in steps]), stack([x.columns for x in steps])
    return Value(rows, columns, is_sparse=any(x.is_sparse for x in steps))


def _called(equation: Any) -> Any:
    """Return the program that an operation such as `jit` applies to its inputs; else None."""

    def kinds(variables: Sequence[Any]) -> list[tuple[type, tuple[int, ...]]]:
        return [(type(x.aval), getattr(x.aval, "shape", ())) for x in variables]

    outside = kinds([*equation.invars, *equation.outvars])
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        program = equation.params.get(key)
        inner = getattr(program, "jaxpr", program)
        if inner is not None and kinds([*inner.invars, *inner.outvars]) == outside:
            return program
    return None


def _products(equation: Any, inputs: Sequence[Value]) -> int | None:
    """Return the multiply-accumulates of an operation; None if they are not known."""
    name, params = equation.primitive.name, equation.params
    moves = any(x.is_sparse and x.constant is not None for x in inputs)  # pixels, as in resizing
    if name == "dot_general":
        (axes, _), _ = params["dimension_numbers"]
        summed = [equation.invars[0].aval.shape[axis] for axis in axes]
        is_work = axes and not moves
        return math.prod((*equation.outvars[0].aval.shape, *summed)) if is_work else 0
    if name == "conv_general_dilated":
        images, kernel, y = (x.aval.shape for x in (*equation.invars, *equation.outvars))
        dims = params["dimension_numbers"]
        places = zip(dims.lhs_spec[2:], dims.out_spec[2:], params["lhs_dilation"], strict=True)
        # A transposed convolution multiplies each pixel of the image by the kernel.
        pixels = (images[a] if holes > 1 else y[b] for a, b, holes in places)
        return None if moves else math.prod((y[dims.out_spec[0]], *pixels, *kernel))
    is_cheap = name in ELEMENTWISE or name.startswith(_COMPUTABLE + _CHEAP)
    return 0 if is_cheap else None


def _outputs(equation: Any, inputs: list[Value]) -> list[Value]:
    name, shapes = equation.primitive.name, [x.aval.shape for x in equation.outvars]
    if not any(x.depends for x in inputs):
        return _independent(equation, inputs)
    if name == "select_n" and (which := _only(inputs[0].constant)) is not None:
        return [inputs[1 + int(which)]]
    rule = find_rule(equation, [x.constant for x in inputs])
    if rule is None or _is_masked(name, inputs) or any(0 in shape for shape in shapes):
        return [_unknown(shape) for shape in shapes]
    rows = rule(equation, *(x.rows for x in inputs))
    columns = rule(equation, *(x.columns for x in inputs))
    return list(map(Value, _as_list(rows), _as_list(columns)))


def _as_list(x: Spans | list[Spans]) -> list[Spans]:
    return x if isinstance(x, list) else [x]


def _independent(equation: Any, inputs: Sequence[Value]) -> list[Value]:
    """Return the outputs of an operation that the images do not reach."""
    primitive, shapes = equation.primitive, [x.aval.shape for x in equation.outvars]
    constants = [x.constant for x in inputs if x.constant is not None]
    is_computable = primitive.name in ELEMENTWISE or primitive.name.startswith(_COMPUTABLE)
    is_small = sum(map(math.prod, shapes)) <= MAX_NUMBERS
    if is_computable and is_small and len(constants) == len(inputs):
        dtypes = (x.aval.dtype for x in equation.invars)
        outputs = primitive.bind(*map(jnp.asarray, constants, dtypes), **equation.params)
        return [_constant(x) for x in (outputs if primitive.multiple_results else [outputs])]
    is_sparse = _is_sparse(primitive.name, inputs)
    return [_variable(shape)._replace(is_sparse=is_sparse) for shape in shapes]


def _is_sparse(name: str, inputs: Sequence[Value]) -> bool:
    """Return whether zeros, as of a mask, stay zeros in what is computed of variables."""
    if name in ELEMENTWISE - {"and", "div", "mul", "select_n"}:
        return all(x.is_sparse for x in inputs)
    if name.startswith(("concatenate", "dynamic_update", "pad", "scatter", "stack")):
        return any(x.is_sparse or _only(x.constant) == 0 for x in inputs)
    return any(x.is_sparse for x in inputs)


def _is_masked(name: str, inputs: Sequence[Value]) -> bool:
    """Return whether what the images do not reach may let less of them through, as a mask does."""
    fixed = [x for x in inputs if not x.depends]
    if name in ("and", "conv_general_dilated", "dot_general", "mul", "select_n"):
        return any(x.is_sparse for x in fixed)
    constants = [x.constant for x in fixed if x.constant is not None and _only(x.constant) is None]
    return name in ("add", "max", "min", "sub") and any(np.abs(x).max() > _LARGE for x in constants)


def _only(numbers: np.ndarray | None) -> Any:
    """Return the number that all of some are equal to, if there is one."""
    if numbers is None or numbers.size == 0 or (numbers != numbers.flat[0]).any():
        return None
    return numbers.flat[0]
