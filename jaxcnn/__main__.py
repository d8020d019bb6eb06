"""The command line: `python -m jaxcnn summary resnet18 --input 96`, `python -m jaxcnn info`."""

import argparse
import platform
import sys

import jax
import jaxlib
from rich.console import Console

from jaxcnn.errors import first_line
from jaxcnn.inspect import layer_summary, summary_table
from jaxcnn.models import create_model
from jaxcnn.ops import cpu


def summary(options: argparse.Namespace) -> None:
    """Print the table of a model's layers."""
    model = create_model(options.model)
    rows = layer_summary(model, (1, options.input, options.input, 1))
    title = f"{options.model}, one image of {options.input} x {options.input} pixels"
    Console(width=None if sys.stdout.isatty() else 120).print(
        summary_table(rows, title, options.depth, options.nchw)
    )


def info(options: argparse.Namespace) -> None:
    """Print what the computation runs on and by which convolution."""
    devices = jax.local_devices()
    print(f"python       {platform.python_version()}, {platform.system()} {platform.machine()}")
    print(f"jax          {jax.__version__}, jaxlib {jaxlib.__version__}")
    print(f"devices      {len(devices)} x {devices[0].device_kind} ({devices[0].platform})")
    print(f"convolution  {cpu.choose_implementation()} ({cpu.VARIABLE}=auto or xla)")
    print(f"on CPU       {cpu.why_slower() or cpu.status()}")


def main(argv: list[str] | None = None) -> int:
    """Run a command; return the exit status: 0, or 2 for a call that is wrong."""
    parser = argparse.ArgumentParser(prog="python -m jaxcnn", description="Look at the models.")
    commands = parser.add_subparsers(required=True, metavar="command")
    command = commands.add_parser("summary", help="the table of a model's layers")
    command.add_argument("model", help="such as resnet18")
    command.add_argument("--input", type=int, default=28, help="pixels of the square image")
    command.add_argument("--depth", type=int, help="1 for the outermost layers; all by default")
    command.add_argument(
        "--nchw", action="store_true", help="shapes in d2l's order, channels first"
    )
    command.set_defaults(run=summary)
    command = commands.add_parser("info", help="versions, devices, and how convolutions run")
    command.set_defaults(run=info)
    options = parser.parse_args(argv)
    try:
        options.run(options)
    except (ValueError, RuntimeError) as error:  # the latter where JAX finds no device
        print(f"python -m jaxcnn: {first_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
