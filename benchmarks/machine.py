"""What a figure was measured on, and where it is kept."""

import datetime
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any


def describe_machine() -> dict[str, Any]:
    """Return date, processor, cores and versions, to store beside a figure."""
    cpuinfo = Path("/proc/cpuinfo")
    fields = dict(
        (part.strip() for part in line.split(":", 1))
        for line in (cpuinfo.read_text().splitlines() if cpuinfo.exists() else [])
        if ":" in line
    )
    name = fields.get("model name", platform.processor())
    family, model = fields.get("cpu family", "?"), fields.get("model", "?")
    return {
        "date": datetime.date.today().isoformat(),
        "processor": f"{name} (family {family}, model {model})",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("jax", "flax", "optax")},
    }


def write_record(path: Path, *, shows: bool = True, **content: Any) -> None:
    """Write what was measured, and on what, as a file; with `shows`, print it as a line of JSON."""
    record = {"machine": describe_machine(), **content}
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{json.dumps(record, indent=2)}\n")
    if shows:
        print(json.dumps(record))
