"""Half precision on CPUs: computed in float32, and moved as integers.

XLA computes each operation on bfloat16 in float32 and rounds after each, which takes longer than
the operation. Some of its versions also move bfloat16 by way of float32, number by number.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn.ops.xla import is_half


def in_float32(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Return a function of arrays that rounds half precision once, in the end.

    Args:
        function: from arrays to one of the dtype of the first.

    >>> in_float32(lambda x: x / 3 * 3)(jnp.array([7.0], jnp.bfloat16))
    Array([7], dtype=bfloat16)
    """

    @wraps(function)
    def of_any(*operands: jax.Array) -> jax.Array:
        if not is_half(operands[0]):
            return function(*operands)
        y = function(*(x.astype(jnp.float32) for x in operands))
        return y.astype(operands[0].dtype)

    return of_any


def as_bits(x: jax.Array) -> jax.Array:
    """Return the bits of half precision, as uint16 of the same shape; other numbers as given.

    >>> as_bits(jnp.ones(2, jnp.bfloat16))
    Array([16256, 16256], dtype=uint16)
    >>> as_bits(jnp.ones(2))
    Array([1., 1.], dtype=float32)
    """
    return lax.bitcast_convert_type(x, jnp.uint16) if is_half(x) else x


def from_bits(bits: jax.Array, dtype: Any) -> jax.Array:
    """Return the numbers of this dtype whose bits `as_bits` returned.

    >>> from_bits(as_bits(jnp.ones(2, jnp.bfloat16)), jnp.bfloat16)
    Array([1, 1], dtype=bfloat16)
    """
    return bits if bits.dtype == dtype else lax.bitcast_convert_type(bits, dtype)


def keep_rounded(x: jax.Array) -> jax.Array:
    """Return x, whose gradient is rounded once, for all that read it.

    XLA leaves out a rounding to half precision if a sum in float32 follows. On CPU, a gradient that
    oneDNN needs rounded would then be written twice, once for the sum.

    >>> keep_rounded(jnp.ones(2, jnp.bfloat16))
    Array([1, 1], dtype=bfloat16)
    """
    if not is_half(x):
        return x
    return lax.platform_dependent(x, cpu=lax.optimization_barrier, default=lambda x: x)
