"""`jaxcnn train`, and `train.py` in the repository: train with the settings of a config file."""

import contextlib
import faulthandler
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxcnn.cli.configs import find_config, shipped_configs
from jaxcnn.cli.distributed import Place, check_place, join, joined, wait_for_verdict
from jaxcnn.cli.output import explain, flush_output, line_width, print_anything, say, show
from jaxcnn.cli.settings import check_settings, describe_settings, find_setting
from jaxcnn.errors import ConfigError, JaxcnnError, StoppedError

HELP = "train a model, or go on training it"

_INDENT = " " * 21  # of what the flags mean

_HELP = """\
usage: {program} --config NAME [--workdir DIR] [--config.KEY=VALUE ...]

Train a model, and evaluate it after each epoch. The run is kept in a folder;
the same command, given again, resumes where it stopped.

  --config NAME      a config that is shipped, by its name, or a file (my.py);
{shipped};
                     lenet:smoke takes seconds, on a small sample of the data
  --workdir DIR      folder of the run, here or on a store (gs://bucket/run);
                     by default runs/ and the config's name
  --distributed      one run in several processes, each started with this flag,
                     on one machine or more: found by JAX under SLURM, Open MPI,
                     Kubernetes and on TPU pods, elsewhere given as
                     --coordinator=HOST:PORT (where process 0 runs),
                     --num_processes=N and --process_id=I (0 to N - 1)
  --verbosity LEVEL  0 shows what the libraries log
  --help             show this message and exit

settings, as --config.KEY=VALUE, and their defaults, which a config may replace:
{settings}

exit status:
  0 when trained; 2 after an error, with one line that says what is wrong; 128
  plus its number after a signal to stop (130 for Ctrl-C, 143 for SIGTERM)

examples:
  {program} --config lenet
  {program} --config lenet --config.num_epochs=20 --workdir runs/longer
"""


class _Call(NamedTuple):
    config: Any  # a ConfigDict
    workdir: str | Path
    verbosity: int | None
    place: Place | None  # among the processes of a distributed run


def main(argv: Sequence[str], program: str = "jaxcnn train") -> int:
    """Train with the config that the flags name.

    Args:
        argv: the command line, without the program's name.
        program: its name, for messages.

    Returns:
        The exit status: 0 when trained; 2 after an error; 128 plus the number of a signal to stop.
    """
    print_anything()
    if {"--help", "-help", "-h", "--helpshort", "--helpfull"} & set(argv):
        return show(_help(program))
    try:
        call = _parse(argv, program)
    except JaxcnnError as error:
        say(f"{program}: {error}")
        return 2
    try:
        if call.place is None:
            return _run(call, program)
        with joined(program) as end:
            return end(_run(call, program))
    finally:
        flush_output()  # nobody may read it any more


def _run(call: _Call, program: str) -> int:
    try:
        return _train(call, program)
    except StoppedError as stopped:
        say(f"{program}: {stopped}")
        return 128 + stopped.signal  # as a shell reports a process that a signal ended
    except JaxcnnError as error:
        say(f"{program}: {error}")
        return 2
    except (OSError, MemoryError) as error:
        if call.place is not None:
            wait_for_verdict()
        say(f"{program}: {explain(error)}")
        return 2
    except KeyboardInterrupt:  # before or after training, which raises StoppedError
        say(f"\n{program}: stopped; nothing is lost, give the same command again")
        if call.place is not None:
            raise  # the others know nothing of it
        return 130
    except Exception:
        if call.place is not None:
            wait_for_verdict()
        raise


def _train(call: _Call, program: str) -> int:
    from absl import logging

    logging.use_absl_handler()
    if call.verbosity is None:
        # Orbax logs a lot, even errors that end up in one line here; --verbosity=0 shows it all.
        logging.set_verbosity(logging.FATAL)
        sys.unraisablehook = _report_unraisable
    else:
        logging.set_verbosity(call.verbosity)
    if not faulthandler.is_enabled():
        with contextlib.suppress(Exception):  # standard error may be no file
            faulthandler.enable()
    from jax.errors import JaxRuntimeError  # imported late, so that wrong flags fail at once

    from jaxcnn.train import train_and_evaluate

    if call.place is not None:
        join(call.place)
    try:
        train_and_evaluate(call.config, call.workdir)
    except JaxRuntimeError as error:  # usually out of memory
        if call.place is not None:
            wait_for_verdict()
        reason = f"{error}".splitlines()[0][:200]
        say(
            f"{program}: XLA cannot go on ({reason}); if memory is short, give a smaller "
            "config.batch_size"
        )
        return 2
    return 0


