"""What of this machine a process may use: its memory and its cores."""

import os
from pathlib import Path


def memory_bytes(
    cgroups: Path = Path("/proc/self/cgroup"), limits: Path = Path("/sys/fs/cgroup")
) -> int:
    """Return the memory of the machine, or the limit of the process's control group if lower.

    Args:
        cgroups: names the groups of the process, as Linux does.
        limits: where the groups' files are, of version 2 or 1.

    >>> memory_bytes() > 2**20
    True
    """
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_group_limits(cgroups, limits)])


def count_cores() -> int:
    """Return the cores that this process may use.

    >>> count_cores() >= 1
    True
    """
    if hasattr(os, "sched_getaffinity"):  # on Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _group_limits(cgroups: Path, limits: Path) -> list[int]:
    """Return the limits of the process's group and of those that it is in."""
    try:
        lines = cgroups.read_text().splitlines()
    except OSError:  # not Linux
        return []
    found = []
    for line in lines:  # "0::/a/b" of version 2, "9:memory:/a/b" of version 1
        _, kinds, name = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        root, file = (
            (limits / "memory", "memory.limit_in_bytes") if kinds else (limits, "memory.max")
        )
        group = Path(name.lstrip("/"))
        # In a container the name may be one outside of it; the root is then the container's.
        for folder in [group, *group.parents]:
            try:
                content = (root / folder / file).read_text().strip()
            except OSError:
                continue
            if content.isdecimal():  # else "max"
                found.append(int(content))
    return found
