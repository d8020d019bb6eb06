"""Data sets as arrays in memory, and what turns them into batches on the device."""

from collections.abc import Callable
from pathlib import Path

from jaxcnn.data.dataset import Dataset
from jaxcnn.data.fashion_mnist import load_fashion_mnist
from jaxcnn.data.pipeline import epoch_batches, preprocess
from jaxcnn.data.sample import load_fashion_mnist_sample
from jaxcnn.errors import did_you_mean

__all__ = [
    "DATASETS",
    "Dataset",
    "epoch_batches",
    "load_dataset",
    "load_fashion_mnist",
    "load_fashion_mnist_sample",
    "preprocess",
]

# Each takes (split, data_dir, data_source) and returns a Dataset. Add a data set here.
DATASETS: dict[str, Callable[..., Dataset]] = {
    "fashion_mnist": load_fashion_mnist,
    "fashion_mnist_sample": load_fashion_mnist_sample,
}


def load_dataset(
    name: str,
    split: str,
    data_dir: str | Path | None = None,
    data_source: str | Path | None = None,
) -> Dataset:
    """Load one split of a registered data set.

    Args:
        name: a key of `DATASETS`.
        split: 'train' or 'test'.
        data_dir: where prepared data lie; see `load_fashion_mnist`.
        data_source: folder with the published files; see `load_fashion_mnist`.

    Raises:
        ValueError: if the name is not registered or the split does not exist.
        DataError: if the data are not to be had, or are not what they should be.

    >>> load_dataset("fashion_mnist_sample", "test").images.shape
    (1000, 28, 28, 1)
    """
    if name not in DATASETS:
        hint = did_you_mean(name, DATASETS)
        raise ValueError(f"unknown data set {name!r}{hint}; registered: {', '.join(DATASETS)}")
    return DATASETS[name](split, data_dir, data_source)
