"""Joining the other processes of a distributed run, and leaving them."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from jaxcnn.errors import ConfigError, first_line

_START_SECONDS = 300  # for the others to come
_SILENT_SECONDS = 20  # after which a process that is not heard of has ended


class Place(NamedTuple):
    """Of a process in a distributed run; None for what JAX finds out.

    Attributes:
        coordinator: HOST:PORT of process 0.
        num_processes: of the run.
        process_id: of this one.
    """

    coordinator: str | None
    num_processes: int | None
    process_id: int | None


def check_place(distributed: bool, place: Place) -> Place | None:
    """Return the place of this process; None if it trains alone.

    Args:
        distributed: whether the flag `--distributed` was given.
        place: what the other flags say.

    Raises:
        ConfigError: if the flags do not fit together.

    >>> check_place(False, Place(None, None, None))
    """
    flags = [f"--{name}={value}" for name, value in place._asdict().items() if value is not None]
    if not distributed:
        if flags:
            raise ConfigError(f"{' '.join(flags)} is given without --distributed; add it")
        return None
    if not flags:
        return place
    if len(flags) < len(place):
        raise ConfigError(
            f"{' '.join(flags)} is not enough; give --coordinator=HOST:PORT, --num_processes=N "
            "and --process_id=I together, or none of them where JAX finds the processes"
        )
    assert place.coordinator is not None
    assert place.num_processes is not None
    assert place.process_id is not None
    if not re.fullmatch(r"\S+:\d{1,5}", place.coordinator):
        raise ConfigError(
            f"--coordinator is {place.coordinator!r}; it must be HOST:PORT, such as "
            "localhost:1234, of the machine where process 0 runs"
        )
    if place.num_processes < 1 or not 0 <= place.process_id < place.num_processes:
        raise ConfigError(
            f"--process_id is {place.process_id} of {place.num_processes}; there must be at least "
            "one process, and their ids are 0 to --num_processes - 1"
        )
    return place


def join(place: Place) -> None:
    """Connect with the other processes; wait until all are there.

    Raises:
        ConfigError: if JAX does not find them, or not all come.
    """
    import jax

    try:
        jax.distributed.initialize(
            *place,
            initialization_timeout=_START_SECONDS,
            heartbeat_timeout_seconds=_SILENT_SECONDS,
        )
    except ValueError as error:
        raise ConfigError(
            f"--distributed: JAX finds no other processes here ({first_line(error)}); give "
            "--coordinator=HOST:PORT, --num_processes=N and --process_id=I"
        ) from error
    except RuntimeError as error:
        raise ConfigError(
            f"--distributed: the processes do not come together ({first_line(error)}); start all "
            f"within {_START_SECONDS} seconds, with the same --coordinator"
        ) from error


def wait_for_verdict() -> None:
    """After an error that may be another process's end, let JAX's runtime find out which.

    If one has ended, the runtime ends this process, too, and it does not return.
    """
    time.sleep(2 * _SILENT_SECONDS)


@contextlib.contextmanager
def joined(program: str) -> Iterator[Callable[[int], int]]:
    """Within this, the runtime's report that another process has ended is one line.

    What Gloo prints of its connections, past Python, is left out.

    Yields a function of the exit status, to be called last: after an error it ends the process at
    once, since the others, which it would wait for, wait for it.
    """
    script = Path(__file__).with_name("last_words.py")
    helper = subprocess.Popen(
        [sys.executable, "-S", "-E", str(script), program],
        stdin=subprocess.PIPE,
        stderr=os.dup(2),
        start_new_session=True,  # a signal to the terminal is not for it
    )
    assert helper.stdin is not None
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(helper.stdin.fileno(), 2)
    helper.stdin.close()
    sys.stdout.flush()
    output = os.fdopen(os.dup(1), "w", buffering=1, errors="backslashreplace")
    os.dup2(nowhere, 1)
    sys.stdout = output

    def leave(status: int) -> None:
        output.flush()
        sys.stderr.flush()
        os.dup2(kept, 2)
        helper.wait()
        os._exit(status)

    def end(status: int) -> int:
        if status in (1, 2):
            leave(status)
        import jax

        jax.distributed.shutdown()
        return status

    try:
        yield end
    except KeyboardInterrupt:  # before or after training: within it, they agree to stop
        leave(128 + signal.SIGINT)
    except Exception:  # a bug, or another process's end that the runtime did not notice
        traceback.print_exc()
        leave(1)
    finally:
        os.dup2(kept, 2)
        helper.wait()
