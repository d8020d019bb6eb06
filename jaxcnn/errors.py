"""Errors that a user can fix: the commands print only their message and exit with status 2."""

import difflib
import signal
from collections.abc import Iterable


class JaxcnnError(Exception):
    """Base class: the message says what was given, what is accepted and what to do."""


class ConfigError(JaxcnnError, ValueError):
    """A setting, or an object given in its place, that does not fit the run or its workdir."""


class DataError(JaxcnnError, OSError):
    """A data set that is missing or damaged, or whose content is not what its name says."""


class TrainingError(JaxcnnError, ArithmeticError):
    """A run that cannot continue: its loss is not finite, or its checkpoint cannot be written."""


class StoppedError(JaxcnnError):
    """A run that a signal stopped, after it saved a checkpoint.

    Attributes:
        signal: which one.
    """

    def __init__(self, message: str, signal: signal.Signals):
        super().__init__(message)
        self.signal = signal


def did_you_mean(given: str, accepted: Iterable[str]) -> str:
    """Return a hint at the accepted name that is most similar, or '' if none is.

    >>> did_you_mean("lenett", ["lenet", "vgg"])
    " (did you mean 'lenet'?)"
    """
    near = difflib.get_close_matches(given, list(accepted), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def first_line(error: BaseException) -> str:
    r"""Return the first line of an error's message, cut at 200 characters.

    >>> first_line(ValueError("no such key\nsee the documentation"))
    'no such key'
    """
    lines = f"{error}".strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
