"""The four published Fashion-MNIST files (IDX format), read and verified with NumPy alone."""

import gzip
import hashlib
import zlib
from pathlib import Path

import numpy as np

from jaxcnn.errors import DataError

# SHA-256 of the uncompressed files: it holds for every copy, however it is compressed.
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_HEADER_BYTES = {"idx3": 16, "idx1": 8}  # magic number and one 4-byte size per axis


def find_idx_files(folder: str | Path) -> dict[str, Path]:
    """Return the path of each of the four files, compressed (.gz) or not.

    Raises:
        DataError: if the folder or one of the files is missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"data source {str(folder)!r} is not a folder")
    found = {}
    for name in SHA256:
        candidates = [folder / name, folder / f"{name}.gz"]
        path = next((p for p in candidates if p.is_file()), None)
        if path is None:
            raise DataError(
                f"data source {str(folder)!r} lacks {name}(.gz); it must hold all of "
                f"{', '.join(SHA256)}, compressed (.gz) or not"
            )
        found[name] = path
    return found


def read_idx(name: str, path: str | Path) -> np.ndarray:
    """Read one of the four files, and refuse it unless its content is the published one.

    Args:
        name: its published name, a key of `SHA256`.
        path: where it lies; compressed if its first bytes say so.

    Returns:
        uint8 [N, 28, 28] for images, uint8 [N] for labels.

    Raises:
        DataError: if the file cannot be read or decompressed, or its content has another SHA-256.
    """
    try:
        content = Path(path).read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}; get the file again") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256[name]:
        raise DataError(
            f"{path} is not Fashion-MNIST's {name}: the SHA-256 of its {len(content):,} "
            f"uncompressed bytes is {digest}, expected {SHA256[name]}; get the file again"
        )
    is_images = "idx3" in name
    values = np.frombuffer(content, np.uint8, offset=_HEADER_BYTES["idx3" if is_images else "idx1"])
    return values.reshape(-1, 28, 28) if is_images else values


def read_idx_split(split: str, paths: dict[str, Path]) -> tuple[np.ndarray, np.ndarray]:
    """Return the verified images, uint8 [N, 28, 28], and labels, uint8 [N], of 'train' or 'test'.

    Raises:
        DataError: as `read_idx`.
    """
    images, labels = FILES[split]
    return read_idx(images, paths[images]), read_idx(labels, paths[labels])
