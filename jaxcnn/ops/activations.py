"""ReLU, and arrays that are computed once."""

from functools import partial

import jax
import jax.numpy as jnp  # noqa: F401 (the examples)

from jaxcnn.ops import cpu
from jaxcnn.ops.xla import Activation


def relu(x: jax.Array, implementation: str | None = None) -> jax.Array:
    """Return max(x, 0) of each number, as `jax.nn.relu` does: same values and derivatives.

    Args:
        x: floating point, of any shape.
        implementation: 'auto', 'xla' or None, as for `conv2d`.

    Returns:
        An array of the same shape and dtype.

    Raises:
        ConfigError: if the implementation is unknown.

    >>> relu(jnp.array([-1.0, 0.0, 2.0])).tolist()
    [0.0, 0.0, 2.0]
    """
    if cpu.choose_implementation(implementation) == "xla":
        return jax.nn.relu(x)
    return cpu.relu(x)


def resolve_activation(
    activation: Activation | None, implementation: str | None
) -> Activation | None:
    """Return an activation as the implementation computes it; only `relu` differs.

    >>> resolve_activation(jnp.tanh, "xla") is jnp.tanh
    True
    """
    if activation is relu:
        return partial(relu, implementation=implementation)
    return activation


def materialize(x: jax.Array, implementation: str | None = None) -> jax.Array:
    """Return x, computed once even if several operations read it; a hint, never another value.

    Args:
        x: floating point, of any shape.
        implementation: 'auto', 'xla' (which leaves the choice to XLA) or None, as for `conv2d`.

    >>> materialize(jnp.array([1.0, -2.0])).tolist()
    [1.0, -2.0]
    """
    if cpu.choose_implementation(implementation) == "xla":
        return x
    return cpu.materialize(x)
