"""Data: Fashion-MNIST through TFDS, what is refused, and what a killed process leaves.

What holds for every data set of MNIST's format is tested on a small one, in MNIST's files and under
the name of TFDS's KMNIST, so that it is prepared in a moment.
"""

import dataclasses
import functools
import gzip
import hashlib
import http.server
import os
import shutil
import signal
import struct
import threading
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds

from jaxcnn.config import get_default_config, validate_config
from jaxcnn.data import (
    DATASETS,
    Dataset,
    IdxSpec,
    check_dataset,
    fashion_mnist,
    load_dataset,
    load_fashion_mnist,
    load_fashion_mnist_sample,
    load_idx_dataset,
)
from jaxcnn.data.cache import NoSourceError, content_digest, is_available_offline
from jaxcnn.data.draw_sample import draw_sample
from jaxcnn.data.idx import FILES, find_idx_files, parse_idx, read_idx, read_idx_split
from jaxcnn.errors import ConfigError, DataError

# TFDS says that OpenCV would decode faster; jaxcnn decodes with Pillow itself.
pytestmark = pytest.mark.filterwarnings("ignore:OpenCV")


# Fashion-MNIST


def in_tfds_order(split, images, labels):
    """Sort the examples of files as TFDS does: by their places in the file, hashed."""
    hasher = tfds.core.hashing.Hasher(split)
    order = sorted(range(len(images)), key=hasher.hash_key)
    return images[order], labels[order]


@pytest.fixture
def files_with_less_to_train_on(tmp_path, published_files, monkeypatch):
    """Fashion-MNIST's test files, and 600 of the images in them as the training set's."""
    spec, folder = fashion_mnist.FASHION_MNIST, tmp_path / "published"
    folder.mkdir()
    for name in FILES["test"]:
        (folder / f"{name}.gz").symlink_to(published_files / f"{name}.gz")
    images, labels = (
        array[:600] for array in read_idx_split(spec, "test", find_idx_files(published_files))
    )
    arrays = zip(FILES["train"], (images, labels), strict=True)
    file_sha256 = {name: write_idx(folder / f"{name}.gz", array) for name, array in arrays}
    less = dataclasses.replace(
        spec,
        file_sha256=spec.file_sha256 | file_sha256,
        content_sha256=spec.content_sha256 | {"train": content_digest(images, labels)},
    )
    monkeypatch.setattr(fashion_mnist, "FASHION_MNIST", less)
    return folder


@pytest.mark.slow
def test_fashion_mnist(tmp_path, files_with_less_to_train_on):
    """The whole way from the published files, with what TFDS's own builder makes of it."""
    spec, files = fashion_mnist.FASHION_MNIST, files_with_less_to_train_on
    for split, count in (("train", 600), ("test", 10_000)):
        data = load_fashion_mnist(split, tmp_path, files)
        assert data.images.shape == (count, 28, 28, 1)
        assert (data.images.dtype, data.labels.dtype) == (np.uint8, np.int32)
        assert data.class_names[0] == "T-shirt/top"
        assert data.class_names[9] == "Ankle boot"
        images, labels = in_tfds_order(split, *read_idx_split(spec, split, find_idx_files(files)))
        assert (data.images[..., 0] == images).all()
        assert (data.labels == labels).all()

        builder = tfds.builder("fashion_mnist", data_dir=tmp_path)
        theirs = builder.as_data_source(split)
        assert len(theirs) == count
        for i in (0, 1, count - 1):
            assert (theirs[i]["image"] == data.images[i]).all()
            assert theirs[i]["label"] == data.labels[i]
        assert tuple(builder.info.features["label"].names) == data.class_names


