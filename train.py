"""Train a model: `python train.py --config configs/lenet.py [--workdir DIR] [--config.key=value]`.

The same as `jaxcnn train`; see `python train.py --help`.
"""

import sys

from jaxcnn.cli.train import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], program="train.py"))
