"""What a run was made with, for the record in `run.json`."""

import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import jax

_PACKAGES = ("jaxcnn", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def describe_environment(devices: Sequence[jax.Device]) -> dict[str, Any]:
    """Return the date, the versions and the devices that decide a run's bits.

    >>> sorted(describe_environment(jax.devices()))
    ['date', 'devices', 'platform', 'python', 'versions']
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "devices": [f"{device.platform}: {device.device_kind}" for device in devices],
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # used from its folder, not installed
        return "not installed"
