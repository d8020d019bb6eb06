"""Data sets as arrays in memory, and how they become batches on the device."""

import re
from collections.abc import Callable
from pathlib import Path

from jaxcnn.data.augment import AUGMENTATIONS, MIXINGS, TEST_AUGMENTATIONS
from jaxcnn.data.cache import load_idx_dataset
from jaxcnn.data.dataset import Dataset, check_dataset, check_split, from_arrays
from jaxcnn.data.fashion_mnist import load_fashion_mnist
from jaxcnn.data.folder import from_folder, open_folder
from jaxcnn.data.idx_folder import open_idx
from jaxcnn.data.pipeline import epoch_batches, preprocess
from jaxcnn.data.sample import load_fashion_mnist_sample
from jaxcnn.data.sources import Source, Splits, load_source
from jaxcnn.data.spec import IdxSpec
from jaxcnn.data.statistics import ChannelStatistics, channel_statistics
from jaxcnn.data.tfds_folder import open_tfds
from jaxcnn.errors import ConfigError, did_you_mean
from jaxcnn.registry import call_entry

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "MIXINGS",
    "SOURCES",
    "TEST_AUGMENTATIONS",
    "ChannelStatistics",
    "Dataset",
    "IdxSpec",
    "Source",
    "Splits",
    "channel_statistics",
    "check_dataset",
    "dataset_words",
    "epoch_batches",
    "from_arrays",
    "from_folder",
    "has_pictures",
    "is_dataset",
    "load_dataset",
    "load_fashion_mnist",
    "load_fashion_mnist_sample",
    "load_idx_dataset",
    "load_source",
    "open_folder",
    "open_idx",
    "open_tfds",
    "preprocess",
]

# What `config.dataset` may be: a key of `DATASETS`, or a key of `SOURCES`, a colon, and where the
# data are, as in "folder:pictures".
#
# Each function takes (split, data_dir, data_source) and returns a Dataset, or any object that
# `check_dataset` accepts. Add a data set here: of MNIST's format, with the digests of its files,
# `functools.partial(load_idx_dataset, SPEC)`.
DATASETS: dict[str, Callable[..., Dataset]] = {
    "fashion_mnist": load_fashion_mnist,
    "fashion_mnist_sample": load_fashion_mnist_sample,
}
# Each function takes (where, image_size, data_dir, aspect_ratio) and returns a Source. Add a kind
# of files here.
SOURCES: dict[str, Callable[[str, int | None, str | Path | None, str], Source]] = {
    "folder": lambda where, image_size, _, aspect_ratio: open_folder(
        where, image_size=image_size, aspect_ratio=aspect_ratio
    ),
    "idx": lambda where, *_: open_idx(where),
    "tfds": open_tfds,
}
_PICTURES = ("folder", "tfds")  # kinds of pictures of any size, which become squares


def dataset_words() -> list[str]:
    """Return what `config.dataset` may be, for messages.

    >>> dataset_words()
    ['fashion_mnist', 'fashion_mnist_sample', 'folder:PATH', 'idx:PATH', 'tfds:NAME']
    """
    places = (f"{kind}:{'NAME' if kind == 'tfds' else 'PATH'}" for kind in SOURCES)
    return [*DATASETS, *places]


def is_dataset(word: str) -> bool:
    """Return whether `config.dataset` may be this word; the data need not be there.

    >>> is_dataset("folder:pictures"), is_dataset("folder:"), is_dataset("object Dataset")
    (True, False, False)
    """
    kind, _, where = word.partition(":")
    is_record = re.search(r", object \w+$", where)  # of a run whose test set was an object
    return word in DATASETS or (kind in SOURCES and bool(where.strip()) and not is_record)


def has_pictures(word: str) -> bool:
    """Return whether a word of `config.dataset` is of pictures, which become squares as they load.

    >>> has_pictures("folder:pictures"), has_pictures("fashion_mnist")
    (True, False)
    """
    return word.partition(":")[0] in _PICTURES


def load_dataset(
    name: str,
    split: str,
    data_dir: str | Path | None = None,
    data_source: str | Path | None = None,
    image_size: int | None = None,
    aspect_ratio: str = "crop",
) -> Dataset:
    """Load one split of a data set that a config can name.

    Args:
        name: a key of `DATASETS`, or 'folder:PATH' (see `from_folder`), 'idx:PATH' (`open_idx`) or
            'tfds:NAME' (`open_tfds`). What is noticed about the files of these three is printed
            with the training set, to standard error.
        split: 'train' or 'test'.
        data_dir: where prepared data are kept; see `load_fashion_mnist` and `load_source`.
        data_source: folder with the published files; see `load_fashion_mnist`.
        image_size: to make squares of at most this side of pictures; see `from_folder`.
        aspect_ratio: likewise; of pictures alone.

    Returns:
        Images, uint8 [N, H, W, C], labels, int32 [N], and the class names.

    Raises:
        ValueError: if the name is not registered or the split does not exist.
        ConfigError: if an argument is not accepted, the function does not take these arguments, or
            `check_dataset` does not accept what it returns.
        DataError: if the data cannot be found or downloaded, or are damaged.

    >>> load_dataset("fashion_mnist_sample", "test").images.shape
    (1000, 28, 28, 1)
    """
    if not is_dataset(name):
        hint = did_you_mean(name, DATASETS)
        words = ", ".join(dataset_words())
        raise ValueError(f"unknown data set {name!r}{hint}; registered: {words}")
    if aspect_ratio != "crop" and not has_pictures(name):
        raise ConfigError(
            f"aspect_ratio is {aspect_ratio!r}, but {name} is no folder: or tfds:, whose pictures "
            "become squares; leave it at 'crop'"
        )
    if name not in DATASETS:
        check_split(split)
        kind, _, where = name.partition(":")
        source = SOURCES[kind](where, image_size, data_dir, aspect_ratio)
        splits = load_source(source, data_dir, tell=split == "train")
        return check_dataset(getattr(splits, split), f"{name} ({split})")
    entry = f"jaxcnn.data.DATASETS[{name!r}]"
    arguments = f"{entry}(split, data_dir, data_source)"
    dataset = call_entry(DATASETS[name], arguments, split, data_dir, data_source)
    return check_dataset(dataset, f"{entry}({split!r})")
