"""MNIST's file format, IDX: the four published files, found, verified and read with NumPy alone."""

import gzip
import hashlib
import math
import zlib
from pathlib import Path

import numpy as np

from jaxcnn.data.spec import IdxSpec
from jaxcnn.errors import DataError

FILES = {  # split -> images, labels
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
FILE_NAMES = tuple(name for names in FILES.values() for name in names)


def find_idx_files(folder: str | Path) -> dict[str, Path]:
    """Return the path of each of the four files, by its name in `FILES`.

    Args:
        folder: where the files are, compressed (.gz) or not.

    Raises:
        DataError: if the folder or one of the files is missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"data source {str(folder)!r} is not a folder")
    found = {}
    for name in FILE_NAMES:
        candidates = [folder / name, folder / f"{name}.gz"]
        path = next((p for p in candidates if p.is_file()), None)
        if path is None:
            raise DataError(
                f"data source {str(folder)!r} lacks {name}(.gz); it must hold all of "
                f"{', '.join(FILE_NAMES)}, compressed (.gz) or not"
            )
        found[name] = path
    return found


def parse_idx(content: bytes) -> np.ndarray:
    """Return the array in an uncompressed IDX file of unsigned bytes.

    The header is four bytes (zero, zero, 8 for unsigned bytes, the number of axes), then the size
    of each axis as a big-endian 32-bit integer. The values follow in row-major order.

    Raises:
        ValueError: if the header is not of this form, or does not match the number of values.

    >>> parse_idx(bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3]) + bytes([1, 2, 3, 4, 5, 6]))
    array([[1, 2, 3],
           [4, 5, 6]], dtype=uint8)
    """
    num_axes = content[3] if len(content) > 3 else 0
    start = 4 + 4 * num_axes
    if content[:3] != b"\0\0\x08" or len(content) < start:
        raise ValueError(f"its header is {content[:4].hex(' ')}, not 00 00 08 and its axes")
    shape = np.frombuffer(content[4:start], ">u4").tolist()
    if math.prod(shape) != len(content) - start:
        raise ValueError(f"its header says {shape}, but {len(content) - start:,} values follow")
    return np.frombuffer(content, np.uint8)[start:].reshape(shape)


def read_idx(spec: IdxSpec, name: str, path: str | Path) -> np.ndarray:
    """Read one of the four files, and refuse it unless its content is what was published.

    Args:
        spec: the data set that the file belongs to.
        name: the name under which the file was published; see `FILES`.
        path: where the file is. Whether it is compressed is read from its first bytes.

    Returns:
        uint8 [N, H, W] for images, uint8 [N] for labels.

    Raises:
        DataError: if the file cannot be read or decompressed, or its content has another SHA-256.
    """
    try:
        content = Path(path).read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}; get the file again") from error
    digest, expected = hashlib.sha256(content).hexdigest(), spec.file_sha256[name]
    if digest != expected:
        raise DataError(
            f"{path} is not {spec.title}'s {name}: the SHA-256 of its {len(content):,} "
            f"uncompressed bytes is {digest}, expected {expected}; get the file again"
        )
    try:
        return parse_idx(content)
    except ValueError as error:
        raise DataError(f"{path} is not an IDX file of unsigned bytes: {error}") from error


def read_idx_split(
    spec: IdxSpec, split: str, paths: dict[str, Path]
) -> tuple[np.ndarray, np.ndarray]:
    """Read a split, in published order.

    Args:
        spec: the data set that the files belong to.
        split: 'train' or 'test'.
        paths: what `find_idx_files` returns.

    Returns:
        Images, uint8 [N, H, W], and labels, uint8 [N].

    Raises:
        DataError: see `read_idx`.
    """
    images, labels = FILES[split]
    return read_idx(spec, images, paths[images]), read_idx(spec, labels, paths[labels])
