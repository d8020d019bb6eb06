"""What a program on CPU keeps in memory and what it computes again, where XLA chooses badly.

On GPU and TPU `materialize` and the chunks do nothing, and `relu` equals `jax.nn.relu`.
"""

import math
import operator
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn.ops.cpu import limits, primitives, probe, programs
from jaxcnn.ops.cpu.half import in_float32
from jaxcnn.ops.cpu.programs import cpu_or_default
from jaxcnn.ops.sharding import is_on_explicit_mesh


@jax.custom_jvp
def materialize(x: jax.Array) -> jax.Array:
    """Return x, a floating-point array, computed once even if several operations read it.

    XLA fuses cheap elementwise work into every consumer, and so keeps its inputs alive until the
    backward pass, often beside the result. A `where` of two operands is not duplicated, so x is
    materialized. This one has a known answer: only NaN differs from itself, and it stays NaN.

    >>> materialize(jnp.array([1.0, -2.0])).tolist()
    [1.0, -2.0]
    """
    return lax.platform_dependent(x, cpu=in_float32(_keep), default=lambda x: x)


def _keep(x: jax.Array) -> jax.Array:
    return jnp.where(x == x, x, -x)


@materialize.defjvp
def _materialize_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return materialize(*primals), tangents[0]


@jax.custom_jvp
def relu(x: jax.Array) -> jax.Array:
    """Return max(x, 0), with its derivative read off the result.

    The next layer keeps the result in any case, so x need not stay in memory until the backward
    pass.
    """
    return lax.platform_dependent(
        x,
        cpu=in_float32(lambda x: _keep(jnp.maximum(x, 0))),
        default=lambda x: jnp.maximum(x, 0),
    )


@relu.defjvp
def _relu_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    y = relu(*primals)
    return y, jnp.where(y > 0, tangents[0], 0)


def remat_in_chunks(
    function: Callable[[jax.Array], jax.Array],
    images: jax.Array,
    widened: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Return function(images), computed in small chunks of the batch where that pays.

    What the function computes on the way stays in the processor's caches and takes little memory:
    the backward pass computes it again, chunk by chunk. That is faster where it is large and cheap:
    for images of few channels, with maps so large that a few images fill the caches. The result is
    equal up to rounding, since what comes of the chunks is added up.

    Args:
        function: from [N, ...] to [N, ...], of each image by itself.
        images: [N, H, W, C].
        widened: the same function computed in float32, taken for chunks, which are then put
            together in float32: XLA would write the whole half-precision array anew with each.

    >>> remat_in_chunks(lambda x: jnp.repeat(x, 16, axis=3), jnp.zeros((4, 512, 512, 1))).shape
    (4, 512, 512, 16)
    """
    if is_on_explicit_mesh(images) or not isinstance(images.shape[0], int):  # symbolic: an export
        return function(images)
    of_chunk = widened or function
    size = _chunk_size(of_chunk, images)
    if size >= len(images):
        return function(images)
    dtype = jax.eval_shape(function, images).dtype

    def on_cpu(images: jax.Array) -> jax.Array:
        chunks = images.reshape(len(images) // size, size, *images.shape[1:])
        y = lax.map(jax.checkpoint(of_chunk), chunks)
        return y.reshape(len(images), *y.shape[2:]).astype(dtype)

    return cpu_or_default(images, cpu=on_cpu, default=function)


def _chunk_size(function: Callable[[jax.Array], jax.Array], images: jax.Array) -> int:
    """Return the images of a chunk; they divide the batch, and may be all of it."""
    batch, limit = len(images), limits.CURRENT
    if batch < 2 or images.shape[-1] > limit.remat_channels:
        return batch
    one = jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype)
    program = jax.make_jaxpr(function)(one).jaxpr
    if not _suits_loops(program):
        return batch
    bytes_each = max(
        (math.prod(x.aval.shape) * x.aval.dtype.itemsize for x in _results(program)), default=0
    )
    sizes = (
        n for n in range(batch, 1, -1) if batch % n == 0 and n * bytes_each <= limit.remat_bytes
    )
    return next(sizes, 1)


def suits_loops(function: Callable, *args: Any) -> bool:
    """Return whether on CPU the function is as fast within a loop as outside.

    XLA runs its own convolutions inside a loop on one thread, and many times slower. oneDNN's calls
    it runs as it does outside.

    Args:
        function: traced, not computed.
        *args: trees of arrays or of their shapes.

    >>> suits_loops(jnp.tanh, jnp.zeros(3))
    True
    """
    return _suits_loops(jax.make_jaxpr(function)(*args).jaxpr)


def scan(function: Callable[[Any, Any], tuple[Any, Any]], init: Any, xs: Any) -> tuple[Any, Any]:
    """Return what `jax.lax.scan` returns, as fast and in as little memory on every platform.

    On CPU the loop is unrolled where a convolution would be slow within it. XLA is free to compute
    the turns of an unrolled loop in any order, and keeps what several of them need. So each turn
    begins with a number that depends on all of the turn before it.

    Args:
        function: from (carry, x) to (carry, y).
        init: the first carry, a tree of floating-point arrays.
        xs: tree of arrays [turns, ...].

    Returns:
        The last carry, and the tree of ys, [turns, ...].

    >>> scan(lambda total, x: (total + x, total), jnp.float32(0), jnp.array([1.0, 2.0, 3.0]))
    (Array(6., dtype=float32), Array([0., 1., 3.], dtype=float32))
    """
    if suits_loops(function, init, jax.tree.map(lambda x: x[0], xs)):
        return lax.scan(function, init, xs)

    def on_cpu(init: Any, xs: Any) -> tuple[Any, Any]:
        carry, ys = init, []
        for turn in range(len(jax.tree.leaves(xs)[0])):
            index = _after(carry, turn) if turn else 0
            carry, y = function(carry, jax.tree.map(operator.itemgetter(index), xs))
            ys.append(y)
        return carry, jax.tree.map(lambda *ys: jnp.stack(ys), *ys)

    return lax.platform_dependent(init, xs, cpu=on_cpu, default=partial(lax.scan, function))


def _after(carry: Any, turn: int) -> jax.Array:
    """Return `turn`, which XLA does not know before it has computed the whole carry.

    No number is NaN and finite, but XLA does not see that. An `optimization_barrier` would not do:
    on CPU it is gone before XLA orders the operations.
    """
    seen = sum(x.sum().astype(jnp.float32) for x in jax.tree.leaves(carry))
    return jnp.where(jnp.isnan(seen) & jnp.isfinite(seen), 0, turn)


def _suits_loops(program: Any) -> bool:
    return not any(_is_slow_in_loops(equation) for equation in _equations(program))


def _is_slow_in_loops(equation: Any) -> bool:
    if equation.primitive is lax.conv_general_dilated_p:
        return True
    if equation.primitive not in primitives.ALL:
        return False
    geometry = equation.params["geometry"]
    if geometry.is_product:
        return False
    window = math.prod(geometry.window)  # a large one's gradient is XLA's
    available = probe.available() and not programs.are_kept()
    return not available or window > limits.CURRENT.window


def _results(program: Any) -> Iterator[Any]:
    """Yield every array that a traced program computes."""
    for equation in _equations(program):
        yield from equation.outvars


def _equations(program: Any) -> Iterator[Any]:
    """Yield the equations of a traced program, those of the programs that it calls included."""
    for equation in program.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program):
            if _is_program(value):
                yield from _equations(getattr(value, "jaxpr", value))


def _is_program(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")
