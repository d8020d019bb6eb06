"""One line in place of what JAX's runtime prints when another process has ended or never comes.

A program of its own, without imports that take time: it copies the error output of a process, and
replaces the runtime's report, a dozen lines with addresses, by what a person needs. A report in
words that it does not know is copied as it is.
"""

import re
import sys

# Where jaxlib's coordination service reports from: everything after such a line is part of it.
_REPORT = re.compile(rb"[EFW]\d{4} .*(coordination_service|preemption_sync_manager|client\.h)")
_SILENT = re.compile(rb"^(?:/job:\w+/(?:replica:\d+/)?task:)?(\d+)$", re.MULTILINE)
_FATAL = b"Terminating process because the JAX distributed service detected fatal errors"
_NO_COORDINATOR = b"Failed to send RPC to coordination service"
_NOT_ALL_CAME = b"CoordinationService/RegisterTask"


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
    """Copy standard input to standard error, a report summarized."""
    report: list[bytes] = []
    for line in sys.stdin.buffer:
        if report or _REPORT.match(line):
            report.append(line)
        else:
            sys.stderr.buffer.write(line)
            sys.stderr.buffer.flush()
    sys.stderr.buffer.write(summarize(b"".join(report), program))
    sys.stderr.buffer.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
