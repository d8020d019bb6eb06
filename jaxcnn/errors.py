"""Errors that a user can put right: `train.py` prints their message alone and exits with 2."""

import difflib
import signal
from collections.abc import Iterable


class JaxcnnError(Exception):
    """Base class: the message says what was given, what is accepted and what to do."""


class ConfigError(JaxcnnError, ValueError):
    """A config that cannot be trained with, or not in the workdir that was given."""


class DataError(JaxcnnError, OSError):
    """A data set that is missing, damaged or not what its name says."""


class TrainingError(JaxcnnError, ArithmeticError):
    """A run that cannot go on: its loss is not finite, or its checkpoint cannot be written."""


class StoppedError(JaxcnnError):
    """A run that was asked to stop, and has saved where it was.

    Attributes:
        signal: the one that asked.
    """

    def __init__(self, message: str, signal: signal.Signals):
        super().__init__(message)
        self.signal = signal


def did_you_mean(given: str, accepted: Iterable[str]) -> str:
    """Return a hint at the nearest accepted name, or nothing if none is near.

    >>> did_you_mean("lenett", ["lenet", "vgg"])
    " (did you mean 'lenet'?)"
    """
    near = difflib.get_close_matches(given, list(accepted), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
