"""A small part of Fashion-MNIST that ships with the package.

2,000 training and 1,000 test images, equally many of each class, drawn at random (seed 0) from the
published files by `jaxcnn/data/draw_sample.py`.
"""

from importlib import resources
from pathlib import Path

import numpy as np

from jaxcnn.data.dataset import Dataset, check_split
from jaxcnn.data.fashion_mnist import FASHION_MNIST

SAMPLE_FILE = "fashion_mnist_sample.npz"


def load_fashion_mnist_sample(
    split: str, data_dir: str | Path | None = None, data_source: str | Path | None = None
) -> Dataset:
    """Load the bundled sample.

    Args:
        split: 'train' (2,000 examples) or 'test' (1,000).
        data_dir: not used; it is there because every loader takes it.
        data_source: likewise.

    Returns:
        Images, uint8 [N, 28, 28, 1], labels, int32 [N], and the ten class names.

    Raises:
        ValueError: if the split does not exist.

    >>> load_fashion_mnist_sample("train").images.shape
    (2000, 28, 28, 1)
    """
    check_split(split)
    path = resources.files("jaxcnn.data") / SAMPLE_FILE
    with path.open("rb") as file, np.load(file) as arrays:
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
    return Dataset(images[..., None], labels.astype(np.int32), FASHION_MNIST.class_names)
