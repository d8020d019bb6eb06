"""Matrix products on CPU: oneDNN's where it is in use, else XLA's own.

Both multiply the last two axes and broadcast nothing. For many small products of one size oneDNN
takes a third to a half of the time of XLA's `dot_general`, where it may compute them in one call.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn.ops import xla
from jaxcnn.ops.cpu import onednn, probe


def product(
    a: jax.Array,
    b: jax.Array,
    transpose_b: bool = False,
    sigmoid_bias: jax.Array | None = None,
    dtype: Any = None,
) -> jax.Array:
    """Return a b, [..., M, N], of a [..., M, K] and b [..., K, N].

    Args:
        a: in float32, or of two axes and in bfloat16, where `probe.bfloat16_available()`.
        b: of the same dtype.
        transpose_b: whether b is [..., N, K].
        sigmoid_bias: [N] in float32, for a and b of two axes; if given, return
            sigmoid(a b + sigmoid_bias) instead.
        dtype: of the result, that of a unless given; float32 in any case with `sigmoid_bias`.
    """
    if a.dtype == jnp.bfloat16 and sigmoid_bias is not None:
        return then_sigmoid(onednn.matmul(a, b, transpose_b=transpose_b), sigmoid_bias)
    if _available(a):
        return onednn.matmul(
            a, b, transpose_b=transpose_b, sigmoid_bias=sigmoid_bias, dtype=dtype or a.dtype
        )
    return then_sigmoid(lax.batch_matmul(a, b.mT if transpose_b else b), sigmoid_bias)


def transposed_product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return a^T b, [..., M, N] in float32, of a [..., K, M] and b [..., K, N].

    Both are in float32, or of two axes and in bfloat16, where `probe.bfloat16_available()`.
    """
    if _available(a):
        return onednn.matmul(a, b, transpose_a=True)
    return lax.batch_matmul(a.mT, b)


def _available(a: jax.Array) -> bool:
    return probe.available() if a.ndim == 2 else probe.many_products_available()


def then_sigmoid(y: jax.Array, bias: jax.Array | None) -> jax.Array:
    """Return sigmoid(y + bias) of y [..., O] and bias [O], or y itself if there is no bias."""
    return y if bias is None else xla.finish(y, bias, jax.nn.sigmoid)
