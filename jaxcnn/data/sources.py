"""Data sets of one's own: both splits, checked, and kept decoded in a cache that is verified.

Each kind of source (`folder`, `idx_folder`, `tfds_folder`) finds its files and says how they are
read; here they are read once, and memory-mapped at every later load.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL

from jaxcnn.data.dataset import Dataset
from jaxcnn.data.decode import say
from jaxcnn.errors import ConfigError, DataError, did_you_mean
from jaxcnn.files import hold_lock, is_url, local_path, sync
from jaxcnn.pictures import ASPECT_RATIOS

_FORMAT = 1  # of the cache; a change makes every copy anew
_SHOWN = 3  # names that a message lists


class Splits(NamedTuple):
    """The training and the test set of a source."""

    train: Dataset
    test: Dataset


class Source(NamedTuple):
    """A data set that can be read.

    Attributes:
        title: for messages, such as 'folder:pictures'.
        settings: what the arrays depend on, apart from the files: the kind of source, where it is,
            and more.
        files: (name, file) of all that the arrays are made of.
        notes: what finding the files has shown, a line each.
        read: reads the files; returns both splits and more notes. Images that may be more than
            memory holds are written to the folder that it is given, as `image_paths` says, if it is
            not None (see `jaxcnn.data.decode.decode`).
    """

    title: str
    settings: tuple[str, str, Any]
    files: Sequence[tuple[str, Path]]
    notes: Sequence[str]
    read: Callable[[Path | None], tuple[Splits, list[str]]]


def load_source(source: Source, data_dir: str | Path | None, tell: bool = True) -> Splits:
    """Return both splits of a source: those that are kept, or else read now, and kept.

    Args:
        source: what to load.
        data_dir: TFDS's data directory. The arrays are kept within it, in `jaxcnn-arrays`, if it
            is given here or as $TFDS_DATA_DIR and is a folder that can be written, else in
            ~/.cache/jaxcnn.
        tell: whether to print the notes to standard error.

    Raises:
        DataError: if the files cannot be read, or are no data set.
    """
    place = cache_root(data_dir) / _place(source)
    splits, notes = _load(source, place, _fingerprint(source))
    if tell:
        for note in (*source.notes, *notes):
            say(f"note: {note}")
    return splits


def image_paths(folder: Path | None) -> list[Path] | None:
    """Return the files for the images of the training and the test set.

    >>> image_paths(Path("folder"))
    [PosixPath('folder/train_images.npy'), PosixPath('folder/test_images.npy')]
    """
    return None if folder is None else [folder / f"{name}_images.npy" for name in Splits._fields]


def cache_root(data_dir: str | Path | None) -> Path:
    """Return the folder in which decoded arrays are kept.

    >>> import tempfile
    >>> cache_root(tempfile.gettempdir()).name
    'jaxcnn-arrays'
    """
    environment = os.environ.get("TFDS_DATA_DIR", "")
    root = None
    if data_dir:
        root = local_path(data_dir, "data_dir")
    elif environment and not is_url(environment):  # on a store, nothing can be mapped to memory
        root = local_path(environment, "$TFDS_DATA_DIR")
    if root and os.access(root, os.W_OK):
        return root / "jaxcnn-arrays"
    base = os.environ.get("XDG_CACHE_HOME") or local_path("~/.cache", "the cache")
    return Path(base) / "jaxcnn" / "arrays"


def listed(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are.

    >>> listed(["a", "b", "c", "d", "e"])
    "'a', 'b', 'c' and 2 more"
    """
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    more = len(names) - _SHOWN
    return f"{shown} and {more:,} more" if more > 0 else shown


