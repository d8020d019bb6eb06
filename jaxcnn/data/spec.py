"""The facts about a published data set that loading it needs, as data."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class DebianPackage:
    """A package of Debian and Ubuntu that installs the published files.

    Attributes:
        name: what `apt-get install` takes.
        folder: where it puts the files.
    """

    name: str
    folder: Path


@dataclasses.dataclass(frozen=True)
class IdxSpec:
    """A data set that is published as four IDX files named like MNIST's, and that TFDS knows.

    To add one (MNIST, KMNIST), write its spec and register `load_idx_dataset` with it in
    `jaxcnn.data.DATASETS`. Take the file digests from a source that you trust; with them,
    `content_digest(*read_idx_split(spec, split, find_idx_files(folder)))` gives the others.

    Attributes:
        name: TFDS's name for the data set, and its folder in TFDS's data directory.
        title: the name that messages use.
        version: the version of TFDS's builder.
        class_names: the name of each label, in TFDS's order.
        file_sha256: the SHA-256 of each published file, uncompressed, in hexadecimal; the keys are
            the names in `jaxcnn.data.idx.FILES`. It holds for every copy, however compressed.
        content_sha256: `jaxcnn.data.cache.content_digest` of the 'train' and the 'test' split.
        image_shape: height, width and channels of an image.
        debian: the package that has the published files, if there is one.
    """

    name: str
    title: str
    version: str
    class_names: tuple[str, ...]
    file_sha256: Mapping[str, str]
    content_sha256: Mapping[str, str]
    image_shape: tuple[int, int, int] = (28, 28, 1)
    debian: DebianPackage | None = None
