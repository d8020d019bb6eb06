"""The one file that knows TFDS: prepares a data set of MNIST's format, and reads what is prepared.

TFDS's own builders read and encode through TensorFlow while they prepare. Those here replace the
two methods that do, and keep the rest (name, features, file names, order), so that the folders are
the same: TFDS reads what is prepared here, and its ArrayRecord copies are read here.
"""

import contextlib
import dataclasses
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import numpy as np
import requests
import tensorflow_datasets as tfds
from PIL import Image

from jaxcnn.data.idx import FILE_NAMES, FILES, find_idx_files, read_idx_split
from jaxcnn.data.spec import IdxSpec
from jaxcnn.errors import DataError, first_line

_AT_ONCE = 1024  # examples that are read together


def prepare(spec: IdxSpec, data_dir: Path, source: Path | None) -> None:
    """Prepare `<data_dir>/<name>/<version>`, which appears only when it is complete.

    Args:
        spec: the data set.
        data_dir: TFDS's data directory.
        source: folder with the published files; TFDS downloads them if it is None.

    Raises:
        DataError: if a file is missing or wrong, cannot be downloaded, or cannot be written.
    """
    builder = _create_builder(spec, data_dir, source)
    if source is None:
        _check_download(builder.URL)
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    tfds.display_progress_bar(sys.stderr.isatty())
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints sizes, all of them unknown
            builder.download_and_prepare(file_format="array_record", download_config=config)
    except DataError:
        raise
    except Exception as error:  # of the network, of the disk, of TFDS
        raise DataError(
            f"preparing {builder.data_dir} failed ({type(error).__name__}: {error})"
        ) from error