@pytest.mark.parametrize(
    ("split", "count", "mean", "digest"),
    [("train", 60_000, 0.28604, "f2a050cf813f5527"), ("test", 10_000, 0.28685, "5f23e171ccde7a20")],
)
def test_fashion_mnists_files_have_its_examples(published_files, split, count, mean, digest):
    """In TFDS's order, on which resumed runs rely."""
    spec = fashion_mnist.FASHION_MNIST
    published = read_idx_split(spec, split, find_idx_files(published_files))
    images, labels = in_tfds_order(split, *published)
    assert images.shape == (count, 28, 28)
    assert np.bincount(labels).tolist() == [count // 10] * 10
    assert abs(images.mean() / 255 - mean) < 1e-5
    assert content_digest(images, labels) == spec.content_sha256[split]
    data = Dataset(images[..., None], labels.astype(np.int32), spec.class_names)
    assert data.digest()[:16] == digest


def test_fashion_mnist_without_a_source(tmp_path, monkeypatch):
    spec = dataclasses.replace(
        fashion_mnist.FASHION_MNIST,
        debian=dataclasses.replace(fashion_mnist.FASHION_MNIST.debian, folder=tmp_path / "none"),
    )
    monkeypatch.setattr(fashion_mnist, "FASHION_MNIST", spec)
    monkeypatch.setattr(tfds.image_classification.FashionMNIST, "URL", "http://127.0.0.1:9/")
    with pytest.raises(NoSourceError) as error:
        load_fashion_mnist("train", tmp_path / "data")
    for way in ("apt-get install dataset-fashion-mnist", "data_source", "TFDS_DATA_DIR", "sample"):
        assert way in str(error.value)
    assert not list((tmp_path / "data").rglob("3.0.1*"))


def test_fashion_mnist_of_other_files_is_refused(tmp_path, small):
    with pytest.raises(DataError, match=r"not Fashion-MNIST's train-images.* expected c59f468a"):
        load_fashion_mnist("train", tmp_path, small.files)


def test_sample_is_balanced_and_drawn_by_the_script(published_files):
    drawn = draw_sample(published_files)
    for split, per_class in (("train", 200), ("test", 100)):
        data = load_fashion_mnist_sample(split)
        assert np.bincount(data.labels).tolist() == [per_class] * 10
        assert (data.images[..., 0] == drawn[f"{split}_images"]).all()
        assert (data.labels == drawn[f"{split}_labels"]).all()


# Any data set of MNIST's format


def write_idx(path, array):
    header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))
    return hashlib.sha256(header + array.tobytes()).hexdigest()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """60 training and 20 test images as a data set of its own: spec, files, and a prepared copy."""
    files = tmp_path_factory.mktemp("files")
    published, file_sha256, content_sha256 = {}, {}, {}
    for split, count in (("train", 60), ("test", 20)):
        data = load_fashion_mnist_sample(split).first(count)
        images, labels = published[split] = data.images[..., 0], data.labels.astype(np.uint8)
        for name, array in zip(FILES[split], (images, labels), strict=True):
            file_sha256[name] = write_idx(files / f"{name}.gz", array)
        content_sha256[split] = content_digest(images, labels)
    spec = IdxSpec(
        name="kmnist",
        title="Small MNIST",
        version="3.0.1",
        class_names=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
        file_sha256=file_sha256,
        content_sha256=content_sha256,
    )
    prepared = tmp_path_factory.mktemp("tfds")
    load_idx_dataset(spec, "train", prepared, files)
    return SimpleNamespace(spec=spec, files=files, published=published, data_dir=prepared)


@pytest.fixture
def copied_files(tmp_path, small):
    return shutil.copytree(small.files, tmp_path / "files")


@pytest.fixture
def copied_data(tmp_path, small):
    """A copy of what TFDS prepared, without the arrays."""
    folder = tmp_path / "kmnist" / "3.0.1"
    shutil.copytree(small.data_dir / "kmnist" / "3.0.1", folder)
    return folder


def assert_equal(data, expected):
    assert (data.images == expected.images).all()
    assert (data.labels == expected.labels).all()


def test_another_data_set_takes_a_spec_and_a_line(small, tmp_path, monkeypatch):
    """Registered, it is a config's word; its values are the files', its order is TFDS's."""
    config = get_default_config()
    config.dataset = "kmnist"
    with pytest.raises(ConfigError, match=r"config.dataset is 'kmnist'"):
        validate_config(config)
    monkeypatch.setitem(DATASETS, "kmnist", functools.partial(load_idx_dataset, small.spec))
    validate_config(config)
    for split, (images, labels) in small.published.items():
        data = load_dataset("kmnist", split, tmp_path, small.files)
        assert (data.images.dtype, data.labels.dtype) == (np.uint8, np.int32)
        images, labels = in_tfds_order(split, images, labels)
        assert (data.images[..., 0] == images).all()
        assert (data.labels == labels).all()
        builder = tfds.builder("kmnist", data_dir=tmp_path)
        theirs = builder.as_data_source(split)
        assert len(theirs) == len(images)
        for i, example in enumerate(theirs):
            assert (example["image"] == data.images[i]).all()
            assert example["label"] == data.labels[i]
    assert tuple(builder.info.features["label"].names) == data.class_names


