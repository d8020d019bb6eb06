"""The switch between the fast algorithms for CPU and XLA's own."""

import os

from jaxcnn.errors import ConfigError

VARIABLE = "JAXCNN_IMPLEMENTATION"


def implementation() -> str:
    """Return 'auto' (what is fastest on the platform) or 'xla' (XLA's own on all platforms).

    It is the environment variable `JAXCNN_IMPLEMENTATION`, read while a function is traced: a
    function that `jit` has compiled does not change with it.

    Raises:
        ConfigError: if the variable has another value.
    """
    value = os.environ.get(VARIABLE) or "auto"
    if value not in ("auto", "xla"):
        raise ConfigError(f"the environment variable {VARIABLE} must be auto or xla, got {value!r}")
    return value
