"""The one file that knows TFDS: prepare Fashion-MNIST, and read what is prepared.

TFDS's own builder reads and encodes through TensorFlow while it prepares. This one replaces those
two methods and keeps everything else (name, version, features, file names, order), so that the
folders are the same: each builder reads what the other prepared in ArrayRecord format.
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

from jaxcnn.data.idx import FILES, SHA256, find_idx_files, read_idx_split
from jaxcnn.errors import DataError

with tfds.core.registered.skip_registration():  # TFDS's own keeps the name in its registry

    class FashionMNIST(tfds.image_classification.FashionMNIST):
        """TFDS's `fashion_mnist`, prepared without TensorFlow.

        Attributes:
            source: folder with the published files; TFDS downloads them if it is None.
        """

        name = "fashion_mnist"
        source: Path | None = None

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
            if self.source is not None:
                paths = find_idx_files(self.source)
            else:
                urls = {name: urljoin(self.URL, f"{name}.gz") for name in SHA256}
                paths = {name: Path(path) for name, path in dl_manager.download(urls).items()}
            return {split: self._generate_examples(split, paths) for split in FILES}

        def _generate_examples(self, split: str, paths: dict[str, Path]) -> Iterator:
            for i, (image, label) in enumerate(zip(*read_idx_split(split, paths), strict=True)):
                png = io.BytesIO()
                Image.fromarray(image).save(png, "PNG")
                png.seek(0)
                yield i, {"image": png, "label": int(label)}


def prepare(data_dir: Path, source: Path | None) -> None:
    """Prepare `<data_dir>/fashion_mnist/3.0.1`; nothing appears there until all of it is written.

    Args:
        data_dir: TFDS's data directory.
        source: folder with the published files, or None to download them.

    Raises:
        DataError: if a file is missing or wrong, cannot be downloaded, or cannot be written.
    """
    builder = FashionMNIST(data_dir=data_dir)
    builder.source = source
    if source is None:
        _check_download(builder.URL)
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    tfds.display_progress_bar(sys.stderr.isatty())
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints sizes that it does not know
            builder.download_and_prepare(file_format="array_record", download_config=config)
    except DataError:
        raise
    except Exception as error:  # of the network, of the disk, of TFDS
        raise DataError(
            f"preparing {builder.data_dir} failed ({type(error).__name__}: {error})"
        ) from error


def read(data_dir: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Decode a prepared split, in TFDS's order.

    Returns:
        uint8 images [N, 28, 28, 1] and uint8 labels [N].

    Raises:
        DataError: if the prepared copy cannot be read, or not without TensorFlow.
    """
    prepared = data_dir / "fashion_mnist" / "3.0.1"
    if not (prepared / "dataset_info.json").is_file():
        raise DataError(
            f"{prepared} is not a complete TFDS copy; delete that folder, and it is prepared again"
        )
    try:
        builder = FashionMNIST(data_dir=data_dir)
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


def _check_download(url: str) -> None:
    """Fail within seconds where TFDS would try for minutes."""
    try:
        requests.head(urljoin(url, "train-labels-idx1-ubyte.gz"), timeout=5).raise_for_status()
    except requests.RequestException as error:
        raise DataError(f"{url} cannot be reached ({type(error).__name__})") from error
