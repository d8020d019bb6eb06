"""One line in place of what JAX's runtime prints when another process has ended or never comes.

A program of its own, without imports that take time: it copies the error output of a process, and
replaces the runtime's report, a dozen lines with addresses, by what a person needs. A report in
words that it does not know is copied as it is.
"""

import os
import re
import select
import signal
import sys
import time
from collections.abc import Iterator

# Where jaxlib's coordination service reports from: everything after such a line is part of it.
_REPORT = re.compile(rb"[EFW]\d{4} .*(coordination_service|preemption_sync_manager|client\.h)")
_SILENT = re.compile(rb"^(?:/job:\w+/(?:replica:\d+/)?task:)?(\d+)$", re.MULTILINE)
_FATAL = b"Terminating process because the JAX distributed service detected fatal errors"
_NO_COORDINATOR = b"Failed to send RPC to coordination service"
_NOT_ALL_CAME = b"CoordinationService/RegisterTask"
_REPORT_SECONDS = 5.0  # in which a report that ends the process does so
# A scheduler may send them to every process of a run. The one that this speaks for handles them;
# this one ends with it.
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")


def summarize(report: bytes, program: str) -> bytes:
    """Return the line that says what a report means, or the report if it means something else.

    Args:
        report: the lines of the runtime.
        program: its name, for the line.
    """
    if _FATAL not in report:
        return report
    if _NOT_ALL_CAME in report:
        return (
            f"{program}: not all processes of this run have come in time; start all of them within "
            "a few minutes, with the same --coordinator and --num_processes\n"
        ).encode()
    gone = sorted({number.decode() for number in _SILENT.findall(report)})
    if not gone and _NO_COORDINATOR in report:
        gone = ["0"]
    which = f"process {' and '.join(gone)}" if gone else "another process"
    line = (
        f"{program}: {which} of this run has ended, so this one ends; start all again with the "
        "same command, and the run goes on from its last checkpoint\n"
    )
    return line.encode()


def main(program: str) -> None:
    """Copy standard input to standard error, a report that ends the process summarized."""
    for name in _SIGNALS:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    report, begun = b"", 0.0
    for line in _lines(sys.stdin.fileno()):
        if not report and _REPORT.match(line):
            begun = time.monotonic()
        if report or _REPORT.match(line):
            report += line
        else:
            _write(line)
        if report and _FATAL not in report and time.monotonic() - begun > _REPORT_SECONDS:
            _write(report)  # the process goes on
            report = b""
    _write(summarize(report, program))


def _write(text: bytes) -> None:
    sys.stderr.buffer.write(text)
    sys.stderr.buffer.flush()


def _lines(file: int) -> Iterator[bytes]:
    """Yield lines as they come, and nothing (b"") whenever none has come for a second."""
    rest = b""
    while True:
        if not select.select([file], [], [], 1.0)[0]:
            yield b""
            continue
        content = os.read(file, 2**16)
        if not content:
            break
        *lines, rest = (rest + content).splitlines(keepends=True)
        if rest.endswith(b"\n"):
            lines, rest = [*lines, rest], b""
        yield from lines
    yield rest


if __name__ == "__main__":
    main(*sys.argv[1:])
