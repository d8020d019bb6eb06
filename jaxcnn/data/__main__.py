"""Prepare Fashion-MNIST before training: `python -m jaxcnn.data`; `--check` only looks for it."""

import argparse
import sys

from jaxcnn.data.cache import NoSourceError
from jaxcnn.data.fashion_mnist import is_available_offline, load_fashion_mnist
from jaxcnn.errors import JaxcnnError


def main(argv: list[str] | None = None) -> int:
    """Prepare Fashion-MNIST, or with `--check` look whether that needs a network.

    Args:
        argv: the command line, without the program's name.

    Returns:
        The exit status: 0 if the data are ready, 3 if they can neither be found nor downloaded, 1
        for any other error. With `--check`: 0 if the data are prepared or the published files are
        on this machine, else 1.
    """
    parser = argparse.ArgumentParser(prog="python -m jaxcnn.data", description="Prepare the data.")
    parser.add_argument("--check", action="store_true", help="only look whether they are there")
    options = parser.parse_args(argv)
    try:
        if options.check:
            return 0 if is_available_offline() else 1
        load_fashion_mnist("train")
    except JaxcnnError as error:
        print(error, file=sys.stderr)
        return 3 if isinstance(error, NoSourceError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