def test_second_load_maps_the_arrays_and_needs_no_tfds(small, run_python):
    code = (
        "import sys; from jaxcnn.data import IdxSpec, load_idx_dataset;"
        f"data = load_idx_dataset({small.spec!r}, 'train', {str(small.data_dir)!r});"
        "print(type(data.images).__name__, 'tensorflow_datasets' in sys.modules)"
    )
    assert run_python("-c", code).stdout == "memmap False\n"


def test_read_only_copy_is_decoded_without_writing(small, copied_data, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    data = load_idx_dataset(small.spec, "test", tmp_path)
    assert_equal(data, load_idx_dataset(small.spec, "test", small.data_dir))
    assert [p.name for p in (tmp_path / "kmnist").iterdir()] == ["3.0.1"]


def test_available_offline(small, copied_data, tmp_path):
    assert is_available_offline(small.spec, tmp_path)
    assert is_available_offline(small.spec, small.data_dir)
    assert not is_available_offline(small.spec, tmp_path / "none")
    debian = fashion_mnist.DebianPackage("some-package", small.files)
    spec = dataclasses.replace(small.spec, debian=debian)
    assert is_available_offline(spec, tmp_path / "none")


def test_no_source_and_no_package(small, tmp_path, monkeypatch):
    monkeypatch.setattr(tfds.image_classification.KMNIST, "URL", "http://127.0.0.1:9/")
    with pytest.raises(NoSourceError, match=r"^Small MNIST is not in .* Do one of these:") as error:
        load_idx_dataset(small.spec, "train", tmp_path)
    assert "apt-get" not in str(error.value)


def test_debian_package_is_used(small, tmp_path, capsys):
    debian = fashion_mnist.DebianPackage("some-package", small.files)
    spec = dataclasses.replace(small.spec, debian=debian)
    assert_equal(
        load_idx_dataset(spec, "train", tmp_path),
        load_idx_dataset(spec, "train", small.data_dir),
    )
    assert f"from {small.files} (once)" in capsys.readouterr().out


def test_download_by_tfds(small, tmp_path, monkeypatch):
    handler = functools.partial(QuietHandler, directory=small.files)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr(tfds.image_classification.KMNIST, "URL", url)
        data = load_idx_dataset(small.spec, "test", tmp_path)
        server.shutdown()
    assert_equal(data, load_idx_dataset(small.spec, "test", small.data_dir))


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def damage_truncate(folder):
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:10_000])
    return "cannot read .*train-images"


def damage_swap_labels(folder):
    shutil.copy(folder / "t10k-labels-idx1-ubyte.gz", folder / "train-labels-idx1-ubyte.gz")
    return "not Small MNIST's train-labels"


def damage_swap_kinds(folder):
    shutil.copy(folder / "train-labels-idx1-ubyte.gz", folder / "train-images-idx3-ubyte.gz")
    return "not Small MNIST's train-images"


def damage_flip(folder):
    path = folder / "train-labels-idx1-ubyte.gz"
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[50] ^= 1
    path.write_bytes(gzip.compress(bytes(content)))
    return "not Small MNIST's train-labels"


def damage_remove(folder):
    (folder / "t10k-images-idx3-ubyte.gz").unlink()
    return "lacks t10k-images"


@pytest.mark.parametrize(
    "damage",
    [damage_truncate, damage_swap_labels, damage_swap_kinds, damage_flip, damage_remove],
)
def test_wrong_files_are_refused_and_leave_nothing(small, copied_files, tmp_path, damage):
    words = damage(copied_files)
    with pytest.raises(DataError, match=words):
        load_idx_dataset(small.spec, "train", tmp_path / "data", copied_files)
    assert not list((tmp_path / "data").rglob("*3.0.1*"))


