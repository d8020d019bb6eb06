"""The switch between this engine and XLA's own operations."""

import os

from jaxcnn.errors import ConfigError

VARIABLE = "JAXCNN_IMPLEMENTATION"
IMPLEMENTATIONS = ("auto", "xla")


def choose_implementation(given: str | None = None) -> str:
    """Return 'auto' (the fastest on the platform) or 'xla' (XLA's own operations everywhere).

    The choice is the given one, else that of the environment variable `JAXCNN_IMPLEMENTATION`, else
    'auto'. The variable is read while a function is traced: a function that `jit` has compiled does
    not change with it.

    Args:
        given: 'auto', 'xla' or None.

    Raises:
        ConfigError: if the choice is neither.

    >>> choose_implementation("xla")
    'xla'
    """
    name = "implementation" if given else f"the environment variable {VARIABLE}"
    value = given or os.environ.get(VARIABLE) or "auto"
    if value not in IMPLEMENTATIONS:
        raise ConfigError(f"{name} must be {' or '.join(IMPLEMENTATIONS)}, got {value!r}")
    return value
