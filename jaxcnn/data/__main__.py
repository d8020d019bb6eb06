"""Prepare Fashion-MNIST ahead of training: `python -m jaxcnn.data`; with `--check`, only look.

`--check` succeeds if the data are prepared, or the published files are on this machine.
"""

import sys

from jaxcnn.data.fashion_mnist import is_at_hand, load_fashion_mnist
from jaxcnn.errors import DataError


def main(argv: list[str]) -> int:
    """Return the exit status: 0, or 1 if the data are not there."""
    try:
        if argv == ["--check"]:
            return 0 if is_at_hand() else 1
        load_fashion_mnist("train")
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