def test_missing_folder_is_refused(small, tmp_path):
    with pytest.raises(DataError, match="not a folder"):
        load_idx_dataset(small.spec, "train", tmp_path, tmp_path / "none")


def test_uncompressed_files_are_read(small, copied_files):
    for path in list(copied_files.iterdir()):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    paths = find_idx_files(copied_files)
    for split, (images, labels) in small.published.items():
        read = read_idx_split(small.spec, split, paths)
        assert (read[0] == images).all()
        assert (read[1] == labels).all()


@pytest.mark.parametrize("shape", [(3,), (2, 5), (2, 3, 4), (1, 2, 3, 4)])
def test_idx_header_gives_the_shape(tmp_path, shape):
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    write_idx(tmp_path / "file.gz", array)
    parsed = parse_idx(gzip.decompress((tmp_path / "file.gz").read_bytes()))
    assert parsed.shape == shape
    assert (parsed == array).all()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "its header is , not 00 00 08"),
        (b"\0\0\x08\x01\0\0", "its header is 00 00 08 01, not"),
        (b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", "its header is 00 00 0d 01, not"),
        (b"\0\0\x08\x01\0\0\0\x02\x05", r"its header says \[2\], but 1 values follow"),
        (b"\0\0\x08\x01\0\0\0\x00\x05", r"its header says \[0\], but 1 values follow"),
    ],
    ids=["empty", "cut header", "floats", "too few", "too many"],
)
def test_content_that_is_not_idx_is_refused(small, tmp_path, content, words):
    with pytest.raises(ValueError, match=words):
        parse_idx(content)
    path = tmp_path / "file"
    path.write_bytes(content)
    name = "train-labels-idx1-ubyte"
    spec = dataclasses.replace(small.spec, file_sha256={name: hashlib.sha256(content).hexdigest()})
    with pytest.raises(DataError, match=f"{path} is not an IDX file of unsigned bytes: {words}"):
        read_idx(spec, name, path)


@pytest.mark.parametrize("file", ["train_images.npy", "train_labels.npy"])
@pytest.mark.parametrize("kind", ["flip", "truncate", "empty", "swap", "reshape"])
def test_damaged_arrays_are_refused(small, tmp_path, file, kind):
    arrays = tmp_path / "kmnist" / "3.0.1-arrays"
    shutil.copytree(small.data_dir / "kmnist" / "3.0.1-arrays", arrays)
    path = arrays / file
    content = bytearray(path.read_bytes())
    if kind == "flip":
        content[-10] ^= 1
    elif kind == "truncate":
        del content[-10:]
    elif kind == "empty":
        content.clear()
    elif kind == "swap":
        content = (arrays / file.replace("train", "test")).read_bytes()
    path.write_bytes(content)
    if kind == "reshape":  # the same bytes in the same order
        np.save(path, np.load(path).reshape((-1, 14, 56, 1) if "images" in file else (-1, 1)))
    with pytest.raises(DataError, match="delete that folder"):
        load_idx_dataset(small.spec, "train", tmp_path)


def test_copies_that_are_not_whole_or_not_array_record_are_refused(small, copied_data, tmp_path):
    info = copied_data / "dataset_info.json"
    whole = info.read_text()
    info.write_text(whole.replace("array_record", "tfrecord"))
    with pytest.raises(DataError, match="not in ArrayRecord format"):
        load_idx_dataset(small.spec, "train", tmp_path)
    info.write_text(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cannot be read"):
        load_idx_dataset(small.spec, "train", tmp_path)
    info.unlink()
    with pytest.raises(DataError, match="not a complete TFDS copy"):
        load_idx_dataset(small.spec, "train", tmp_path)


def test_damaged_prepared_copy_is_refused(small, copied_data, tmp_path):
    path = next(copied_data.glob("*train*"))
    content = bytearray(path.read_bytes())
    content[10_000] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="delete that folder"):
        load_idx_dataset(small.spec, "train", tmp_path)
    assert not (tmp_path / "kmnist" / "3.0.1-arrays").exists()


