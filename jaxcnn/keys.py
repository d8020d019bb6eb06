"""Random keys: each is derived from the seed, its purpose and a count, and none is carried along.

A resumed run therefore draws the very numbers that an uninterrupted one would have drawn.
"""

import enum

import jax


class Purpose(enum.IntEnum):
    """What random numbers are for; each has a stream of its own."""

    INIT = 0
    SHUFFLE = 1
    DROPOUT = 2


def derive_key(seed: int | jax.Array, purpose: Purpose, count: int | jax.Array = 0) -> jax.Array:
    """Return the key of the count-th draw (an epoch or a step) for a purpose.

    Args:
        seed: of the run, 0 to 2**31 - 1.
        purpose: whose stream to draw from.
        count: from 0, such as the epoch or the step.

    Returns:
        A typed JAX key, scalar.

    >>> derive_key(0, Purpose.SHUFFLE, 3) == derive_key(0, Purpose.DROPOUT, 3)
    Array(False, dtype=bool)
    """
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), purpose), count)
