"""A model's program, as JAX traces it, as an ONNX model."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import onnx
from onnx import TensorProto, helper

from jaxcnn.errors import ConfigError
from jaxcnn.export.onnx_graph import (
    BATCH,
    IMAGES,
    LOGITS,
    Graph,
    UntranslatableError,
    Value,
    constant,
)
from jaxcnn.export.onnx_nodes import NODES, untranslatable

OPSET = 18
# Operations that run a program on their inputs.
_CALLS = ("closed_call", "custom_jvp_call", "custom_vjp_call", "jit")


def to_onnx(
    function: Callable[[Any, jax.Array], jax.Array],
    variables: Mapping[str, Any],
    images: jax.ShapeDtypeStruct,
    metadata: Mapping[str, str],
) -> bytes:
    """Write the program of a function as an ONNX model.

    It computes in float32, whatever the precision of the function: not all runtimes have others.

    Args:
        function: from (variables, images) to logits, float32 [N, K].
        variables: nested dicts of arrays, which become constants of the graph.
        images: uint8 [N, H, W, C], with a symbol for N.
        metadata: what the model's `metadata_props` will be.

    Returns:
        The content of the file.

    Raises:
        ConfigError: if the program has an operation that is not in the table of nodes.
    """
    program = jax.make_jaxpr(function)(variables, images)
    leaves, _ = jax.tree_util.tree_flatten_with_path(variables)
    inputs = [
        constant(leaf, jax.tree_util.keystr(p, simple=True, separator="/")) for p, leaf in leaves
    ]
    inputs.append(Value(images.shape, IMAGES, tuple(range(len(images.shape)))))
    graph = Graph()
    (logits,) = _run(graph, program, inputs, "")
    graph.scope = ""
    (output,) = program.out_avals
    result = graph.tensor(logits, shape=output.shape)
    graph.nodes.append(helper.make_node("Identity", [result], [LOGITS], LOGITS))
    in_shape, out_shape = ([BATCH, *shape[1:]] for shape in (images.shape, output.shape))
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "jaxcnn",
            [helper.make_tensor_value_info(IMAGES, TensorProto.UINT8, in_shape)],
            [helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, out_shape)],
            graph.initializers,
        ),
        producer_name="jaxcnn",
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=helper.find_min_ir_version_for([helper.make_opsetid("", OPSET)]),
    )
    helper.set_model_props(model, dict(metadata))
    content = model.SerializeToString()
    onnx.checker.check_model(content, full_check=True)
    return content


def _run(graph: Graph, program: Any, inputs: list[Value], scope: str) -> list[Value]:
    """Add the operations of a program to the graph; return its outputs."""
    jaxpr, constants = getattr(program, "jaxpr", program), getattr(program, "consts", ())
    known: dict[Any, Value] = dict(zip(jaxpr.invars, inputs, strict=True))
    known |= zip(jaxpr.constvars, map(constant, constants), strict=True)

    def read(variable: Any) -> Value:
        is_literal = hasattr(variable, "val")
        return (
            constant(np.asarray(variable.val, variable.aval.dtype))
            if is_literal
            else known[variable]
        )

    for equation in _needed(jaxpr):
        values = [read(variable) for variable in equation.invars]
        stack = f"{equation.source_info.name_stack}"
        graph.scope = "/".join(filter(None, (scope, stack)))
        known |= zip(equation.outvars, _translate(graph, equation, values), strict=True)
    return [read(variable) for variable in jaxpr.outvars]


def _needed(jaxpr: Any) -> list[Any]:
    """Return the operations that the outputs depend on."""
    wanted, needed = {id(variable) for variable in jaxpr.outvars}, []
    for equation in reversed(jaxpr.eqns):
        if wanted.intersection(map(id, equation.outvars)):
            wanted.update(map(id, equation.invars))
            needed.append(equation)
    return needed[::-1]


def _translate(graph: Graph, equation: Any, values: list[Value]) -> list[Value]:
    """Return the outputs of an operation, which are constants if its inputs are."""
    name, params = equation.primitive.name, equation.params
    if name in _CALLS or "prevent_cse" in params:  # the latter is jax.checkpoint
        program = params["jaxpr"] if "jaxpr" in params else params["call_jaxpr"]
        return _run(graph, program, values, graph.scope)
    if name != "broadcast_in_dim" and _is_constant(equation, values):
        return _compute(equation, values)
    try:
        outputs = NODES.get(name, untranslatable)(graph, equation, *values)
    except UntranslatableError as reason:
        where = f" in {graph.scope}" if graph.scope else ""
        raise ConfigError(
            f"jaxcnn has no ONNX for the operation {f'{name} {reason}'.strip()}{where}; "
            "export to .stablehlo, which takes every operation"
        ) from None
    return outputs if isinstance(outputs, list) else [outputs]


def _is_constant(equation: Any, values: list[Value]) -> bool:
    sizes = [n for variable in (*equation.invars, *equation.outvars) for n in variable.aval.shape]
    return all(x.array is not None for x in values) and all(isinstance(n, int) for n in sizes)


def _compute(equation: Any, values: list[Value]) -> list[Value]:
    """Run an operation on constants."""
    arrays = [
        np.broadcast_to(value.array, variable.aval.shape)  # type: ignore[arg-type]
        for value, variable in zip(values, equation.invars, strict=True)
    ]
    outputs = equation.primitive.bind(*arrays, **equation.params)
    is_cast = equation.primitive.name in ("convert_element_type", "reshape")
    name = values[0].name if is_cast else "constant"
    outputs = outputs if equation.primitive.multiple_results else [outputs]
    return [constant(_without_repetition(np.asarray(output)), name) for output in outputs]


def _without_repetition(array: np.ndarray) -> np.ndarray:
    """Return an array with size 1 for each axis along which all its elements are equal."""
    for axis in range(array.ndim):
        first = array.take([0], axis) if array.shape[axis] > 1 else array
        if array.shape[axis] > 1 and (array == first).all():
            array = first
    return array