def test_prepared_copy_of_other_data_is_refused(small, copied_data, tmp_path):
    spec = dataclasses.replace(small.spec, content_sha256={"train": "0" * 64})
    with pytest.raises(DataError, match=r"is not Small MNIST \(split train\); delete that folder"):
        load_idx_dataset(spec, "train", tmp_path)
    assert not (tmp_path / "kmnist" / "3.0.1-arrays").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("killed_in", "call", "leaves"),
    [
        ("PIL.Image.fromarray", 70, "incomplete.*"),  # of the test split
        ("numpy.save", 3, "3.0.1-arrays.unfinished"),
    ],
    ids=["TFDS writes", "the arrays are written"],
)
def test_killed_preparation_leaves_nothing_that_is_taken_for_data(
    small, tmp_path, run_python, killed_in, call, leaves
):
    """Kill -9 amid the writing; the next call succeeds."""
    module, name = killed_in.rsplit(".", 1)
    code = (
        f"import os, signal, {module} as module\n"
        "from jaxcnn.data import IdxSpec, load_idx_dataset\n"
        f"original, calls = module.{name}, []\n"
        "def dies(*args, **kwargs):\n"
        "    calls.append(args)\n"
        f"    if len(calls) == {call}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return original(*args, **kwargs)\n"
        f"module.{name} = dies\n"
        f"load_idx_dataset({small.spec!r}, 'train', {str(tmp_path)!r}, {str(small.files)!r})\n"
    )
    assert run_python("-c", code).returncode == -signal.SIGKILL
    assert list((tmp_path / "kmnist").glob(leaves))
    assert not (tmp_path / "kmnist" / "3.0.1-arrays").exists()
    data = load_idx_dataset(small.spec, "train", tmp_path, small.files)
    assert_equal(data, load_idx_dataset(small.spec, "train", small.data_dir))


@pytest.mark.parametrize("load", [load_fashion_mnist, load_fashion_mnist_sample])
def test_unknown_split_is_refused(load):
    with pytest.raises(ValueError, match=r"'valid'.*'train', 'test'"):
        load("valid")


def test_unknown_data_set_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'fashion_mnist'"):
        load_dataset("fashon_mnist", "train")


# Data sets of one's own


def own_data(**changes):
    attributes = {
        "images": np.zeros((3, 8, 9, 2), np.uint8),
        "labels": np.array([2, 0, 1]),
        "class_names": ["cat", "dog", "owl"],
    }
    return SimpleNamespace(**(attributes | changes))


@pytest.mark.parametrize(
    ("asarray", "dtype"),
    [(np.asarray, np.int64), (np.asarray, np.uint8), (np.asarray, np.uint64), (jnp.asarray, None)],
)
def test_any_object_of_the_protocol_is_accepted(asarray, dtype):
    data = own_data()
    data.images, data.labels = asarray(data.images), asarray(data.labels, dtype)
    checked = check_dataset(data, "train")
    assert isinstance(checked, Dataset)
    assert (checked.images.dtype, checked.labels.dtype) == (np.uint8, np.int32)
    assert_equal(checked, own_data())
    assert checked.class_names == ("cat", "dog", "owl")


