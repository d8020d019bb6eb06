"""Signals that ask to stop, held back until the run can stop without losing anything."""

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any

# A person (Ctrl-C) or a system asks to stop; asked again, the process ends at once.
_STOPS = (signal.SIGINT, signal.SIGTERM)
# A terminal hung up, a scheduler's warning before it kills (SLURM's and Grid Engine's), processor
# time used up: they may come several times, or before SIGTERM, and never end it at once.
_WARNINGS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)


class StopSignal:
    """A context manager that records the first signal to stop instead of letting it act.

    A second SIGINT or SIGTERM ends the process immediately, as the first would have without this.
    A signal that was ignored before stays ignored (`nohup` ignores SIGHUP), and a handler that the
    calling program has set for SIGHUP, SIGUSR1, SIGUSR2 or SIGXCPU stays in place. Outside the main
    thread this class does nothing, since Python handles signals in the main thread only.

    Attributes:
        received: the signal, or None if there was none yet.

    >>> with StopSignal() as stop:
    ...     signal.raise_signal(signal.SIGUSR1)
    ...     stop.received.name
    'SIGUSR1'
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            before = {each: signal.getsignal(each) for each in (*_STOPS, *_WARNINGS)}
            self._before = {
                each: handler
                for each, handler in before.items()
                if handler == signal.SIG_DFL
                or (each in _STOPS and handler not in (signal.SIG_IGN, None))
            }
            for each in self._before:
                signal.signal(each, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        received, text = signal.Signals(number), "saving"
        if received in _STOPS:
            text += "; once more to quit at once"
            for each in self._before.keys() & _STOPS:
                signal.signal(each, signal.SIG_DFL)
        elif self.received is not None:  # said already
            return
        self.received = self.received or received
        with contextlib.suppress(OSError):  # the terminal may be gone
            # Not print: a signal can arrive in the middle of one.
            os.write(2, f"\n{received.name}: {text}\n".encode())
