"""The processes of a run, on one machine or several: what the first of them knows, told to all.

Every process makes the same calls in the same order, these among them: each waits for the others.
"""

import json
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def are_several() -> bool:
    """Return whether other processes take part.

    >>> are_several()
    False
    """
    return jax.process_count() > 1


def is_first() -> bool:
    """Return whether this is the process that shows and records the run.

    >>> is_first()
    True
    """
    return jax.process_index() == 0


def share(value: Any) -> Any:
    """Return the first process's value in every one.

    Args:
        value: what JSON has; it matters in the first process alone.

    >>> share({"epoch": 3, "loss": 0.1})
    {'epoch': 3, 'loss': 0.1}
    """
    content = np.frombuffer(json.dumps(value).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    told = content if is_first() else np.zeros(length, np.uint8)
    return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(told))))


def which(holds: bool) -> list[int]:
    """Return the numbers of the processes in which something holds.

    >>> which(True), which(False)
    ([0], [])
    """
    return np.flatnonzero(multihost_utils.process_allgather(np.bool_(holds))).tolist()


def share_arrays(tree: Any) -> Any:
    """Return the first process's arrays in every one.

    Args:
        tree: of arrays of the host, of the same shapes and dtypes in every process.
    """
    return multihost_utils.broadcast_one_to_all(tree)