def _report_unraisable(unraisable: Any) -> None:
    """Print an exception that cannot be caught, unless it is of writes that Orbax abandoned."""
    if "Event loop is closed" not in f"{unraisable.exc_value}":
        sys.__unraisablehook__(unraisable)


def _help(program: str) -> str:
    return _HELP.format(
        program=program,
        shipped=textwrap.fill(
            f"shipped are {', '.join(shipped_configs())}",
            width=79,  # of 80 columns; a semicolon follows
            initial_indent=_INDENT,
            subsequent_indent=_INDENT,
        ),
        settings=describe_settings(line_width()),
    )


def _parse(argv: Sequence[str], program: str) -> _Call:
    """Parse the flags and load the config file.

    Raises:
        ConfigError: one line on a wrong flag, or on what failed in the config file.
    """
    from absl import flags
    from ml_collections import config_flags

    arguments = list(_with_paths(argv))
    overrides = (re.match(r"--?config\.([^=]*)", argument) for argument in arguments)
    check_settings([override[1] for override in overrides if override])
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, "config file", flag_values=values, sys_argv=arguments
    )
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
    flags.DEFINE_boolean("distributed", False, "one of several processes", flag_values=values)
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0", flag_values=values)
    flags.DEFINE_integer("num_processes", None, "of the run", flag_values=values)
    flags.DEFINE_integer("process_id", None, "of this process", flag_values=values)
    flags.DEFINE_integer("verbosity", None, "of logs", short_name="v", flag_values=values)
    try:
        _, *rest = values([program, *arguments])
    except flags.UnrecognizedFlagError as error:
        raise ConfigError(_explain_unknown(error)) from error
    except Exception as error:  # a config file may raise anything
        raise ConfigError(_explain(error)) from error
    if rest:
        hint = f"did you mean --config {rest[0]}?" if rest[0] in shipped_configs() else ""
        raise ConfigError(f"unexpected argument {rest[0]!r}; {hint or f'see {program} --help'}")
    return _check(values)


def _check(values: Any) -> _Call:
    """Check the values of the flags, and find the default folder.

    Raises:
        ConfigError: if there is no config.
    """
    from ml_collections import ConfigDict, config_flags

    if values.config is None:
        raise ConfigError("no --config given; give a name or a file, such as --config lenet")
    path, _, variant = config_flags.get_config_filename(values["config"]).partition(":")
    if not isinstance(values.config, ConfigDict):
        raise ConfigError(
            f"get_config() in {path!r} must return a ConfigDict, as the shipped configs do"
        )
    workdir = values.workdir
    if workdir is None:  # runs/resnet18 for configs/resnet18.py, runs/resnet18-smoke for a variant
        workdir = Path("runs") / "-".join(filter(None, (Path(path).stem, variant)))
    given = values.coordinator, values.num_processes, values.process_id
    place = check_place(values.distributed, Place(*given))
    return _Call(values.config, workdir, values.verbosity, place)


def _with_paths(argv: Sequence[str]) -> Iterator[str]:
    """Yield the arguments, with the path of a shipped config in place of its name."""
    previous = ""
    for argument in argv:
        if flag := re.fullmatch(r"(--?config=)(.*)", argument):
            yield flag[1] + _existing(find_config(flag[2]))
        elif previous in ("--config", "-config"):
            yield _existing(find_config(argument))
        else:
            yield argument
        previous = argument


def _existing(config: str) -> str:
    path = config.partition(":")[0]
    if not Path(path).is_file():
        raise ConfigError(
            f"the config file {path!r} does not exist; shipped are {', '.join(shipped_configs())}"
        )
    return config


def _explain_unknown(error: Any) -> str:
    """Return one line on a flag that does not exist: settings take --config. before their key."""
    setting = find_setting(error.flagname)
    if setting is None:
        return f"{error}"
    return f"unknown flag --{error.flagname} (did you mean --config.{setting}?)"


def _explain(error: BaseException) -> str:
    """Return one line: the message about a wrong flag, or what failed in the config file."""
    from absl import flags

    if isinstance(error, JaxcnnError | flags.Error) and "config file" not in f"{error}":
        return f"{error}"
    while inner := error.__cause__ or error.__context__:
        error = inner
    last_line = f"{type(error).__name__}: {error}".strip().splitlines()[-1].strip()
    return f"the config file fails: {last_line}"
