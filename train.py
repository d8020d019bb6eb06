"""Train a model: `python train.py --config configs/lenet.py [--workdir DIR] [--config.key=value]`.

The same command, given again, resumes where it stopped. Exit status: 0 when trained; 2 after an
error, with one line that says what is wrong; 128 and its number after a signal to stop: 130 for
Ctrl-C (SIGINT), 143 for SIGTERM.
"""

import contextlib
import sys
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from jaxcnn.config import check_keys
from jaxcnn.errors import JaxcnnError, StoppedError

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, such as configs/lenet.py.")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; by default runs/ and the name of the config file."
)


def main(argv: list[str]) -> None:
    """Train with the config that the flags name."""
    if not flags.FLAGS["verbosity"].present:
        # Orbax logs a lot, even errors that end up in one line here; --verbosity=0 shows it all.
        logging.set_verbosity(logging.FATAL)
        sys.unraisablehook = report_unraisable
    from jax.errors import JaxRuntimeError  # imported late, so that wrong flags fail at once

    from jaxcnn.train import train_and_evaluate

    try:
        workdir = default_workdir() if WORKDIR.value is None else WORKDIR.value
        train_and_evaluate(CONFIG.value, workdir)
    except StoppedError as stopped:
        say(f"train.py: {stopped}")
        sys.exit(128 + stopped.signal)  # as a shell reports a process that a signal ended
    except JaxcnnError as error:
        fail(error)
    except JaxRuntimeError as error:  # usually out of memory
        reason = f"{error}".splitlines()[0][:200]
        fail(f"XLA cannot go on ({reason}); if memory is short, give a smaller config.batch_size")
    except KeyboardInterrupt:  # before or after training, which raises StoppedError
        say("\ntrain.py: stopped; nothing is lost, give the same command again")
        sys.exit(130)


def report_unraisable(unraisable: Any) -> None:
    """Print an exception that cannot be caught, unless it is of writes that Orbax abandoned."""
    if "Event loop is closed" not in f"{unraisable.exc_value}":
        sys.__unraisablehook__(unraisable)


def default_workdir() -> Path:
    """Return runs/resnet18 for configs/resnet18.py, and runs/resnet18-smoke for its variant."""
    path, variant = config_file()
    return Path("runs") / "-".join(filter(None, (path.stem, variant)))


def config_file() -> tuple[Path, str]:
    """Return the path of the config file, and its variant ('' if there is none)."""
    path, _, variant = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return Path(path), variant


def parse_flags(argv: list[str]) -> list[str]:
    """Parse the flags and load the config file; an error ends in one line."""
    prefix = "--config."
    try:
        check_keys(arg[len(prefix) :].split("=")[0] for arg in argv if arg.startswith(prefix))
        rest = flags.FLAGS(argv)
    except Exception as error:  # a config file may raise anything
        fail(explain(error))
    if len(rest) > 1:
        fail(f"unexpected argument {rest[1]!r}; see train.py --help")
    if CONFIG.value is None:
        fail("no --config given; give a file, such as --config configs/lenet.py")
    path, _ = config_file()
    if not path.is_file():
        fail(f"the config file '{path}' does not exist; see configs/ for those that do")
    if not isinstance(CONFIG.value, ConfigDict):
        fail(f"get_config() in '{path}' must return a ConfigDict, as those in configs/ do")
    return rest


def explain(error: BaseException) -> str:
    """Return one line: the message about a wrong flag, or what failed in the config file."""
    if isinstance(error, JaxcnnError | flags.Error) and "config file" not in f"{error}":
        return f"{error}"
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    last_line = f"{type(error).__name__}: {error}".strip().splitlines()[-1].strip()
    return f"the config file fails: {last_line}"


def fail(reason: object) -> NoReturn:
    """Print the reason and exit with status 2."""
    say(f"train.py: {reason}")
    sys.exit(2)


def say(line: str) -> None:
    """Print a line for the person at the terminal, which may be gone."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
