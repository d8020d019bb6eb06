"""Fully connected layers as the layers use them."""

import jax
import jax.numpy as jnp

from jaxcnn.ops import cpu
from jaxcnn.ops.activations import resolve_activation
from jaxcnn.ops.xla import Activation, finish


def dense(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    activation: Activation | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Return activation(x kernel + bias).

    Args:
        x: [..., I].
        kernel: [I, O], of the same dtype.
        bias: [O], of the same dtype; None for none.
        activation: of each number of the output; None for none.
        implementation: 'auto', 'xla' or None, as for `conv2d`.

    Returns:
        [..., O], in the dtype of the input.

    Raises:
        ValueError: if the shapes do not match, or the implementation is unknown.
        TypeError: if x, kernel and bias are of different dtypes.

    Source: d2l 7.6 (`nn.Linear`).

    >>> dense(jnp.ones((2, 3)), jnp.ones((3, 4)), jnp.ones(4))[0].tolist()
    [4.0, 4.0, 4.0, 4.0]
    """
    if kernel.ndim != 2 or x.shape[-1:] != kernel.shape[:1]:
        raise ValueError(
            f"dense takes x [..., I] and a kernel [I, O], got x {x.shape} and kernel {kernel.shape}"
        )
    if bias is not None and bias.shape != kernel.shape[1:]:
        raise ValueError(
            f"dense takes a bias [O] for a kernel [I, O], got bias {bias.shape} and kernel "
            f"{kernel.shape}"
        )
    dtypes = [each.dtype for each in (x, kernel, bias) if each is not None]
    if len(set(dtypes)) > 1:
        raise TypeError(
            "dense takes x, kernel and bias of one dtype, got "
            + " and ".join(str(dtype) for dtype in dtypes)
        )
    is_auto = cpu.choose_implementation(implementation) != "xla"
    y = cpu.dot(x, kernel) if is_auto else jnp.dot(x, kernel)
    return finish(y, bias, resolve_activation(activation, implementation))
