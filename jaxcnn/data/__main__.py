"""Prepare Fashion-MNIST ahead of training: `python -m jaxcnn.data`; with `--check`, only look."""

import argparse
import sys

from jaxcnn.data.fashion_mnist import NoSourceError, is_available_offline, load_fashion_mnist
from jaxcnn.errors import DataError


def main(argv: list[str] | None = None) -> int:
    """Return the exit status.

    0 if the data are there; 3 if they are nowhere to be had; 1 for anything else. With `--check`, 0
    if the data are prepared or the published files are on this machine, 1 otherwise.
    """
    parser = argparse.ArgumentParser(prog="python -m jaxcnn.data", description="Prepare the data.")
    parser.add_argument("--check", action="store_true", help="only look whether they are there")
    if parser.parse_args(argv).check:
        return 0 if is_available_offline() else 1
    try:
        load_fashion_mnist("train")
    except DataError as error:
        print(error, file=sys.stderr)
        return 3 if isinstance(error, NoSourceError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
