"""SIGINT and SIGTERM, kept until the run can stop without losing anything."""

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """A context manager within which the first SIGINT or SIGTERM is only noted.

    The second one ends the process at once, as it would have without this. In a thread other than
    the main one, Python has no say in signals, and nothing changes.

    Attributes:
        received: the signal, or None as long as there was none.

    >>> with StopSignal() as stop:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     stop.received.name
    'SIGTERM'
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            self._before = {each: signal.signal(each, self._note) for each in _SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        with contextlib.suppress(OSError):  # the terminal may be gone
            # Not print: a signal can arrive in the middle of one.
            os.write(2, f"\n{self.received.name}: saving; once more to quit at once\n".encode())
