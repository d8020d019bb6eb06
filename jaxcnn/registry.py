"""Calling what a user has registered in one of the tables, such as `jaxcnn.data.DATASETS`."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from jaxcnn.errors import ConfigError

T = TypeVar("T")


def call_entry(entry: Callable[..., T], name: str, /, *args: Any, **kwargs: Any) -> T:
    """Call an entry of a table; one that does not take the arguments is an error of one line.

    Args:
        entry: the function or class.
        name: what messages call it, with the arguments: "OPTIMIZERS['adam'](config, rate)".
        *args: for the entry.
        **kwargs: likewise.

    Raises:
        ConfigError: if the entry cannot be called, or not with these arguments.

    >>> call_entry(lambda split: split, "DATASETS['mine'](split, data_dir)", "train", None)
    Traceback (most recent call last):
    jaxcnn.errors.ConfigError: DATASETS['mine'](split, data_dir) fails: too many positional ...
    """
    if not callable(entry):
        raise ConfigError(f"{name} fails: the entry is a {type(entry).__name__}, not a function")
    try:
        inspect.signature(entry).bind(*args, **kwargs)
    except TypeError as error:
        raise ConfigError(f"{name} fails: {error}; it must take these arguments") from None
    except ValueError:  # a function in C may tell no signature
        pass
    return entry(*args, **kwargs)
