"""The keys of a config, as its source describes them: for `train --help`, and for wrong names."""

import difflib
import re
import textwrap
from pathlib import Path
from typing import NamedTuple

from jaxcnn.errors import ConfigError

# Names that other programs use and that are not like ours.
_ELSEWHERE = {
    "amp": "dtype",
    "arch": "model",
    "data_path": "data_dir",
    "gpus": "num_devices",
    "net": "model",
    "precision": "dtype",
    "resolution": "image_size",
}


class Setting(NamedTuple):
    """A key of a config, its default as written in Python, and its meaning."""

    key: str
    default: str
    meaning: str


def read_settings() -> list[Setting]:
    """Return every key of `jaxcnn.get_default_config`, read off its source: JAX is not needed.

    >>> read_settings()[0]
    Setting(key='model', default='"lenet"', meaning='a key of jaxcnn.MODELS')
    """
    source = (Path(__file__).parents[1] / "config.py").read_text(encoding="utf-8")
    body = source.partition("def get_default_config")[2].partition("return config")[0]
    lines = re.findall(r"^    config\.(\w+) = (.+?)  # (.+)$", body, re.MULTILINE)
    return [Setting(*line) for line in lines]


def describe_settings(width: int) -> str:
    """Return a line for each key, or more where its meaning takes more than the width."""
    settings = read_settings()
    column = max(len(setting.key) for setting in settings)
    indent = " " * (column + 4)
    return "\n".join(
        textwrap.fill(
            f"  {key:{column}}  {meaning} ({default})",
            max(width, len(indent) + 20),
            subsequent_indent=indent,
            break_on_hyphens=False,
        )
        for key, default, meaning in settings
    )


def check_settings(keys: list[str]) -> None:
    """Check that a config has every one of these keys.

    Raises:
        ConfigError: with the key that was probably meant.

    >>> check_settings(["lr"])
    Traceback (most recent call last):
    jaxcnn.errors.ConfigError: unknown key config.lr (did you mean 'learning_rate'?); give ...
    """
    known = [setting.key for setting in read_settings()]
    for key in keys:
        if key not in known:
            meant = find_setting(key)
            raise ConfigError(
                f"unknown key config.{key} (did you mean {meant!r}?); give --config.{meant}"
                if meant
                else f"unknown key config.{key}; known: {', '.join(known)}"
            )


def find_setting(name: str) -> str | None:
    """Return the key that a name stands for elsewhere; None if there is none like it.

    >>> [find_setting(name) for name in ("lr", "epochs", "batch-size", "opt", "imgsize", "zoom")]
    ['learning_rate', 'num_epochs', 'batch_size', 'optimizer', 'image_size', None]
    """
    name = name.lower().replace("-", "_")
    keys = [setting.key for setting in read_settings()]
    words = {key: key.split("_") for key in keys}
    matches = (
        [key for key in keys if key == name],
        [_ELSEWHERE[name]] if name in _ELSEWHERE else [],
        [key for key in keys if len(name) > 1 and "".join(w[0] for w in words[key]) == name],
        [key for key in keys if name in words[key] or key in name.split("_")],
        [key for key in keys if len(name) > 2 and key.startswith(name)],
        difflib.get_close_matches(name, keys, n=1),
    )
    return next((found[0] for found in matches if len(found) == 1), None)
