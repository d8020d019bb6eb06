"""Fashion-MNIST: found or prepared once, verified and memory-mapped ever after."""

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np

from jaxcnn.data.dataset import Dataset, check_split
from jaxcnn.errors import DataError
from jaxcnn.files import hold_lock

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist
_VERSION = "3.0.1"  # of TFDS's builder
CONTENT = {  # what `content_digest` gives for the published files
    "train": "0c69d5cdeb902b69084012f812f066de080317bb3c64f43ca87f910d8ec86906",
    "test": "90c92c0507755a7d443edde8297ce4d0f131e42884e2e87e7fc9b81ffe215258",
}


class NoSourceError(DataError):
    """Fashion-MNIST is not on this machine and cannot be downloaded."""


def load_fashion_mnist(
    split: str, data_dir: str | Path | None = None, data_source: str | Path | None = None
) -> Dataset:
    """Load Fashion-MNIST; the first call prepares it (half a minute), later ones map the arrays.

    The data come from the first of: the copy prepared by TFDS in `data_dir`; the published files
    in `data_source`; those of Debian's package dataset-fashion-mnist; TFDS's download. All of them
    give the same examples in the same order, TFDS's own, and every load verifies them.

    Args:
        split: 'train' (60,000 examples) or 'test' (10,000).
        data_dir: TFDS's data directory; by default $TFDS_DATA_DIR, else ~/tensorflow_datasets.
        data_source: folder with the four published IDX files, compressed (.gz) or not.

    Returns:
        Read-only images, uint8 [N, 28, 28, 1], labels, int32 [N], and the ten class names.

    Raises:
        ValueError: if the split does not exist.
        DataError: if the data are nowhere to be had, or a file is damaged.
    """
    check_split(split)
    root = _data_dir(data_dir)
    source = Path(data_source).expanduser() if data_source else None
    if source is not None and not source.is_dir():
        raise DataError(f"data source {str(source)!r} is not a folder")
    images, labels = _load_arrays(root, split, source)
    if not _is_published(split, images, labels):
        raise DataError(
            f"the {split} arrays in {_arrays_folder(root)} are not Fashion-MNIST; delete that "
            "folder, and they are made again"
        )
    return Dataset(images, labels.astype(np.int32), CLASS_NAMES)


def is_available_offline(data_dir: str | Path | None = None) -> bool:
    """Return whether Fashion-MNIST can be loaded without a network.

    Args:
        data_dir: as in `load_fashion_mnist`.
    """
    root = _data_dir(data_dir)
    return any(p.is_dir() for p in (_arrays_folder(root), _prepared_folder(root), DEBIAN_FOLDER))


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
    rows = np.concatenate([labels[:, None], images.reshape(len(labels), -1)], axis=1)
    digests = sorted(hashlib.sha256(row).digest() for row in rows)
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _is_published(split: str, images: np.ndarray, labels: np.ndarray) -> bool:
    is_shaped = images.shape[1:] == (28, 28, 1) and labels.shape == images.shape[:1]
    is_bytes = images.dtype == labels.dtype == np.uint8
    return is_shaped and is_bytes and content_digest(images, labels) == CONTENT[split]


def _data_dir(data_dir: str | Path | None) -> Path:
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"  # TFDS's own default
    return Path(data_dir or default).expanduser()


def _prepared_folder(root: Path) -> Path:
    return root / "fashion_mnist" / _VERSION  # where TFDS puts it


def _arrays_folder(root: Path) -> Path:
    return root / "fashion_mnist" / f"{_VERSION}-arrays"


def _load_arrays(root: Path, split: str, source: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Map the decoded arrays, making them first if need be."""
    arrays, prepared = _arrays_folder(root), _prepared_folder(root)
    if not arrays.is_dir():
        if prepared.is_dir() and not os.access(prepared.parent, os.W_OK):
            return _decode(root, split)  # somebody else's copy, read-only: decode it every time
        _make_arrays(arrays, prepared, root, source)
    paths = (arrays / f"{split}_images.npy", arrays / f"{split}_labels.npy")
    try:
        images, labels = (np.load(path, mmap_mode="r") for path in paths)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(
            f"cannot read the arrays in {arrays}: {error}; delete that folder, and they are made "
            "again"
        ) from error
    return images, labels


def _make_arrays(arrays: Path, prepared: Path, root: Path, source: Path | None) -> None:
    """Decode the prepared copy, preparing it first if need be; `arrays` appears when complete."""
    try:
        arrays.parent.mkdir(parents=True, exist_ok=True)
        with hold_lock(arrays.parent / ".lock", wait=True):  # of two processes, one prepares
            if arrays.is_dir():
                return
            if not prepared.is_dir():
                _prepare(root, source)
            print(f"Decoding Fashion-MNIST into {arrays} (once)", flush=True)
            unfinished = arrays.with_name(f"{arrays.name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
            unfinished.mkdir()
            for split in ("train", "test"):
                images, labels = _decode(root, split)
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


def _decode(root: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    from jaxcnn.data import tfds_builder  # not needed once the arrays are there

    images, labels = tfds_builder.read(root, split)
    if not _is_published(split, images, labels):
        raise DataError(
            f"the prepared copy in {_prepared_folder(root)} is not Fashion-MNIST (split {split}); "
            "delete that folder, and it is prepared again"
        )
    return images, labels


def _prepare(root: Path, source: Path | None) -> None:
    from jaxcnn.data import tfds_builder

    if source is None and DEBIAN_FOLDER.is_dir():
        source = DEBIAN_FOLDER
    print(f"Preparing Fashion-MNIST in {root} from {source or 'the network'} (once)", flush=True)
    try:
        tfds_builder.prepare(root, source)
    except DataError as error:
        if source is not None:
            raise
        raise NoSourceError(
            f"Fashion-MNIST is not in {root} and cannot be downloaded: {error}. Do one of these:\n"
            "  - on Debian or Ubuntu: apt-get install dataset-fashion-mnist\n"
            "  - give the folder of the four published files: --config.data_source=PATH\n"
            "  - give a TFDS data directory that has it: --config.data_dir=PATH or TFDS_DATA_DIR\n"
            "  - run where the network can be reached, and TFDS downloads it\n"
            "  - or try the code on the bundled sample: --config.dataset=fashion_mnist_sample"
        ) from error
