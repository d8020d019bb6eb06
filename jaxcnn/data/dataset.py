"""A data set as arrays: what every loader returns, and what training accepts."""

import hashlib
import math
import reprlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxcnn.errors import ConfigError

_PART_BYTES = 2**24  # of an array that may be larger than memory, looked at together


class SelectedImages:
    """Images of an array on disk, which may be larger than memory: each is read when it is indexed.

    Args:
        images: [N, ...].
        places: [M], of the images in it.

    >>> images = SelectedImages(np.arange(5)[:, None], np.array([4, 2, 0]))
    >>> images.shape, images[1:].tolist(), np.asarray(images).tolist()
    ((3, 1), [[2], [0]], [[4], [2], [0]])
    """

    def __init__(self, images: Any, places: np.ndarray):
        self._images, self._places = images, places
        self.shape, self.dtype = (len(places), *images.shape[1:]), images.dtype
        self.ndim, self.size = images.ndim, math.prod(self.shape)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> np.ndarray:
        return np.asarray(self._images[self._places[index]])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


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
        if isinstance(self.images, SelectedImages):
            return self.take(np.arange(min(count, len(self.labels))))
        return Dataset(self.images[:count], self.labels[:count], self.class_names)

    def take(self, places: np.ndarray) -> "Dataset":
        """Return the examples at these places, in this order.

        >>> data = Dataset(np.zeros((5, 2, 2, 1), np.uint8), np.arange(5), tuple("abcde"))
        >>> data.take(np.array([3, 1])).labels
        array([3, 1])
        """
        images: Any = self.images
        images = SelectedImages(images, places) if _is_on_disk(images) else images[places]
        return Dataset(images, self.labels[places], self.class_names)

    def digest(self) -> str:
        """Return the SHA-256 of the images and labels, in their order, in hexadecimal.

        >>> data = Dataset(np.zeros((5, 2, 2, 1), np.uint8), np.arange(5), tuple("abcde"))
        >>> data.digest()[:8]
        'e232b26f'
        """
        digest = hashlib.sha256()
        for array in (self.images, self.labels):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            for part in row_slices(array):
                digest.update(np.ascontiguousarray(array[part]).data)
        return digest.hexdigest()


def _is_on_disk(images: Any) -> bool:
    """Return whether images are read when they are used: views of a memory-mapped file, too."""
    while images is not None:
        if isinstance(images, np.memmap | SelectedImages):
            return True
        images = getattr(images, "base", None)
    return False


