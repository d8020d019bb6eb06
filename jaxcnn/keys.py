"""Random keys, each derived from (seed, purpose, count) and never carried along.

A resumed run therefore draws the same numbers as one that was never interrupted.
"""

import enum

import jax
from jax import lax


class Purpose(enum.IntEnum):
    """What random numbers are for; each purpose has a stream of its own."""

    INIT = 0
    SHUFFLE = 1
    DROPOUT = 2
    AUGMENT = 3
    MIX = 4


def derive_key(
    seed: int | jax.Array,
    purpose: Purpose,
    count: int | jax.Array = 0,
    axis_name: str | None = None,
) -> jax.Array:
    """Return the key of one draw.

    Args:
        seed: of the run, 0 to 2**31 - 1.
        purpose: selects the stream.
        count: position in the stream, from 0, such as the epoch or the step.
        axis_name: mapped axis along which each device draws numbers of its own; None for one
            device.

    Returns:
        A typed JAX key, scalar.

    >>> derive_key(0, Purpose.SHUFFLE, 3) == derive_key(0, Purpose.DROPOUT, 3)
    Array(False, dtype=bool)
    """
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), purpose), count)
    return key if axis_name is None else jax.random.fold_in(key, lax.axis_index(axis_name))
