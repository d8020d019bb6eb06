"""The switch between the fast algorithms for CPU and XLA's own."""

import os
from typing import Any

import jax.numpy as jnp

from jaxcnn.errors import ConfigError
from jaxcnn.ops import onednn

VARIABLE = "JAXCNN_IMPLEMENTATION"


def choose_implementation(given: str | None = None) -> str:
    """Return 'auto' (what is fastest on the platform) or 'xla' (XLA's own on all platforms).

    It is what is given, or else the environment variable `JAXCNN_IMPLEMENTATION`, or else 'auto'.
    The variable is read while a function is traced: one that `jit` has compiled does not change
    with it.

    Raises:
        ConfigError: if it is neither.

    >>> choose_implementation("xla")
    'xla'
    """
    name = "implementation" if given else f"the environment variable {VARIABLE}"
    value = given or os.environ.get(VARIABLE) or "auto"
    if value not in ("auto", "xla"):
        raise ConfigError(f"{name} must be auto or xla, got {value!r}")
    return value


def fast_in_loops(dtype: Any) -> bool:
    """Return whether on CPU a convolution in a loop is as fast as outside: XLA's own is not.

    XLA runs its own convolutions inside a loop on one thread, and many times slower.

    Args:
        dtype: of the convolution's operands.
    """
    return (
        jnp.dtype(dtype) == jnp.float32 and choose_implementation() == "auto" and onednn.available()
    )
