"""Data: the real files through TFDS, what is refused, and what a killed process leaves."""

import functools
import gzip
import http.server
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds

from jaxcnn.data import fashion_mnist, load_dataset, load_fashion_mnist, load_fashion_mnist_sample
from jaxcnn.data.draw_sample import draw_sample
from jaxcnn.data.idx import SHA256, find_idx_files, read_idx
from jaxcnn.errors import DataError

# TFDS says that OpenCV would decode faster; jaxcnn decodes with Pillow itself.
pytestmark = pytest.mark.filterwarnings("ignore:OpenCV")


@pytest.mark.parametrize(
    ("split", "count", "mean"), [("train", 60_000, 0.28604), ("test", 10_000, None)]
)
def test_fashion_mnist(data_dir, split, count, mean):
    data = load_fashion_mnist(split, data_dir)
    assert data.images.shape == (count, 28, 28, 1)
    assert (data.images.dtype, data.labels.dtype) == (np.uint8, np.int32)
    assert np.bincount(data.labels).tolist() == [count // 10] * 10
    assert data.class_names[0] == "T-shirt/top"
    assert data.class_names[9] == "Ankle boot"
    if mean:
        assert abs(data.images.mean() / 255 - mean) < 1e-5


def test_images_and_labels_belong_together(data_dir, published_files):
    paths = find_idx_files(published_files)
    images = read_idx("t10k-images-idx3-ubyte", paths["t10k-images-idx3-ubyte"])
    labels = read_idx("t10k-labels-idx1-ubyte", paths["t10k-labels-idx1-ubyte"])
    label_of = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    data = load_fashion_mnist("test", data_dir)
    assert [label_of[image.tobytes()] for image in data.images] == data.labels.tolist()


def test_official_tfds_builder_reads_what_was_prepared(data_dir):
    builder = tfds.builder("fashion_mnist", data_dir=data_dir)
    ours = load_fashion_mnist("test", data_dir)
    theirs = builder.as_data_source("test")
    assert len(theirs) == 10_000
    for i in (0, 1, 9_999):
        assert (theirs[i]["image"] == ours.images[i]).all()
        assert theirs[i]["label"] == ours.labels[i]
    assert tuple(builder.info.features["label"].names) == ours.class_names


def test_second_load_maps_the_arrays_and_needs_no_tfds(data_dir, run_python):
    code = (
        "import sys, jaxcnn; data = jaxcnn.data.load_fashion_mnist('train');"
        "print(type(data.images).__name__, 'tensorflow_datasets' in sys.modules)"
    )
    assert run_python("-c", code, TFDS_DATA_DIR=str(data_dir)).stdout == "memmap False\n"


def test_read_only_copy_is_decoded_without_writing(data_dir, tmp_path, monkeypatch):
    shutil.copytree(data_dir / "fashion_mnist" / "3.0.1", tmp_path / "fashion_mnist" / "3.0.1")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    data = load_fashion_mnist("test", tmp_path)
    assert (data.images == load_fashion_mnist("test", data_dir).images).all()
    assert [p.name for p in (tmp_path / "fashion_mnist").iterdir()] == ["3.0.1"]


def test_no_source_at_hand(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "none")
    monkeypatch.setattr(tfds.image_classification.FashionMNIST, "URL", "http://127.0.0.1:9/")
    with pytest.raises(DataError) as error:
        load_fashion_mnist("train", tmp_path / "data")
    for way in ("apt-get install dataset-fashion-mnist", "data_source", "TFDS_DATA_DIR", "sample"):
        assert way in str(error.value)
    assert not list((tmp_path / "data").rglob("3.0.1*"))


def test_download_by_tfds(tmp_path, published_files, data_dir, monkeypatch):
    handler = functools.partial(QuietHandler, directory=published_files)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "none")
        url = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr(tfds.image_classification.FashionMNIST, "URL", url)
        data = load_fashion_mnist("test", tmp_path / "data")
        server.shutdown()
    assert (data.images == load_fashion_mnist("test", data_dir).images).all()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def copied_files(tmp_path, published_files):
    return shutil.copytree(published_files, tmp_path / "files")


def damage_truncate(folder):
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:1_000_000])
    return "cannot read .*train-images"


def damage_swap_labels(folder):
    shutil.copy(folder / "t10k-labels-idx1-ubyte.gz", folder / "train-labels-idx1-ubyte.gz")
    return "not Fashion-MNIST's train-labels"


def damage_swap_kinds(folder):
    shutil.copy(folder / "train-labels-idx1-ubyte.gz", folder / "train-images-idx3-ubyte.gz")
    return "not Fashion-MNIST's train-images"


def damage_flip(folder):
    path = folder / "train-labels-idx1-ubyte.gz"
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[5_000] ^= 1
    path.write_bytes(gzip.compress(bytes(content)))
    return "not Fashion-MNIST's train-labels"


