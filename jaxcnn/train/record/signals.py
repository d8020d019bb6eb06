"""SIGINT and SIGTERM, held back until the run can stop without losing anything."""

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """A context manager that records the first SIGINT or SIGTERM instead of letting it act.

    A second one ends the process immediately, as the first would have without this. Outside the
    main thread it does nothing, since Python handles signals in the main thread only.

    Attributes:
        received: the signal, or None if there was none yet.

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