def read(spec: IdxSpec, data_dir: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Decode a prepared split, in TFDS's order.

    Args:
        spec: the data set.
        data_dir: TFDS's data directory.
        split: 'train' or 'test'.

    Returns:
        Images, uint8 [N, H, W, 1], and labels, uint8 [N].

    Raises:
        DataError: if the prepared copy cannot be read, or only by TensorFlow.
    """
    prepared = data_dir / spec.name / spec.version
    if not (prepared / "dataset_info.json").is_file():
        raise DataError(
            f"{prepared} is not a complete TFDS copy; delete that folder, and it is prepared again"
        )
    try:
        builder = _create_builder(spec, data_dir)
        source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        examples = source.__getitems__(range(len(source)))
        images = [
            np.asarray(Image.open(io.BytesIO(example["image"]), formats=["PNG"]))
            for example in examples
        ]
    except NotImplementedError as error:
        raise DataError(
            f"the copy in {prepared} is not in ArrayRecord format, so reading it takes TensorFlow; "
            "give another --config.data_dir, and jaxcnn prepares its own copy there"
        ) from error
    except Exception as error:  # ArrayRecord, protobuf and Pillow each have their own errors
        raise DataError(
            f"the prepared copy in {prepared} cannot be read "
            f"({type(error).__name__}: {error}); delete that folder, and it is prepared again"
        ) from error
    labels = np.array([example["label"] for example in examples], np.uint8)
    return np.stack(images)[..., None], labels


@dataclasses.dataclass(frozen=True)
class PreparedSplit:
    """The examples of a prepared split, in TFDS's order: each an encoded image and its label."""

    _source: Any
    _image: str
    _label: str

    def __len__(self) -> int:
        return len(self._source)

    def read(self, places: Sequence[int]) -> Iterator[tuple[bytes, int]]:
        """Yield the examples at these places."""
        for start in range(0, len(places), _AT_ONCE):
            for example in self._source.__getitems__(places[start : start + _AT_ONCE]):
                yield example[self._image], int(example[self._label])


def open_prepared(prepared: Path) -> tuple[tuple[str, ...], dict[str, PreparedSplit]]:
    """Open any image classification set that TFDS has prepared in ArrayRecord files.

    Args:
        prepared: its folder, `<data_dir>/<name>[/<config>]/<version>`.

    Returns:
        The names of the classes, and the splits by name.

    Raises:
        DataError: if it cannot be read, or only by TensorFlow, or does not tell which of its
            features are the image and the label.
    """
    with _one_line(prepared):
        builder = tfds.builder_from_directory(prepared)
        features = builder.info.features
        image, label = _find_features(prepared, features, builder.info.supervised_keys)
        skip = {image: tfds.decode.SkipDecoding()}
        splits = {
            split: PreparedSplit(builder.as_data_source(split, decoders=skip), image, label)
            for split in builder.info.splits
        }
        return tuple(features[label].names), splits


def read_prepared(
    prepared: Path, split: PreparedSplit, places: Sequence[int] | None = None
) -> Iterator[tuple[bytes, int]]:
    """Yield the encoded images and labels of a split.

    Args:
        prepared: see `open_prepared`, which gave the split.
        split: to read.
        places: of the examples, in the order in which to read them; None for all, in TFDS's.

    Raises:
        DataError: if a file is damaged.
    """
    with _one_line(prepared):
        yield from split.read(range(len(split)) if places is None else places)


@contextlib.contextmanager
def _one_line(prepared: Path) -> Iterator[None]:
    """Turn an error of reading a prepared copy into one of one line."""
    try:
        yield
    except (DataError, GeneratorExit):
        raise
    except NotImplementedError as error:
        raise DataError(
            f"the copy in {prepared} is not in ArrayRecord format, so reading it takes TensorFlow; "
            "prepare it again with file_format='array_record' (docs/data.md)"
        ) from error
    except Exception as error:  # ArrayRecord and protobuf each have their own errors
        raise DataError(
            f"the prepared copy in {prepared} cannot be read ({type(error).__name__}: "
            f"{first_line(error)}); prepare it again"
        ) from error


def _find_features(prepared: Path, features: Any, supervised_keys: Any) -> tuple[str, str]:
    """Return the names of the image and of the label: TFDS's supervised keys, or the only ones."""
    kinds = (tfds.features.Image, tfds.features.ClassLabel)
    found = [[name for name in features if isinstance(features[name], kind)] for kind in kinds]
    keys = supervised_keys if isinstance(supervised_keys, tuple) else ()
    if len(keys) == 2 and all(key in names for key, names in zip(keys, found, strict=True)):
        return keys
    for kind, names in zip(kinds, found, strict=True):
        if len(names) != 1:
            raise DataError(
                f"the data set in {prepared} has {len(names)} features of the kind "
                f"{kind.__name__}, and no supervised keys that choose one; image classification "
                "takes one"
            )
    return found[0][0], found[1][0]


def _create_builder(spec: IdxSpec, data_dir: Path, source: Path | None = None) -> Any:
    """Return TFDS's builder, with the two methods replaced that need TensorFlow."""
    official: Any = tfds.builder_cls(spec.name)

    with tfds.core.registered.skip_registration():  # the name stays that of TFDS's own builder

        class Builder(official):
            name = spec.name
            VERSION = tfds.core.Version(spec.version)

            def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
                paths = find_idx_files(source) if source else _download(dl_manager, self.URL)
                return {split: self._generate_examples(split, paths) for split in FILES}

            def _generate_examples(self, split: str, paths: dict[str, Path]) -> Iterator:
                images, labels = read_idx_split(spec, split, paths)
                for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                    yield i, {"image": _encode_png(image), "label": int(label)}

    return Builder(data_dir=data_dir)


def _encode_png(image: np.ndarray) -> io.BytesIO:
    png = io.BytesIO()
    Image.fromarray(image).save(png, "PNG")
    png.seek(0)
    return png


def _download(dl_manager: Any, url: str) -> dict[str, Path]:
    paths = dl_manager.download({name: urljoin(url, f"{name}.gz") for name in FILE_NAMES})
    return {name: Path(path) for name, path in paths.items()}


def _check_download(url: str) -> None:
    """Fail within seconds where TFDS would try for minutes."""
    try:
        requests.head(urljoin(url, "train-labels-idx1-ubyte.gz"), timeout=5).raise_for_status()
    except requests.RequestException as error:
        raise DataError(f"{url} cannot be reached ({type(error).__name__})") from error