def test_a_checked_data_set_is_the_same():
    data = load_fashion_mnist_sample("test")
    assert check_dataset(data, "test").digest() == data.digest()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"images": np.zeros((3, 8, 9), np.uint8)},
            "test.images is uint8 [3, 8, 9]; it must be uint8 [N, H, W, C], no axis empty"
            "; gray images take images[..., None]",
        ),
        (
            {"images": np.zeros((3, 8, 9, 1), np.float32)},
            "test.images is float32 [3, 8, 9, 1]; it must be uint8 [N, H, W, C], no axis "
            "empty; these are 0 to 0, so take (255 * images).round().astype('uint8')",
        ),
        (
            {"images": np.arange(256.0).reshape(4, 8, 8, 1)},
            "test.images is float64 [4, 8, 8, 1]; it must be uint8 [N, H, W, C], no axis "
            "empty; these are 0 to 255, so take images.round().astype('uint8')",
        ),
        (
            {"images": np.full((3, 8, 9, 1), np.nan)},
            "test.images is float64 [3, 8, 9, 1]; it must be uint8 [N, H, W, C], no axis empty; "
            "some of these are not finite",
        ),
        (
            {"images": np.full((3, 8, 9, 1), 1000)},
            "test.images is int64 [3, 8, 9, 1]; it must be uint8 [N, H, W, C], no axis empty; "
            "these are 1000 to 1000, so scale them to 0 to 255",
        ),
        (
            {"images": np.linspace(-1, 1, 216).reshape(3, 8, 9, 1)},
            "test.images is float64 [3, 8, 9, 1]; it must be uint8 [N, H, W, C], no axis empty; "
            "these are -1 to 1, so scale them to 0 to 255",
        ),
        (
            {"images": np.eye(3, dtype=bool)[:, :, None, None]},
            "test.images is bool [3, 3, 1, 1]; it must be uint8 [N, H, W, C], no axis "
            "empty; these are 0 to 1, so take (255 * images).round().astype('uint8')",
        ),
        (
            {"images": np.eye(3, dtype=np.uint8)[:, :, None, None]},
            "test.images is uint8 [3, 3, 1, 1] of 0 and 1 alone; pixels must be from 0 to 255: "
            "multiply images in [0, 1] by 255 before they become uint8",
        ),
        (
            {"images": np.zeros((3, 1, 28, 28), np.uint8)},
            "test.images is uint8 [3, 1, 28, 28], which looks like [N, C, H, W]; it must be "
            "[N, H, W, C]: images.transpose(0, 2, 3, 1)",
        ),
        (
            {"images": np.zeros((3, 3, 32, 32), np.uint8)},
            "test.images is uint8 [3, 3, 32, 32], which looks like [N, C, H, W]; it must be "
            "[N, H, W, C]: images.transpose(0, 2, 3, 1)",
        ),
        (
            {"images": np.zeros((0, 8, 9, 1), np.uint8), "labels": np.zeros(0, int)},
            "test.images is uint8 [0, 8, 9, 1]; it must be uint8 [N, H, W, C], no axis empty",
        ),
        ({"images": [[[[0]]]]}, "test.images is of type list; it must be an array"),
        (
            {"labels": np.array([True, False, True])},
            "test.labels is bool [3]; it must be integers [3], one for each image",
        ),
        (
            {"labels": np.zeros(3, np.float32)},
            "test.labels is float32 [3]; it must be integers [3], one for each image",
        ),
        (
            {"labels": np.zeros(4, int)},
            "test.labels is int64 [4]; it must be integers [3], one for each image",
        ),
        (
            {"labels": np.zeros((3, 1), int)},
            "test.labels is int64 [3, 1]; it must be integers [3], one for each image; take "
            "labels[:, 0]",
        ),
        (
            {"labels": np.eye(3)},
            "test.labels is float64 [3, 3]; it must be integers [3], one for each image; of "
            "one-hot rows take labels.argmax(axis=1)",
        ),
        (
            {"labels": np.array(["cat", "dog", "owl"])},
            "test.labels is <U3 [3]; it must be integers [3], one for each image",
        ),
        (
            {"labels": np.array([3, 1, 2])},
            "test.labels holds 3; with 3 class_names, labels must be from 0 to 2: subtract 1",
        ),
        (
            {"labels": np.array([0, 3, 1])},
            "test.labels holds 3; with 3 class_names, labels must be from 0 to 2",
        ),
        (
            {"labels": np.array([0, 2, -1])},
            "test.labels holds -1; with 3 class_names, labels must be from 0 to 2",
        ),
        ({"labels": None}, "test.labels is of type NoneType; it must be an array"),
        (
            {"class_names": ()},
            "test.class_names is (); it must be a sequence of str, one for each class",
        ),
        (
            {"class_names": "cat"},
            "test.class_names is 'cat'; it must be a sequence of str, one for each class",
        ),
        (
            {"class_names": [0, 1, 2]},
            "test.class_names is [0, 1, 2]; it must be a sequence of str, one for each class",
        ),
        (
            {"class_names": np.arange(1000)},
            "test.class_names is [0, 1, 2, 3, 4, 5, ...]; it must be a sequence of str, one for "
            "each class",
        ),
    ],
)
def test_data_sets_that_cannot_be_trained_on_are_refused(changes, message):
    with pytest.raises(ConfigError) as error:
        check_dataset(own_data(**changes), "test")
    assert str(error.value) == message


