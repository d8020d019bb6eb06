"""Draw the bundled sample: `python -m jaxcnn.data.draw_sample [FOLDER of the published files]`."""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn.data.fashion_mnist import DEBIAN_FOLDER, FASHION_MNIST
from jaxcnn.data.idx import find_idx_files, read_idx_split
from jaxcnn.data.sample import SAMPLE_FILE

PER_CLASS = {"train": 200, "test": 100}


def draw_sample(folder: str | Path) -> dict[str, np.ndarray]:
    """Draw the sample from the published files.

    Args:
        folder: where the four IDX files are.

    Returns:
        `<split>_images`, uint8 [N, 28, 28], and `<split>_labels`, uint8 [N], in published order.

    Raises:
        DataError: if a file is missing or wrong.
    """
    paths = find_idx_files(folder)
    arrays = {}
    for split, count in PER_CLASS.items():
        images, labels = read_idx_split(FASHION_MNIST, split, paths)
        random = np.random.default_rng(0)
        drawn = [
            random.choice(np.flatnonzero(labels == label), count, replace=False)
            for label in range(len(FASHION_MNIST.class_names))
        ]
        chosen = np.sort(np.concatenate(drawn))
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = images[chosen], labels[chosen]
    return arrays


if __name__ == "__main__":
    folder = sys.argv[1] if len(sys.argv) > 1 else DEBIAN_FOLDER
    arrays: dict[str, Any] = draw_sample(folder)
    np.savez_compressed(Path(__file__).with_name(SAMPLE_FILE), **arrays)
