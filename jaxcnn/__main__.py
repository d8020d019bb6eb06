"""`python -m jaxcnn COMMAND`; see `jaxcnn.cli`."""

import sys

from jaxcnn.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
