"""What a run was made with, for the record in `run.json`."""

import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from jaxcnn.ops import cpu

_PACKAGES = ("jaxcnn", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def describe_environment(
    devices: Sequence[jax.Device], implementation: str | None = None
) -> dict[str, Any]:
    """Return the date and what a run's bits depend on apart from its config.

    Args:
        devices: those in use.
        implementation: of the ops, if the config gives one.

    >>> sorted(describe_environment(jax.devices()))
    ['commit', 'convolution', 'date', 'devices', 'platform', 'python', 'versions']
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "commit": _commit(),
        "convolution": _convolution(devices[0].platform, implementation),
        "devices": [f"{device.platform}: {device.device_kind}" for device in devices],
    }


def _convolution(platform: str, implementation: str | None) -> str:
    """Return which algorithms the ops use, since each rounds differently."""
    if platform != "cpu":
        return "XLA"
    return f"{cpu.choose_implementation(implementation)}; {cpu.status()}"


def _commit() -> str | None:
    """Return git's name of the code in the current folder, or else of jaxcnn's; None without."""
    for folder in (Path.cwd(), Path(__file__).parent):
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=5)
        except (OSError, subprocess.TimeoutExpired):  # git is not installed, or waits for a disk
            return None
        if done.returncode == 0:
            return done.stdout.strip()
    return None


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # used from its folder, not installed
        return "not installed"
