"""Print versions, devices, and how convolutions are computed."""

import argparse
import platform
from collections.abc import Iterator

HELP = "versions, devices, and how convolutions run"
EXAMPLE = "jaxcnn info"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: the command takes no arguments."""


def run(options: argparse.Namespace) -> Iterator[str]:
    """Yield what the computation runs on and by which convolution."""
    import jax
    import jaxlib

    import jaxcnn
    from jaxcnn.ops import cpu

    devices = jax.local_devices()
    yield f"jaxcnn       {jaxcnn.__version__}"
    yield f"python       {platform.python_version()}, {platform.system()} {platform.machine()}"
    yield f"jax          {jax.__version__}, jaxlib {jaxlib.__version__}"
    yield f"devices      {len(devices)} x {devices[0].device_kind} ({devices[0].platform})"
    yield f"convolution  {cpu.choose_implementation()} ({cpu.VARIABLE}=auto or xla)"
    yield f"on CPU       {cpu.why_slower() or cpu.status()}"
