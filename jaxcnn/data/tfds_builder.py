"""The one file that knows TFDS: prepares a data set, and reads what is prepared.

TFDS's own builders read and encode through TensorFlow while they prepare. Those here replace the
two methods that do, and keep the rest (name, features, file names, order), so that the folders are
the same: TFDS reads what is prepared here, and its ArrayRecord copies are read here.
"""

import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import numpy as np
import requests
import tensorflow_datasets as tfds
from PIL import Image

from jaxcnn.data.idx import FILE_NAMES, FILES, find_idx_files, read_idx_split
from jaxcnn.data.spec import IdxSpec
from jaxcnn.errors import DataError


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
        images = [np.asarray(Image.open(io.BytesIO(example["image"]))) for example in examples]
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