def count_of(number: int, noun: str) -> str:
    """Return a number with its noun.

    >>> count_of(1, "image"), count_of(1200, "image")
    ('1 image', '1,200 images')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def check_fit(image_size: int | None, aspect_ratio: str) -> list[Any]:
    """Check how pictures become squares, and return it for `Source.settings`.

    Args:
        image_size: see `jaxcnn.pictures.fit_picture`; None to leave them as they are.
        aspect_ratio: likewise.

    Raises:
        ConfigError: if one is not accepted, or the other has no effect without it.

    >>> check_fit(64, "crop"), check_fit(64, "pad")
    ([64], [64, 'pad'])
    """
    if aspect_ratio not in ASPECT_RATIOS:
        hint, accepted = did_you_mean(aspect_ratio, ASPECT_RATIOS), ", ".join(ASPECT_RATIOS)
        raise ConfigError(f"aspect_ratio is {aspect_ratio!r}{hint}; accepted: {accepted}")
    if image_size is None and aspect_ratio != "crop":
        raise ConfigError(f"aspect_ratio is {aspect_ratio!r}, which needs an image_size; give it")
    if image_size is not None and image_size < 1:
        raise ConfigError(f"image_size is {image_size}; it must be at least 1")
    # Without the word that was the only one once, so that what is kept of that time stays.
    return [image_size] if aspect_ratio == "crop" else [image_size, aspect_ratio]


def split_by_hash(names: Sequence[str], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Split examples of one class at random, by the hash of (seed, name).

    An example that is added or removed moves few of the others, on every machine alike.

    Args:
        names: of the examples.
        fraction: of them in the second part; at least one is in each.
        seed: of the split.

    Returns:
        The places of both parts in `names`.

    >>> split_by_hash(["a", "b", "c", "d"], 0.25, seed=0)
    ([0, 1, 2], [3])
    """
    order = order_by_hash(names, seed)
    count = min(max(1, round(fraction * len(names))), len(names) - 1)
    return sorted(order[count:]), sorted(order[:count])


def order_by_hash(names: Sequence[str], seed: int = 0) -> list[int]:
    """Return the places of the names in an order that mixes classes, so that any part has all.

    >>> order_by_hash(["a", "b", "c"])
    [0, 2, 1]
    """
    keys = [hashlib.sha256(f"{seed}:".encode() + os.fsencode(name)).digest() for name in names]
    return sorted(range(len(names)), key=keys.__getitem__)


def describe_flaws(title: str, splits: Splits, names: Sequence[str]) -> list[str]:
    """Return a line for each thing about decoded data that training would not notice.

    These are classes without images in a split, and images with the same pixels as one of another
    class or of the other split.

    Args:
        title: of the data set.
        splits: the data.
        names: of the training images, then of the test images.

    Raises:
        DataError: if all training images are of one class.
    """
    class_names = splits.train.class_names
    present = set(splits.train.labels.tolist())
    if len(present) < 2:
        only = listed([class_names[label] for label in present])
        raise DataError(f"{title} has one class only, {only}; training takes two or more")
    sets = splits._asdict()
    return describe_duplicates(sets, names) + describe_missing(sets)


def describe_missing(sets: Mapping[str, Dataset]) -> list[str]:
    """Return a line for each set that has no images of some of the classes."""
    notes = []
    for split, dataset in sets.items():
        present = set(dataset.labels.tolist())
        missing = [name for label, name in enumerate(dataset.class_names) if label not in present]
        if missing:
            kind = {"train": "training"}.get(split, split)
            plural = "es" * (len(missing) > 1)
            notes.append(f"{len(missing)} class{plural} without {kind} images: {listed(missing)}")
    return notes


def describe_duplicates(sets: Mapping[str, Dataset], names: Sequence[str]) -> list[str]:
    """Return lines on images with the same pixels as others that they should not be like.

    Args:
        sets: by the names of their splits, 'train' first.
        names: of the images of all, one after the other.
    """
    seen: dict[str, dict[bytes, tuple[int, str]]] = {}  # digest -> label and name of the first
    notes, position = [], 0
    for split, dataset in sets.items():
        first = seen[split] = {}
        in_train, in_class = [], []
        for image, label in zip(dataset.images, dataset.labels.tolist(), strict=True):
            digest = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
            name = names[position]
            position += 1
            if digest in first and first[digest][0] != label:
                in_class.append((name, first[digest][1]))
            if split != "train" and digest in seen["train"]:
                in_train.append((name, seen["train"][digest][1]))
            first.setdefault(digest, (label, name))
        if in_class:
            notes.append(
                f"{count_of(len(in_class), 'image')} of {split} with the same pixels as one of "
                f"another class: {in_class[0][0]!r} as {in_class[0][1]!r}"
            )
        if in_train:
            notes.append(
                f"{count_of(len(in_train), 'image')} of {split} with the same pixels as one of "
                f"train, so {split} results are too good: {in_train[0][0]!r} as {in_train[0][1]!r}"
            )
    return notes