def damage_remove(folder):
    (folder / "t10k-images-idx3-ubyte.gz").unlink()
    return "lacks t10k-images"


@pytest.mark.parametrize(
    "damage",
    [damage_truncate, damage_swap_labels, damage_swap_kinds, damage_flip, damage_remove],
)
def test_wrong_files_are_refused_and_leave_nothing(copied_files, tmp_path, damage):
    words = damage(copied_files)
    with pytest.raises(DataError, match=words):
        load_fashion_mnist("train", tmp_path / "data", copied_files)
    assert not list((tmp_path / "data").rglob("*3.0.1*"))


def test_missing_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="not a folder"):
        load_fashion_mnist("train", tmp_path, tmp_path / "none")


def test_uncompressed_files_are_read(copied_files):
    for name in SHA256:
        path = copied_files / f"{name}.gz"
        (copied_files / name).write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    for name, path in find_idx_files(copied_files).items():
        assert read_idx(name, path).ndim == (3 if "idx3" in name else 1)


@pytest.mark.parametrize("file", ["train_images.npy", "train_labels.npy"])
@pytest.mark.parametrize("kind", ["flip", "truncate", "empty", "swap"])
def test_damaged_arrays_are_refused(data_dir, tmp_path, file, kind):
    arrays = tmp_path / "fashion_mnist" / "3.0.1-arrays"
    shutil.copytree(data_dir / "fashion_mnist" / "3.0.1-arrays", arrays)
    content = bytearray((arrays / file).read_bytes())
    if kind == "flip":
        content[10_000] ^= 1
    elif kind == "truncate":
        del content[10_000:]
    elif kind == "empty":
        content.clear()
    else:
        content = (arrays / file.replace("train", "test")).read_bytes()
    (arrays / file).write_bytes(content)
    with pytest.raises(DataError, match="delete that folder"):
        load_fashion_mnist("train", tmp_path)


def test_copies_that_are_not_whole_or_not_array_record_are_refused(data_dir, tmp_path):
    prepared = tmp_path / "fashion_mnist" / "3.0.1"
    shutil.copytree(data_dir / "fashion_mnist" / "3.0.1", prepared)
    info = prepared / "dataset_info.json"
    whole = info.read_text()
    info.write_text(whole.replace("array_record", "tfrecord"))
    with pytest.raises(DataError, match="not in ArrayRecord format"):
        load_fashion_mnist("train", tmp_path)
    info.write_text(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cannot be read"):
        load_fashion_mnist("train", tmp_path)
    info.unlink()
    with pytest.raises(DataError, match="not a complete TFDS copy"):
        load_fashion_mnist("train", tmp_path)


def test_damaged_prepared_copy_is_refused(data_dir, tmp_path):
    prepared = tmp_path / "fashion_mnist" / "3.0.1"
    shutil.copytree(data_dir / "fashion_mnist" / "3.0.1", prepared)
    path = next(prepared.glob("*train*"))
    content = bytearray(path.read_bytes())
    content[1_000_000] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="delete that folder"):
        load_fashion_mnist("train", tmp_path)
    assert not (tmp_path / "fashion_mnist" / "3.0.1-arrays").exists()


@pytest.mark.parametrize("until", ["incomplete.*", "3.0.1-arrays.unfinished"])
def test_killed_preparation_leaves_nothing_that_is_taken_for_data(
    tmp_path, data_dir, published_files, until
):
    """Kill -9 while TFDS writes, or while the arrays are written; the next call succeeds."""
    code = (
        "from jaxcnn.data import load_fashion_mnist;"
        f"load_fashion_mnist('train', {str(tmp_path)!r}, {str(published_files)!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    while not list((tmp_path / "fashion_mnist").glob(until)):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "fashion_mnist" / "3.0.1-arrays").exists()
    data = load_fashion_mnist("train", tmp_path, published_files)
    assert (data.images == load_fashion_mnist("train", data_dir).images).all()


def test_sample_is_balanced_and_drawn_by_the_script(published_files):
    drawn = draw_sample(published_files)
    for split, per_class in (("train", 200), ("test", 100)):
        data = load_fashion_mnist_sample(split)
        assert np.bincount(data.labels).tolist() == [per_class] * 10
        assert (data.images[..., 0] == drawn[f"{split}_images"]).all()
        assert (data.labels == drawn[f"{split}_labels"]).all()


@pytest.mark.parametrize("load", [load_fashion_mnist, load_fashion_mnist_sample])
def test_unknown_split_is_refused(load):
    with pytest.raises(ValueError, match=r"'valid'.*'train', 'test'"):
        load("valid")


def test_unknown_data_set_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'fashion_mnist'"):
        load_dataset("fashon_mnist", "train")
