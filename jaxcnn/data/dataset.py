"""A data set in memory: what every loader returns, and what training accepts."""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxcnn.errors import ConfigError


class Dataset(NamedTuple):
    """One split of a data set of labelled images.

    Attributes:
        images: uint8 [N, H, W, C].
        labels: int32 [N], from 0 to len(class_names) - 1.
        class_names: the name of each label.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]

    def first(self, count: int) -> "Dataset":
        """Return the first `count` examples, or all of them if `count` is 0.

        >>> Dataset(np.zeros((5, 2, 2, 1), np.uint8), np.arange(5), tuple("abcde")).first(2).labels
        array([0, 1])
        """
        if count == 0:
            return self
        return Dataset(self.images[:count], self.labels[:count], self.class_names)

    def digest(self) -> str:
        """Return the SHA-256 of the images and labels, in their order, in hexadecimal.

        >>> data = Dataset(np.zeros((5, 2, 2, 1), np.uint8), np.arange(5), tuple("abcde"))
        >>> data.digest()[:8]
        'e232b26f'
        """
        digest = hashlib.sha256()
        for array in (self.images, self.labels):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def check_split(split: str) -> None:
    """Check that `split` is 'train' or 'test'.

    Raises:
        ValueError: if it is neither.

    >>> check_split("train")
    """
    if split not in ("train", "test"):
        raise ValueError(f"unknown split {split!r}; accepted: 'train', 'test'")


def check_dataset(dataset: Any, name: str) -> Dataset:
    """Check that an object follows the data set protocol, and return it as a `Dataset`.

    The protocol is what training needs of any data set. The object, of whatever type, has three
    attributes:

    - `images`: an array (NumPy, JAX or any that NumPy can read), uint8 [N, H, W, C], not empty.
    - `labels`: an array of integers [N], from 0 to len(class_names) - 1.
    - `class_names`: a sequence of str, not empty.

    Args:
        dataset: the object.
        name: what messages call it, such as 'train'.

    Returns:
        The same images and class names, and the labels as int32.

    Raises:
        ConfigError: one line that names the attribute, what was given and what is accepted.

    >>> data = Dataset(np.zeros((2, 28, 28, 1)), np.array([0, 1]), ("cat", "dog"))
    >>> check_dataset(data, "train")
    Traceback (most recent call last):
    jaxcnn.errors.ConfigError: train.images is float64 [2, 28, 28, 1]; it must be uint8 ...
    """
    missing = [field for field in Dataset._fields if not hasattr(dataset, field)]
    if missing:
        raise ConfigError(
            f"{name} is of type {type(dataset).__name__}, which has no {' and no '.join(missing)}; "
            f"it must have the attributes {', '.join(Dataset._fields)}, as jaxcnn.data.Dataset has"
        )
    images = _check_images(dataset.images, f"{name}.images")
    class_names = _check_class_names(dataset.class_names, f"{name}.class_names")
    labels = _check_labels(dataset.labels, f"{name}.labels", len(images), len(class_names))
    return Dataset(images, labels, class_names)


def _check_images(images: Any, name: str) -> np.ndarray:
    array = _as_array(images, name)
    if array.dtype != np.uint8 or array.ndim != 4 or array.size == 0:
        raise ConfigError(
            f"{name} is {array.dtype} {list(array.shape)}; it must be uint8 [N, H, W, C], "
            "each of them at least 1"
        )
    return array


def _check_class_names(class_names: Any, name: str) -> tuple[str, ...]:
    is_sequence = isinstance(class_names, Sequence) and not isinstance(class_names, str)
    if not (is_sequence and class_names and all(isinstance(each, str) for each in class_names)):
        raise ConfigError(
            f"{name} is {class_names!r}; it must be a sequence of str, one for each class"
        )
    return tuple(class_names)


def _check_labels(labels: Any, name: str, num_examples: int, num_classes: int) -> np.ndarray:
    array = _as_array(labels, name)
    if array.dtype.kind not in "iu" or array.shape != (num_examples,):
        raise ConfigError(
            f"{name} is {array.dtype} {list(array.shape)}; it must be integers [{num_examples}], "
            "one for each image"
        )
    wrong = array[(array < 0) | (array >= num_classes)]
    if wrong.size:
        raise ConfigError(
            f"{name} holds {wrong[0]}; with {num_classes} class_names, labels must be from 0 to "
            f"{num_classes - 1}"
        )
    return array.astype(np.int32, copy=False)


def _as_array(value: Any, name: str) -> np.ndarray:
    if not (hasattr(value, "dtype") and hasattr(value, "shape")):
        raise ConfigError(f"{name} is of type {type(value).__name__}; it must be an array")
    return np.asarray(value)