# The cache: <root>/<place of the source>/<fingerprint of its files>/


# What could not be kept, so that the second split of a run need not be read again: one source.
_UNKEPT: dict[str, tuple[Splits, list[str]]] = {}
# The files of each folder whose digests were right, so that a large set is read once per start.
_VERIFIED: dict[Path, dict[str, tuple[int, int, int]]] = {}


def _place(source: Source) -> str:
    kind, where, *_ = source.settings
    name = re.sub(r"[^A-Za-z0-9]+", "-", Path(where).name)[:40]
    digest = hashlib.sha256(json.dumps(source.settings).encode()).hexdigest()
    return f"{kind}-{name}-{digest[:12]}"


def _fingerprint(source: Source) -> str:
    """Return a digest of the files' names, sizes and times, and of what decodes them."""
    digest = hashlib.sha256(f"{_FORMAT} {PIL.__version__} {source.settings}\n".encode())
    try:
        for name, path in source.files:
            status = path.stat()
            digest.update(os.fsencode(f"{name}\0{status.st_size} {status.st_mtime_ns}\n"))
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r}: {error.strerror}") from None
    return digest.hexdigest()


def _load(source: Source, place: Path, fingerprint: str) -> tuple[Splits, list[str]]:
    if fingerprint in _UNKEPT:
        return _UNKEPT[fingerprint]
    folder = place / fingerprint[:24]
    if found := _read(folder):
        return found
    made = None
    try:
        place.mkdir(parents=True, exist_ok=True)
        with hold_lock(place / ".lock", wait=True):  # one process decodes, others wait
            if found := _read(folder, say):
                return found
            with _replacing(folder) as unfinished:
                made = source.read(unfinished)
                _write(unfinished, *made)
        return _read(folder) or made
    except DataError:
        raise
    except OSError as error:  # of the cache: a full disk, a folder that is read-only
        made = made or source.read(None)
        reason = error.strerror or error
        say(
            f"note: {source.title} cannot be kept decoded in {place} ({reason}), so that the next "
            "start decodes it again"
        )
    _UNKEPT.clear()
    _UNKEPT[fingerprint] = made
    return made


def _read(
    folder: Path, warn: Callable[[str], None] | None = None
) -> tuple[Splits, list[str]] | None:
    """Return what is kept, or None if nothing is, or not what was written."""
    if not folder.is_dir():
        return None
    try:
        record = json.loads((folder / "record.json").read_text())
        splits = Splits(*(_map(folder, split, record) for split in Splits._fields))
        files = {file.name: _identity(file) for file in folder.iterdir()}
        if _VERIFIED.get(folder) == files or _digests(splits) == record["digests"]:
            _VERIFIED[folder] = files
            return splits, record["notes"]
        reason: object = "its arrays have changed"
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        reason = error
    if warn:
        warn(f"note: the decoded copy in {folder} is damaged ({reason}) and is made again")
    return None


def _identity(file: Path) -> tuple[int, int, int]:
    status = file.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _digests(splits: Splits) -> dict[str, str]:
    return {split: data.digest() for split, data in splits._asdict().items()}


def _map(folder: Path, split: str, record: dict[str, Any]) -> Dataset:
    images, labels = (
        np.load(folder / f"{split}_{kind}.npy", mmap_mode="r") for kind in ("images", "labels")
    )
    return Dataset(images, labels, tuple(record["class_names"]))


def _write(folder: Path, splits: Splits, notes: list[str]) -> None:
    """Write the arrays that are not there yet, and the record."""
    for split, dataset in splits._asdict().items():
        images = folder / f"{split}_images.npy"
        if not images.exists():
            np.save(images, dataset.images)
        np.save(folder / f"{split}_labels.npy", dataset.labels)
    record = {
        "class_names": splits.train.class_names,
        "notes": notes,
        "digests": _digests(splits),
    }
    (folder / "record.json").write_text(json.dumps(record))


@contextlib.contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder, which is renamed once its content is complete."""
    unfinished = folder.with_name(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # left by a process that was killed
    try:
        unfinished.mkdir()
        yield unfinished
        sync(unfinished.iterdir())
        for old in folder.parent.glob("[0-9a-f]*"):  # of files that have changed, or damaged
            shutil.rmtree(old, ignore_errors=True)
        unfinished.rename(folder)
        sync([folder.parent])
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
