"""Measure several sides in turn, each in a process of its own, so that all meet the same weather.

A benchmark script starts itself once for each side (`--side NAME`), sends it jobs as lines of JSON
and reads lines of JSON back. While one side measures, the others sleep.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

LINUX = sys.platform == "linux"

# What glibc's allocator is told, for every side alike. 'plain' is its default: large buffers are
# returned to the system and mapped anew. 'huge' maps them in huge pages. 'tuned' keeps them. None
# has a single arena (MALLOC_ARENA_MAX=1), on which XLA's threads would wait for each other.
ALLOCATORS = {
    "plain": {},
    "huge": {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
    "tuned": {
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
        "MALLOC_TOP_PAD_": str(64 << 20),
    },
}


ANSWERS = "BENCHMARK_ANSWERS"  # the variable that tells a side where to write its answers


class Side:
    """A process that answers jobs; a context manager that ends it.

    Args:
        name: what `serve` in the process is told to be.
        allocator: a key of `ALLOCATORS`.
    """

    def __init__(self, name: str, allocator: str):
        env = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
        env |= ALLOCATORS[allocator]
        if name == "xla":
            env["JAXCNN_IMPLEMENTATION"] = "xla"
        self.name = name
        # What a side prints, such as that it prepares the data, is for people.
        answers, their_end = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, sys.argv[0], "--side", name],
            env=env | {ANSWERS: str(their_end)},
            stdin=subprocess.PIPE,
            stdout=sys.stderr,
            text=True,
            pass_fds=[their_end],
        )
        os.close(their_end)
        self._answers = os.fdopen(answers)

    def ask(self, job: dict[str, Any]) -> dict[str, Any]:
        """Send a job, and wait for the answer.

        Its entry 'others' is the share of all processors' time that other processes took meanwhile;
        above a few percent the figure says little, and least of all on PyTorch's side, whose
        threads wait for each other in busy loops.
        """
        busy, total = processor_time()
        own = self._processor_time()
        print(json.dumps(job), file=self._process.stdin, flush=True)
        line = self._answers.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with status {self._process.wait()} on {job}")
        answer = json.loads(line)
        busy, total = (b - a for a, b in zip((busy, total), processor_time(), strict=True))
        others = busy - (self._processor_time() - own)
        return answer | {"others": max(others, 0) / max(total, 1)}

    def _processor_time(self) -> int:
        """Return the ticks that the process has run, on Linux."""
        stat = Path(f"/proc/{self._process.pid}/stat")
        return sum(map(int, stat.read_text().rsplit(")")[-1].split()[11:13])) if LINUX else 0

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._answers.close()


def processor_time() -> tuple[int, int]:
    """Return the ticks that all processors have been busy, and all their ticks, on Linux."""
    if not LINUX:
        return 0, 0
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)  # without idle and waiting for disks


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answer jobs from standard input until it closes."""
    with os.fdopen(int(os.environ[ANSWERS]), "w") as answers:
        for line in sys.stdin:
            print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


def has_torch() -> bool:
    """Return whether PyTorch can be measured here; say so where not."""
    found = find_spec("torch") is not None
    if not found:
        print("PyTorch is not installed here: jaxcnn alone is measured")
    return found


def seconds(call: Callable[[], Any], at_least: float, calls: int = 1) -> float:
    """Return the median time of a call, taken `calls` times and for `at_least` seconds."""
    times: list[float] = []
    while len(times) < calls or sum(times) < at_least:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def summary(values: Iterable[float]) -> dict[str, float]:
    """Return the median, the least and the largest of values."""
    values = list(values)
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
