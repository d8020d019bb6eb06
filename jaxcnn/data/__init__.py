"""Data sets as arrays in memory, and how they become batches on the device."""

from collections.abc import Callable
from pathlib import Path

from jaxcnn.data.augment import AUGMENTATIONS, MIXINGS
from jaxcnn.data.cache import load_idx_dataset
from jaxcnn.data.dataset import Dataset, check_dataset
from jaxcnn.data.fashion_mnist import load_fashion_mnist
from jaxcnn.data.pipeline import epoch_batches, preprocess
from jaxcnn.data.sample import load_fashion_mnist_sample
from jaxcnn.data.spec import IdxSpec
from jaxcnn.errors import did_you_mean
from jaxcnn.registry import call_entry

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "MIXINGS",
    "Dataset",
    "IdxSpec",
    "check_dataset",
    "epoch_batches",
    "load_dataset",
    "load_fashion_mnist",
    "load_fashion_mnist_sample",
    "load_idx_dataset",
    "preprocess",
]

# What `config.dataset` may be. Each function takes (split, data_dir, data_source) and returns a
# Dataset, or any object that `check_dataset` accepts. Add a data set here: of MNIST's format,
# `functools.partial(load_idx_dataset, SPEC)`.
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
        data_dir: where prepared data are kept; see `load_fashion_mnist`.
        data_source: folder with the published files; see `load_fashion_mnist`.

    Returns:
        Images, uint8 [N, H, W, C], labels, int32 [N], and the class names.

    Raises:
        ValueError: if the name is not registered or the split does not exist.
        ConfigError: if the function does not take these arguments, or `check_dataset` does not
            accept what it returns.
        DataError: if the data cannot be found or downloaded, or are damaged.

    >>> load_dataset("fashion_mnist_sample", "test").images.shape
    (1000, 28, 28, 1)
    """
    if name not in DATASETS:
        hint = did_you_mean(name, DATASETS)
        raise ValueError(f"unknown data set {name!r}{hint}; registered: {', '.join(DATASETS)}")
    entry = f"jaxcnn.data.DATASETS[{name!r}]"
    arguments = f"{entry}(split, data_dir, data_source)"
    dataset = call_entry(DATASETS[name], arguments, split, data_dir, data_source)
    return check_dataset(dataset, f"{entry}({split!r})")
