"""Data sets on disk: prepared once, memory-mapped at every later load, verified at every load.

In TFDS's data directory, `<name>/<version>` holds what TFDS prepares (PNGs in ArrayRecord files),
and `<name>/<version>-arrays` the same examples in the same order, decoded.
"""

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np

from jaxcnn.data.dataset import Dataset, check_split, row_slices
from jaxcnn.data.spec import IdxSpec
from jaxcnn.errors import DataError
from jaxcnn.files import hold_lock, local_path


class NoSourceError(DataError):
    """A data set that is not on this machine and cannot be downloaded."""


def load_idx_dataset(
    spec: IdxSpec,
    split: str,
    data_dir: str | Path | None = None,
    data_source: str | Path | None = None,
) -> Dataset:
    """Load a data set of MNIST's format; `functools.partial` of a spec makes a loader of it.

    Args:
        spec: the data set.
        split: 'train' or 'test'.
        data_dir: TFDS's data directory; by default $TFDS_DATA_DIR, else ~/tensorflow_datasets.
        data_source: folder with the four published IDX files, compressed (.gz) or not; by default
            that of Debian's package, if it is installed, else TFDS downloads them.

    Returns:
        Read-only images, uint8 [N, H, W, C], and labels, int32 [N], in TFDS's order.

    Raises:
        ValueError: if the split does not exist.
        ConfigError: if a path is empty or a URL, or its home folder is not known.
        DataError: if the data cannot be found or downloaded, or a file is damaged.
    """
    check_split(split)
    root = tfds_root(data_dir)
    source = local_path(data_source, "data_source") if data_source else None
    if source is not None and not source.is_dir():
        raise DataError(f"data source {str(source)!r} is not a folder")
    images, labels = _load_arrays(spec, root, split, source)
    if not _is_published(spec, split, images, labels):
        raise DataError(
            f"the {split} arrays in {_arrays_folder(spec, root)} are not {spec.title}; delete that "
            "folder, and they are made again"
        )
    return Dataset(images, labels.astype(np.int32), spec.class_names)


def is_available_offline(spec: IdxSpec, data_dir: str | Path | None = None) -> bool:
    """Return whether a data set can be loaded without a network.

    Args:
        spec: the data set.
        data_dir: see `load_idx_dataset`.
    """
    root = tfds_root(data_dir)
    folders = (_arrays_folder(spec, root), _prepared_folder(spec, root))
    return any(folder.is_dir() for folder in folders) or _debian_folder(spec) is not None


def content_digest(images: np.ndarray, labels: np.ndarray) -> str:
    """Return a SHA-256 of labelled images that does not depend on their order.

    Args:
        images: uint8 [N, ...].
        labels: uint8 [N].

    >>> images, labels = np.eye(3, dtype=np.uint8), np.arange(3, dtype=np.uint8)
    >>> content_digest(images, labels) == content_digest(images[::-1], labels[::-1])
    True
    >>> content_digest(images, labels) == content_digest(images, labels[::-1])
    False
    """
    digests = []
    for part in row_slices(images):
        pixels = images[part].reshape(len(labels[part]), -1)
        rows = np.concatenate([labels[part, None], pixels], axis=1)
        digests += [hashlib.sha256(row).digest() for row in rows]
    digests.sort()
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _is_published(spec: IdxSpec, split: str, images: np.ndarray, labels: np.ndarray) -> bool:
    has_shape = images.shape[1:] == spec.image_shape and labels.shape == images.shape[:1]
    is_bytes = images.dtype == labels.dtype == np.uint8
    return has_shape and is_bytes and content_digest(images, labels) == spec.content_sha256[split]


def tfds_root(data_dir: str | Path | None) -> Path:
    """Return TFDS's data directory: the given one, else $TFDS_DATA_DIR, else TFDS's own default.

    >>> tfds_root("/data/tfds").as_posix()
    '/data/tfds'
    """
    if data_dir:
        return local_path(data_dir, "data_dir")
    return local_path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets", "$TFDS_DATA_DIR")


