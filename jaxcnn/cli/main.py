"""From the command line to a command, and from its errors to one line and an exit status."""

import argparse
import contextlib
import sys
import warnings
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, NoReturn

import jaxcnn
from jaxcnn.cli import compare, data, evaluate, export, info, predict, report, summary, train
from jaxcnn.cli.output import (
    PIPE_CLOSED,
    LeftOutError,
    explain,
    flush_output,
    print_anything,
    say,
    show,
)
from jaxcnn.errors import JaxcnnError, did_you_mean

# Each has HELP, EXAMPLE, `add_arguments`, and `run`, which yields the lines of its result.
COMMANDS = (evaluate, predict, export, compare, report, data, summary, info)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command: results go to standard output, all else to standard error.

    Args:
        argv: the command line, without the program's name; by default that of the process.

    Returns:
        The exit status: 0; 1 if some of the inputs were left out; 2 after an error or a wrong call;
        128 plus the number of the signal that ended it.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    print_anything()
    if arguments[:1] == ["train"]:  # its flags are those of absl
        return train.main(arguments[1:])
    try:
        options = _parse(arguments)
    except SystemExit as end:  # of argparse, after --help, --version or a wrong call
        return int(end.code or 0) or show("")
    return _run(options, f"jaxcnn {options.command}")


def _run(options: argparse.Namespace, program: str) -> int:
    """Run a command, and return the exit status."""
    try:
        with _notes_on_stderr(program) as results:
            for line in options.run(options):
                print(line, file=results, flush=True)
    except BrokenPipeError:  # whoever read the results, such as `head`, has had enough
        flush_output()
        return PIPE_CLOSED
    except LeftOutError as error:
        for reason in error.reasons:
            say(f"{program}: {reason}")
        return 1
    except KeyboardInterrupt:
        say(f"\n{program}: stopped")
        return 130
    except (JaxcnnError, OSError, RuntimeError, ValueError, MemoryError) as error:
        say(f"{program}: {explain(error)}")
        flush_output()
        return 2
    return 0


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong, and exit with status 2."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="jaxcnn",
        description="Train the networks of Dive into Deep Learning, and use what was trained.",
        epilog="jaxcnn COMMAND --help says more of a command, with an example.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"jaxcnn {jaxcnn.__version__}")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", title="commands"
    )
    commands.add_parser("train", help=train.HELP)  # so that the list of commands has it
    for module in COMMANDS:
        _add_command(commands, module)
    known = list(commands.choices)
    if arguments and not arguments[0].startswith("-") and arguments[0] not in known:
        hint = did_you_mean(arguments[0], known)
        parser.error(f"unknown command {arguments[0]!r}{hint}; there are {', '.join(known)}")
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        command = getattr(options, "parser", parser)  # `train` has none here
        command.error(f"unexpected argument {unknown[0]!r}")
    return options


def _add_command(commands: Any, module: ModuleType) -> None:
    command = commands.add_parser(
        module.__name__.rpartition(".")[2],
        help=module.HELP,
        description=module.__doc__,
        epilog=f"example:\n  {module.EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(command)
    command.set_defaults(run=module.run, parser=command)


@contextlib.contextmanager
def _notes_on_stderr(program: str) -> Iterator[Any]:
    """Give standard output; what is printed, and warnings, go to standard error meanwhile."""

    def note(message: Warning | str, *_: Any, **__: Any) -> None:
        say(f"{program}: note: {f'{message}'.splitlines()[0]}")

    results = sys.stdout
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.showwarning = note
        yield results
