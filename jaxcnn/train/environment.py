"""What a run was made with, for the record in `run.json`."""

import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import jax

from jaxcnn.ops.implementation import choose_implementation
from jaxcnn.ops.onednn import verdict

_PACKAGES = ("jaxcnn", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def describe_environment(devices: Sequence[jax.Device]) -> dict[str, Any]:
    """Return the date, the versions and the devices that decide a run's bits.

    >>> sorted(describe_environment(jax.devices()))
    ['convolution', 'date', 'devices', 'platform', 'python', 'versions']
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "convolution": _convolution(devices[0].platform),
        "devices": [f"{device.platform}: {device.device_kind}" for device in devices],
    }


def _convolution(platform: str) -> str:
    """Say which algorithms convolutions take, since they round differently."""
    if platform != "cpu":
        return "XLA"
    return f"{choose_implementation()}; oneDNN {verdict()}"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # used from its folder, not installed
        return "not installed"