def _prepared_folder(spec: IdxSpec, root: Path) -> Path:
    return root / spec.name / spec.version  # where TFDS puts it


def _arrays_folder(spec: IdxSpec, root: Path) -> Path:
    return root / spec.name / f"{spec.version}-arrays"


def _debian_folder(spec: IdxSpec) -> Path | None:
    """Return the folder of Debian's package if it is installed."""
    return spec.debian.folder if spec.debian and spec.debian.folder.is_dir() else None


def _load_arrays(
    spec: IdxSpec, root: Path, split: str, source: Path | None
) -> tuple[np.ndarray, np.ndarray]:
    """Memory-map the decoded arrays, making them first if there are none."""
    arrays, prepared = _arrays_folder(spec, root), _prepared_folder(spec, root)
    if not arrays.is_dir():
        if prepared.is_dir() and not os.access(prepared.parent, os.W_OK):
            return _decode(spec, root, split)  # a shared copy, read-only: decode it at every load
        _make_arrays(spec, root, source)
    paths = (arrays / f"{split}_images.npy", arrays / f"{split}_labels.npy")
    try:
        images, labels = (np.load(path, mmap_mode="r") for path in paths)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(
            f"cannot read the arrays in {arrays}: {error}; delete that folder, and they are made "
            "again"
        ) from error
    return images, labels


def _make_arrays(spec: IdxSpec, root: Path, source: Path | None) -> None:
    """Decode the prepared copy, preparing it first if there is none.

    The arrays are written to a temporary folder, which is renamed once they are complete.
    """
    arrays = _arrays_folder(spec, root)
    try:
        arrays.parent.mkdir(parents=True, exist_ok=True)
        with hold_lock(arrays.parent / ".lock", wait=True):  # one process prepares, others wait
            if arrays.is_dir():
                return
            if not _prepared_folder(spec, root).is_dir():
                _prepare(spec, root, source)
            print(f"Decoding {spec.title} into {arrays} (once)", flush=True)
            unfinished = arrays.with_name(f"{arrays.name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)  # left by a process that was killed
            unfinished.mkdir()
            for split in ("train", "test"):
                images, labels = _decode(spec, root, split)
                np.save(unfinished / f"{split}_images.npy", images)
                np.save(unfinished / f"{split}_labels.npy", labels)
            unfinished.rename(arrays)
    except DataError:
        raise
    except OSError as error:
        raise DataError(
            f"cannot write to the data directory {root}: {error.strerror}; make room there, or "
            "give another one: --config.data_dir=PATH or TFDS_DATA_DIR"
        ) from error


def _decode(spec: IdxSpec, root: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    from jaxcnn.data import tfds_builder  # here: TFDS is slow to import, and rarely needed

    images, labels = tfds_builder.read(spec, root, split)
    if not _is_published(spec, split, images, labels):
        raise DataError(
            f"the prepared copy in {_prepared_folder(spec, root)} is not {spec.title} (split "
            f"{split}); delete that folder, and it is prepared again"
        )
    return images, labels


def _prepare(spec: IdxSpec, root: Path, source: Path | None) -> None:
    from jaxcnn.data import tfds_builder

    source = source or _debian_folder(spec)
    print(f"Preparing {spec.title} in {root} from {source or 'the network'} (once)", flush=True)
    try:
        tfds_builder.prepare(spec, root, source)
    except DataError as error:
        if source is not None:
            raise
        raise NoSourceError(
            f"{spec.title} is not in {root} and cannot be downloaded: {error}. Do one of these:\n"
            + "\n".join(f"  - {way}" for way in _ways_to_get(spec))
        ) from error


def _ways_to_get(spec: IdxSpec) -> list[str]:
    debian = [f"on Debian or Ubuntu: apt-get install {spec.debian.name}"] if spec.debian else []
    return [
        *debian,
        "give the folder of the four published files: --config.data_source=PATH",
        "give a TFDS data directory that has it: --config.data_dir=PATH or TFDS_DATA_DIR",
        "run where the network can be reached, and TFDS downloads it",
        "or try the code on the bundled sample: --config.dataset=fashion_mnist_sample",
    ]