@pytest.mark.parametrize(
    "changes",
    [
        {"images": np.full((3, 8, 9, 1), 2, np.uint8)},  # dark, but not of 0 and 1
        {"images": np.zeros((3, 8, 9, 1), np.uint8)},
        {"images": np.zeros((3, 3, 3, 103), np.uint8)},  # many channels, as from a satellite
        {"images": np.zeros((3, 1, 128, 9), np.uint8)},  # a row each, as of a signal
        {"images": np.zeros((3, 4, 4, 4), np.uint8)},
        {"class_names": ("crane", "crane", "owl")},  # a bird and a machine, as in ImageNet
        {"class_names": np.array(["cat", "dog", "owl"])},
        {"labels": np.zeros(3, int)},
    ],
)
def test_unusual_data_sets_are_accepted(changes):
    checked = check_dataset(own_data(**changes), "train")
    assert checked.class_names == tuple(own_data(**changes).class_names)


def good(split):
    data = own_data()
    return Dataset(data.images, data.labels, tuple(data.class_names))


@pytest.mark.parametrize(
    ("loader", "words"),
    [
        (lambda *_: None, r"\('train'\) is of type NoneType, which has no images and no labels"),
        (lambda *_: (np.zeros((1, 2, 2, 1), np.uint8), np.zeros(1)), "is of type tuple, which has"),
        (lambda *_: (x for x in range(3)), "is of type generator, which has no images"),
        (lambda *_: own_data().__dict__, "is of type dict, which has no images"),
        (lambda *_: own_data(images=np.zeros((3, 8, 9, 1))), r"\('train'\).images is float64"),
        (lambda *_: own_data(labels=np.arange(1, 4)), r"\('train'\).labels holds 3; .* subtract 1"),
        (lambda *_: own_data(labels=np.zeros(2, int)), "must be integers .3., one for each image"),
        (lambda *_: own_data(class_names=["cat", "dog"]), "labels holds 2; with 2 class_names"),
        (good, r"\(split, data_dir, data_source\) fails: too many positional arguments; it must"),
        (lambda: None, r"\(split, data_dir, data_source\) fails: too many positional arguments"),
        ({"train": own_data()}, "fails: the entry is a dict, not a function"),
    ],
)
def test_what_a_registered_loader_returns_goes_through_the_same_door(monkeypatch, loader, words):
    monkeypatch.setitem(DATASETS, "mine", loader)
    with pytest.raises(ConfigError, match=rf"^jaxcnn.data.DATASETS\['mine'\].*{words}") as error:
        load_dataset("mine", "train")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "loader",
    [
        lambda *arguments: good(arguments[0]),
        lambda split, data_dir=None, data_source=None: own_data(),
        functools.partial(lambda of, split, data_dir, data_source: of(split), good),
        lambda *_: own_data(images=jnp.zeros((3, 8, 9, 2), jnp.uint8), labels=jnp.array([2, 0, 1])),
    ],
)
def test_a_registered_loader_may_be_of_any_make(monkeypatch, loader):
    monkeypatch.setitem(DATASETS, "mine", loader)
    data = load_dataset("mine", "train")
    assert isinstance(data, Dataset)
    assert data.digest() == check_dataset(own_data(), "train").digest()


def test_an_error_within_a_loader_stays_as_it_is(monkeypatch):
    def loader(split, data_dir, data_source):
        raise TypeError("of its own")

    monkeypatch.setitem(DATASETS, "mine", loader)
    with pytest.raises(TypeError, match=r"^of its own$"):
        load_dataset("mine", "train")


def test_objects_that_are_no_data_set_are_refused():
    with pytest.raises(ConfigError) as error:
        check_dataset(SimpleNamespace(images=np.zeros((1, 2, 2, 1), np.uint8)), "train")
    assert str(error.value) == (
        "train is of type SimpleNamespace, which has no labels and no class_names; it must have "
        "the attributes images, labels, class_names, as jaxcnn.data.Dataset has"
    )