def row_slices(array: np.ndarray) -> Iterator[slice]:
    """Yield slices of a few megabytes that together are all rows of an array.

    What is asked of all pixels is asked of one such part after the other: the images may be
    memory-mapped, and more than memory holds.

    >>> list(row_slices(np.zeros((3, 4000, 1000, 3), np.uint8)))
    [slice(0, 1, None), slice(1, 2, None), slice(2, 3, None)]
    """
    row_bytes = array.dtype.itemsize * math.prod(array.shape[1:])
    rows = max(_PART_BYTES // max(row_bytes, 1), 1)
    for start in range(0, len(array), rows):
        yield slice(start, min(start + rows, len(array)))


def is_constant(images: np.ndarray) -> bool:
    """Return whether all pixels are the same; the first parts of most images tell.

    >>> is_constant(np.zeros((3, 4, 4, 1), np.uint8)), is_constant(np.arange(4)[:, None])
    (True, False)
    """
    first = images[:1].ravel()[0]
    return all((images[part] == first).all() for part in row_slices(images))


def check_split(split: str) -> None:
    """Check that `split` is 'train' or 'test'.

    Raises:
        ValueError: if it is neither.

    >>> check_split("train")
    """
    if split not in ("train", "test"):
        raise ValueError(f"unknown split {split!r}; accepted: 'train', 'test'")


def from_arrays(images: Any, labels: Any, class_names: Sequence[str] | None = None) -> Dataset:
    """Make a data set of arrays, as they are loaded from anywhere.

    Args:
        images: uint8, or floating point in [0, 1], [N, H, W, C] or, if they are gray, [N, H, W].
        labels: [N], integers from 0, or str, the name of each image's class.
        class_names: the name of each class; by default the numbers, or the names that occur,
            sorted.

    Returns:
        Images, uint8 [N, H, W, C], labels, int32 [N], and the class names.

    Raises:
        ConfigError: if an array is of another dtype, range or shape, or a label has no name.

    >>> from_arrays(np.full((3, 8, 8), 0.5), ["dog", "cat", "dog"])[1:]
    (array([1, 0, 1], dtype=int32), ('cat', 'dog'))
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype.kind == "f" and images.size and 0 <= images.min() <= images.max() <= 1:
        images = to_uint8(images)
    names: Any = class_names
    if labels.dtype.kind in "UO" and labels.ndim == 1:
        labels, names = _number_names(labels, class_names)
    elif class_names is None:
        is_numbers = labels.dtype.kind in "iu" and labels.size
        names = [str(label) for label in range(int(labels.max()) + 1 if is_numbers else 1)]
    return check_dataset(Dataset(images, labels, names), "data")


def _number_names(
    labels: np.ndarray, class_names: Sequence[str] | None
) -> tuple[np.ndarray, Sequence[str]]:
    """Return the labels as places in the class names, which are those that occur if not given."""
    names = sorted({str(label) for label in labels}) if class_names is None else list(class_names)
    place = {name: i for i, name in enumerate(names)}
    unknown = next((str(label) for label in labels if str(label) not in place), None)
    if unknown is not None:
        raise ConfigError(f"a label is {unknown!r}, which is not one of class_names")
    return np.array([place[str(label)] for label in labels], np.int32), names


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Return floating-point images in [0, 1] as pixels from 0 to 255.

    >>> to_uint8(np.array([0.0, 0.5, 1.0]))
    array([  0, 128, 255], dtype=uint8)
    """
    return np.floor(255 * images.astype(np.float32) + 0.5).astype(np.uint8)


def check_dataset(dataset: Any, name: str) -> Dataset:
    """Check that an object follows the data set protocol, and return it as a `Dataset`.

    The protocol is what training needs of any data set. The object, of whatever type, has three
    attributes:

    - `images`: an array (NumPy, JAX or any that NumPy can read), uint8 [N, H, W, C], not empty.
      Pixels are from 0 to 255: images of 0 and 1 alone are refused, since somebody forgot to
      multiply them, and so are square images in PyTorch's order [N, C, H, W].
    - `labels`: an array of integers [N], from 0 to len(class_names) - 1.
    - `class_names`: a sequence of str, not empty. Names may occur twice, as two of ImageNet's do.

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
    given = f"{name} is {array.dtype} {list(array.shape)}"
    if array.dtype != np.uint8 or array.ndim != 4 or array.size == 0:
        raise ConfigError(f"{given}; it must be uint8 [N, H, W, C], no axis empty{_advice(array)}")
    if is_channels_first(array.shape[1:]):
        raise ConfigError(
            f"{given}, which looks like [N, C, H, W]; it must be [N, H, W, C]: "
            "images.transpose(0, 2, 3, 1)"
        )
    if _are_zeros_and_ones(array):
        raise ConfigError(
            f"{given} of 0 and 1 alone; pixels must be from 0 to 255: multiply images in [0, 1] by "
            "255 before they become uint8"
        )
    return array


def _are_zeros_and_ones(images: np.ndarray) -> bool:
    """Return whether 1 is the highest pixel; the first part of most images tells."""
    highest = 0
    for part in row_slices(images):
        highest = max(highest, int(images[part].max()))
        if highest > 1:
            return False
    return highest == 1


def _advice(images: np.ndarray) -> str:
    """Return how to make what is accepted of these, or '' where that is not plain."""
    if images.dtype == np.uint8:
        return "; gray images take images[..., None]" if images.ndim == 3 else ""
    if images.dtype.kind not in "biuf" or not images.size:
        return ""
    low, high = images.min(), images.max()
    if not np.isfinite(low) or not np.isfinite(high):
        return "; some of these are not finite"
    if low < 0 or high > 255:
        return f"; these are {low:g} to {high:g}, so scale them to 0 to 255"
    pixels = "(255 * images)" if high <= 1 else "images"
    return f"; these are {low:g} to {high:g}, so take {pixels}.round().astype('uint8')"


def is_channels_first(image_shape: Sequence[int]) -> bool:
    """Return whether a shape is that of a square image in PyTorch's order, [C, H, W].

    Taken as [H, W, C], it would have as many channels as columns, and 1, 3 or 4 rows.

    >>> is_channels_first((3, 32, 32)), is_channels_first((32, 32, 3)), is_channels_first((4, 4, 4))
    (True, False, False)
    """
    first, second, third = image_shape
    return first in (1, 3, 4) and second == third > 4


def _check_class_names(class_names: Any, name: str) -> tuple[str, ...]:
    if isinstance(class_names, np.ndarray):
        class_names = class_names.tolist()
    is_sequence = isinstance(class_names, Sequence) and not isinstance(class_names, str)
    if not (is_sequence and class_names and all(isinstance(each, str) for each in class_names)):
        raise ConfigError(
            f"{name} is {reprlib.repr(class_names)}; it must be a sequence of str, one for each "
            "class"
        )
    return tuple(class_names)


def _check_labels(labels: Any, name: str, num_examples: int, num_classes: int) -> np.ndarray:
    array = _as_array(labels, name)
    if array.dtype.kind not in "iu" or array.shape != (num_examples,):
        raise ConfigError(
            f"{name} is {array.dtype} {list(array.shape)}; it must be integers [{num_examples}], "
            f"one for each image{_label_advice(array, num_examples)}"
        )
    wrong = array[(array < 0) | (array >= num_classes)]
    if wrong.size:
        raise ConfigError(
            f"{name} holds {wrong[0]}; with {num_classes} class_names, labels must be from 0 to "
            f"{num_classes - 1}{_range_advice(array, num_classes)}"
        )
    return array.astype(np.int32, copy=False)


def _label_advice(labels: np.ndarray, num_examples: int) -> str:
    if labels.shape == (num_examples, 1):
        return "; take labels[:, 0]"
    if labels.ndim == 2 and len(labels) == num_examples:
        return "; of one-hot rows take labels.argmax(axis=1)"
    return ""


def _range_advice(labels: np.ndarray, num_classes: int) -> str:
    counts_from_one = labels.min() == 1 and labels.max() == num_classes
    return ": subtract 1" if counts_from_one else ""


def _as_array(value: Any, name: str) -> Any:
    if not (hasattr(value, "dtype") and hasattr(value, "shape")):
        raise ConfigError(f"{name} is of type {type(value).__name__}; it must be an array")
    return value if isinstance(value, SelectedImages) else np.asarray(value)
