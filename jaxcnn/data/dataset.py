"""What every data set loader returns."""

import hashlib
from typing import NamedTuple

import numpy as np


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

        >>> Dataset(np.zeros((5, 2, 2, 1), np.uint8), np.arange(5), ("a",)).first(2).labels
        array([0, 1])
        """
        if count == 0:
            return self
        return Dataset(self.images[:count], self.labels[:count], self.class_names)

    def digest(self) -> str:
        """Return the SHA-256 of the images and labels, in their order, in hexadecimal.

        >>> Dataset(np.zeros((5, 2, 2, 1), np.uint8), np.arange(5), ("a",)).digest()[:8]
        'e232b26f'
        """
        digest = hashlib.sha256()
        for array in (self.images, self.labels):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def check_split(split: str) -> None:
    """Raise a ValueError unless `split` is 'train' or 'test'.

    >>> check_split("train")
    """
    if split not in ("train", "test"):
        raise ValueError(f"unknown split {split!r}; accepted: 'train', 'test'")
