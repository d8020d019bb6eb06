"""Files in MNIST's format of any make: MNIST, KMNIST, EMNIST and what is written like them."""

import gzip
import re
import zlib
from functools import partial
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase, digits

import numpy as np

from jaxcnn.data.dataset import Dataset
from jaxcnn.data.idx import parse_idx
from jaxcnn.data.sources import Source, Splits, describe_flaws
from jaxcnn.errors import DataError
from jaxcnn.files import local_path

# Such as train-images-idx3-ubyte.gz, t10k-labels.idx1-ubyte, emnist-letters-test-images-idx3-ubyte
_NAME = re.compile(r"(.*?)[-_]?(train|t10k|test)-(images|labels)[-.]idx\d-ubyte(\.gz)?")
_SPLITS = {"train": "train", "t10k": "test", "test": "test"}

# The classes of EMNIST's data sets in the order of their labels, from the mapping files that come
# with them. Where upper and lower case look alike, "balanced" and "bymerge" join them.
_MERGED = digits + ascii_uppercase + "abdefghnqrt"
EMNIST = {
    "balanced": _MERGED,
    "byclass": digits + ascii_uppercase + ascii_lowercase,
    "bymerge": _MERGED,
    "digits": digits,
    "letters": ascii_uppercase,
    "mnist": digits,
}

_Files = dict[tuple[str, str], Path]  # (split, 'images' or 'labels') -> file


def open_idx(path: str | Path) -> Source:
    """Find a data set in MNIST's format.

    The four files are named as MNIST's (`train-images-idx3-ubyte`, `t10k-labels-idx1-ubyte`), with
    any prefix, such as EMNIST's (`emnist-letters-test-images-idx3-ubyte`), compressed (.gz) or not.
    The names of the classes are EMNIST's by the prefix, else the numbers of the labels. EMNIST's
    images, which are published with rows and columns exchanged, are turned upright.

    Args:
        path: of the folder; of a folder with several data sets, with the prefix of one, as
            'emnist/emnist-letters'.

    Raises:
        ConfigError: if the path is empty or a URL.
        DataError: if the files are not there, or not of this format.
    """
    given = local_path(path, "the folder of IDX files")
    folder, prefix = (given, None) if given.is_dir() else (given.parent, given.name)
    if not folder.is_dir():
        raise DataError(f"the folder of IDX files {str(path)!r} does not exist")
    found = _find(folder)
    if prefix is None and len(found) == 1:
        prefix = next(iter(found))
    if prefix is None or prefix not in found:
        sets = ", ".join(f"idx:{folder / each}" if each else f"idx:{folder}" for each in found)
        raise DataError(
            f"idx:{path} is no data set; "
            + (f"found are {sets}" if found else "there must be train-images-idx3-ubyte and so on")
        )
    files, title = found[prefix], f"idx:{path}"
    missing = [
        f"{split} {kind}"
        for split in ("train", "test")
        for kind in ("images", "labels")
        if (split, kind) not in files
    ]
    if missing:
        raise DataError(f"{title} has no file of the {' and the '.join(missing)}")
    listed = [(file.name, file) for file in files.values()]
    where = str((folder / prefix).resolve())
    return Source(title, ("idx", where, None), listed, [], partial(_read, title, files, prefix))


def _find(folder: Path) -> dict[str, _Files]:
    """Return the files of each data set in a folder, by the prefix of their names."""
    found: dict[str, _Files] = {}
    for file in sorted(folder.iterdir(), reverse=True):  # uncompressed files come last, and stay
        match = _NAME.fullmatch(file.name)
        if match and file.is_file():
            key = _SPLITS[match[2]], match[3]
            found.setdefault(match[1], {})[key] = file
    return dict(sorted(found.items()))


def _read(title: str, files: _Files, prefix: str, _: Path | None) -> tuple[Splits, list[str]]:
    images = {split: _read_images(files[split, "images"]) for split in ("train", "test")}
    labels = {split: _read_array(files[split, "labels"]) for split in ("train", "test")}
    for split in images:
        if labels[split].shape != images[split].shape[:1]:
            raise DataError(
                f"{title}: {files[split, 'labels'].name} has {list(labels[split].shape)} labels, "
                f"and {files[split, 'images'].name} {len(images[split])} images"
            )
    if images["train"].shape[1:] != images["test"].shape[1:]:
        raise DataError(f"{title}: the images of train and test are of different sizes")
    kind = prefix.removeprefix("emnist-")
    is_emnist = kind != prefix and kind in EMNIST
    if is_emnist:
        images = {split: array.swapaxes(1, 2) for split, array in images.items()}
    first = first_label(kind) if is_emnist else 0
    class_names = name_classes(title, labels, first, EMNIST[kind] if is_emnist else None)
    splits = Splits(
        *(
            Dataset(
                np.ascontiguousarray(images[split]),
                labels[split].astype(np.int32) - first,
                class_names,
            )
            for split in images
        )
    )
    names = [f"{split} {i}" for split in images for i in range(len(images[split]))]
    return splits, describe_flaws(title, splits, names)


def first_label(emnist: str) -> int:
    """Return the smallest label of one of EMNIST's sets."""
    return 1 if emnist == "letters" else 0


def name_classes(
    title: str, labels: dict[str, np.ndarray], first: int, names: str | None
) -> tuple[str, ...]:
    """Return the names of the classes: those given, if the labels fit, or else their numbers.

    Args:
        title: of the data set.
        labels: of each split.
        first: the smallest that there may be.
        names: one letter for each class from that on; None for numbers.

    Raises:
        DataError: if a label has no name.
    """
    smallest = min(int(each.min()) for each in labels.values())
    largest = max(int(each.max()) for each in labels.values())
    if names is None:
        return tuple(str(label) for label in range(largest + 1))
    if smallest < first or largest - first >= len(names):
        raise DataError(
            f"{title} has labels from {smallest} to {largest}; EMNIST's of this name are from "
            f"{first} to {first + len(names) - 1}"
        )
    return tuple(names)


def _read_images(path: Path) -> np.ndarray:
    images = _read_array(path)
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[3] not in (1, 3) or images.size == 0:
        raise DataError(f"{str(path)!r} has the shape {list(images.shape)}; it must be [N, H, W]")
    return images


def _read_array(path: Path) -> np.ndarray:
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        return parse_idx(content)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"cannot read {str(path)!r}: {error}; get the file again") from error
