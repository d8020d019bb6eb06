"""Image classification sets of TFDS that are prepared on disk, read without TensorFlow."""

import io
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from jaxcnn.data.cache import tfds_root
from jaxcnn.data.dataset import Dataset
from jaxcnn.data.decode import decode
from jaxcnn.data.idx_folder import EMNIST, first_label, name_classes
from jaxcnn.data.sources import (
    Source,
    Splits,
    check_fit,
    describe_flaws,
    image_paths,
    listed,
    order_by_hash,
    split_by_hash,
)
from jaxcnn.errors import ConfigError, DataError

_NAME = re.compile(r"([\w.-]+)(?:/([\w.-]+))?(?::(\d+\.\d+\.\d+))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_TEST_FRACTION = 0.2  # of a set that has no test split


def open_tfds(
    name: str,
    image_size: int | None = None,
    data_dir: str | Path | None = None,
    aspect_ratio: str = "crop",
) -> Source:
    """Find a data set that TFDS has prepared; docs/data.md says how it is prepared.

    Its splits `train` and `test` are taken, or `validation` if there is no `test`. Of a set that
    has neither, a fifth of each class becomes the test set. EMNIST's images, which TFDS has with
    rows and columns exchanged, as they are published, are turned upright, and its classes named.

    Args:
        name: TFDS's, as 'cifar10', 'emnist/letters' (with a config) or 'cifar10:3.0.2' (with a
            version; else the newest).
        image_size: to make squares of at most this side of the pictures; see `from_folder`.
        data_dir: TFDS's data directory; by default $TFDS_DATA_DIR, else ~/tensorflow_datasets.
        aspect_ratio: see `from_folder`.

    Raises:
        ConfigError: if the name is not of this form, or an argument not accepted.
        DataError: if the set is not there, or cannot be read.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ConfigError(
            f"'tfds:{name}' is no name of TFDS's; accepted: tfds:NAME, tfds:NAME/CONFIG, and "
            "either with :VERSION"
        )
    emnist = match[2] if match[1] == "emnist" and match[2] in EMNIST else None
    size, *how = check_fit(image_size, aspect_ratio)
    how += ["upright"] if emnist else []
    folder = tfds_root(data_dir) / match[1] / (match[2] or "")
    prepared = _find_version(f"tfds:{name}", folder, match[3])
    files = [(file.name, file) for file in sorted(prepared.iterdir()) if file.is_file()]
    return Source(
        f"tfds:{name}",
        ("tfds", str(prepared.resolve()), [size, *how] if how else size),
        files,
        [],
        partial(_read, f"tfds:{name}", prepared, image_size, aspect_ratio, emnist),
    )


def _find_version(title: str, folder: Path, version: str | None) -> Path:
    """Return the folder of a version, by default the newest."""
    complete = [file.parent for file in folder.glob("*/dataset_info.json")]
    versions = [each for each in complete if _VERSION.fullmatch(each.name)]
    newest = sorted(versions, key=lambda each: [int(part) for part in each.name.split(".")])
    if version is not None:
        newest = [each for each in versions if each.name == version]
    if newest:
        return newest[-1]
    if versions:
        there = f"there are the versions {', '.join(each.name for each in versions)}"
    elif configs := sorted({each.parents[1].name for each in folder.glob("*/*/dataset_info.json")}):
        there = f"there are the configs {', '.join(configs)}: {title}/CONFIG"
    else:
        there = "docs/data.md says how to prepare it; data_dir= or $TFDS_DATA_DIR says where it is"
    raise DataError(f"{title} is not prepared in {folder}; {there}")


def _read(
    title: str,
    prepared: Path,
    image_size: int | None,
    aspect_ratio: str,
    emnist: str | None,
    folder: Path | None,
) -> tuple[Splits, list[str]]:
    from jaxcnn.data import tfds_builder  # here: TFDS is slow to import, and rarely needed

    class_names, splits = tfds_builder.open_prepared(prepared)
    if "train" not in splits:
        raise DataError(f"{title} has no split 'train', only {', '.join(splits)}")
    held_out = next((split for split in ("test", "validation") if split in splits), None)
    parts: list[tuple[str, Sequence[int]]]
    if held_out:
        parts = [(split, range(len(splits[split]))) for split in ("train", held_out)]
    else:
        every = [label for _, label in tfds_builder.read_prepared(prepared, splits["train"])]
        parts = [("train", places) for places in _split(title, np.array(every), class_names)]
    labels: list[int] = []
    names = [f"{split} {i}" for split, places in parts for i in places]

    def pictures() -> Iterator[tuple[str, bytes]]:
        for split, places in parts:
            for content, label in tfds_builder.read_prepared(prepared, splits[split], places):
                labels.append(label)
                yield names[len(labels) - 1], _turn(content) if emnist else content

    counts, paths = [len(places) for _, places in parts], image_paths(folder)
    images = decode(title, pictures(), counts, image_size, aspect_ratio, paths)
    both = np.split(np.array(labels, np.int32), counts[:1])
    if emnist:
        first = first_label(emnist)
        found = dict(zip(("train", "test"), both, strict=True))
        class_names = name_classes(title, found, first, EMNIST[emnist])
        both = [each - first for each in both]
    made = Splits(*(Dataset(*pair, class_names) for pair in zip(images, both, strict=True)))
    left_out = [split for split in splits if split not in ("train", held_out)]
    notes = [f"splits left out: {listed(left_out)}"] if left_out else []
    return made, notes + describe_flaws(title, made, names)


def _turn(content: bytes) -> bytes:
    """Exchange the rows and columns of an encoded picture."""
    turned = io.BytesIO()
    with Image.open(io.BytesIO(content)) as image:
        image.transpose(Image.Transpose.TRANSPOSE).save(turned, "PNG")
    return turned.getvalue()


def _split(title: str, labels: np.ndarray, class_names: Sequence[str]) -> list[list[int]]:
    """Return the places of the training and the test set, each class split alike."""
    single = np.flatnonzero(np.bincount(labels, minlength=len(class_names)) == 1)
    if len(single):
        raise DataError(
            f"{title} has no test split, and a single picture of the class "
            f"{class_names[single[0]]!r}, which cannot be split; prepare more, or leave it out"
        )
    names = [f"train {i}" for i in range(len(labels))]
    parts: list[list[int]] = [[], []]
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        halves = split_by_hash([names[i] for i in places], _TEST_FRACTION, seed=0)
        for part, half in zip(parts, halves, strict=True):
            part += places[half].tolist()
    return [[part[i] for i in order_by_hash([names[j] for j in part])] for part in parts]
