"""Sets larger than memory: decoded, checked and streamed in parts, to the same bits."""

import contextlib
import dataclasses
import io
import json
import signal
import sys
import threading
import tracemalloc
import types

import jax
import numpy as np
import pytest
from PIL import Image

from conftest import CACHED, Tiny, small_config
from harness import TIMINGS
from jaxcnn.data import MIXINGS, Dataset, dataset, load_dataset
from jaxcnn.data.dataset import SelectedImages
from jaxcnn.data.decode import decode
from jaxcnn.data.stream import BatchStream, choose_loading
from jaxcnn.errors import ConfigError, DataError, StoppedError
from jaxcnn.machine import memory_bytes
from jaxcnn.pictures import resize_and_crop
from jaxcnn.train import parallel, train_and_evaluate
from jaxcnn.train.prepare import prepare
from jaxcnn.train.programs import Programs
from jaxcnn.train.record import report
from jaxcnn.train.record.report import describe

pytestmark = [*CACHED, pytest.mark.usefixtures("as_users", "blending")]
RNG = np.random.default_rng(0)
RECIPE = {
    "augmentation": "shift:1, flip",
    "mixing": "blend",
    "ema_decay": 0.9,
    "schedule": "cosine",
    "warmup_epochs": 0.5,
    "steps_per_call": 1,
}


@pytest.fixture(scope="module")
def as_users():
    """JAX as users have it: Optax does not hold under the tests' strictness."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def blending():
    """A mixing that compiles in a moment: mixup with a uniform share."""

    def blend(key, images, targets):
        share = jax.random.uniform(key, (), targets.dtype)
        return tuple(share * x + (1 - share) * x[::-1] for x in (images, targets))

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MIXINGS, "blend", blend)
        yield


def random_set(count):
    images = RNG.integers(0, 256, (count, 12, 12, 1), np.uint8)
    return Dataset(images, RNG.integers(0, 3, count).astype(np.int32), ("a", "b", "c"))


TRAIN, TEST = random_set(84), random_set(37)  # five full batches and one of 4; two and one of 5


def config_of(**changes):
    """Two epochs of all the examples."""
    config = small_config(**RECIPE | {"batch_size": 16, "image_size": 14} | changes)
    config.max_train_examples = config.max_test_examples = 0
    return config


def train(folder, train=TRAIN, test=TEST, **changes):
    """Train; return all that must be the same."""
    state = train_and_evaluate(config_of(**changes), folder, model=Tiny(), train=train, test=test)
    rows = [
        {key: value for key, value in json.loads(line).items() if key not in TIMINGS}
        for name in ("metrics.jsonl", "steps.jsonl")
        for line in (folder / name).read_text().splitlines()
    ]
    return jax.device_get(state), rows


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a[0], b[0])
    assert a[1] == b[1]


@pytest.fixture(scope="module")
def in_memory(tmp_path_factory, compile_cache, as_users, blending):
    """What a run with the images in memory ends with."""
    return train(tmp_path_factory.mktemp("in_memory"), data_loading="memory")


# The same bits


def test_streamed_is_the_same_as_in_memory(tmp_path, in_memory, capsys):
    assert_same(train(tmp_path, data_loading="stream"), in_memory)
    printed = capsys.readouterr().out
    assert "84 training and 37 test images, streamed (config.data_loading)\n" in printed


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"steps_per_call": 3, "gradient_accumulation_steps": 2},
        {"num_devices": 2, "batch_size": 20},
        {"num_devices": 2, "batch_size": 13, "data_parallel": "jit"},  # with padding
    ],
)
def test_it_is_the_same_in_a_loop_and_on_several_devices(tmp_path, changes):
    changes = changes | {"augmentation": "flip", "mixing": "none"}  # which compiles in less time
    runs = [train(tmp_path / word, data_loading=word, **changes) for word in ("memory", "stream")]
    assert_same(*runs)


@pytest.mark.usefixtures("as_users")
def test_a_validation_set_is_taken_of_images_on_disk_without_reading_them(tmp_path):
    np.save(tmp_path / "images.npy", TRAIN.images)
    on_disk = TRAIN._replace(images=np.load(tmp_path / "images.npy", mmap_mode="r"))
    changes = {"validation_examples": 20, "num_epochs": 1, "augmentation": "flip"}
    runs = [
        train(tmp_path / word, train=train_set, data_loading=word, **changes | {"mixing": "none"})
        for word, train_set in (("memory", TRAIN), ("stream", on_disk))
    ]
    assert_same(*runs)
    places = np.array([5, 3, 80])
    taken = dataset.check_dataset(on_disk, "train").take(places)
    assert isinstance(taken.images, SelectedImages)
    np.testing.assert_array_equal(taken.take(np.array([2, 0])).images, TRAIN.images[[80, 5]])
    again = dataset.check_dataset(taken, "train").first(2)
    assert isinstance(again.images, SelectedImages)
    np.testing.assert_array_equal(again.images, TRAIN.images[[5, 3]])
    assert taken.first(9).digest() == taken.digest()
    assert taken.digest() == TRAIN.take(places).digest()


@pytest.mark.parametrize("afterwards", ["stream", pytest.param("memory", marks=pytest.mark.slow)])
def test_stopped_within_an_epoch_it_goes_on_bit_for_bit(
    tmp_path, in_memory, monkeypatch, afterwards
):
    calls, take_steps = [], Programs.train

    def stop_in_the_second_epoch(self, state, step, count):
        calls.append(step)
        if step == 8:
            signal.raise_signal(signal.SIGTERM)
        return take_steps(self, state, step, count)

    monkeypatch.setattr(Programs, "train", stop_in_the_second_epoch)
    with pytest.raises(StoppedError, match="saved after step 9"):
        train(tmp_path, data_loading="stream")
    assert not [each for each in threading.enumerate() if each.name.startswith("grain")]
    assert_same(train(tmp_path, data_loading=afterwards), in_memory)
    assert calls == list(range(12))


class OnDemand:
    """Images that can be asked for by their places, and for nothing else."""

    def __init__(self, images):
        self._images, self.shape, self.dtype = images, images.shape, images.dtype

    def __len__(self):
        return len(self._images)

    def __getitem__(self, places):
        assert isinstance(places, np.ndarray)
        assert len(places) <= 16
        return self._images[places]


def test_images_are_asked_for_by_the_batch(in_memory):
    setup = prepare(config_of(data_loading="stream"), model=Tiny(), train=TRAIN, test=TEST)
    train, test = (each._replace(images=OnDemand(each.images)) for each in (TRAIN, TEST))
    setup = dataclasses.replace(setup, train=train, test=test)
    programs, state = Programs(setup), setup.state
    for step, row in enumerate(in_memory[1][2:8]):
        state, metrics = programs.train(state, step, 1)
        assert metrics.total().loss() == row["loss"]
    total = list(programs.evaluate(state))[-1].total()
    assert total.count == 37
    assert total.loss() == in_memory[1][0]["test_loss"]


@pytest.mark.slow
def test_pictures_in_folders_stream_from_the_files_of_the_cache(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    for i in range(40):
        path = tmp_path / "pictures" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
    config = {"dataset": f"folder:{tmp_path / 'pictures'}", "train": None, "test": None}
    config |= {"augmentation": "flip", "mixing": "none"}
    runs = []
    for memory in (10**6, 10_000):
        monkeypatch.setattr(parallel, "memory_bytes", lambda memory=memory: memory)
        runs.append(train(tmp_path / f"{memory}", **config))
    assert_same(*runs)
    printed = capsys.readouterr().out
    assert "32 training and 8 test images, in memory\n" in printed
    reason = "(2.35e-05 GB are more than half of the device's 1e-05 GB)"
    assert f"32 training and 8 test images, streamed {reason}\n" in printed


# The rule


@pytest.mark.parametrize(
    ("word", "memory", "streams"),
    [
        ("auto", 2 * 121 * 144, False),  # a pixel is a byte
        ("auto", 2 * 121 * 144 - 1, True),
        ("memory", 1, False),
        ("stream", 10**12, True),
    ],
)
def test_images_stream_if_they_are_more_than_half_of_the_memory(word, memory, streams, monkeypatch):
    assert choose_loading(word, [TRAIN, TEST], memory).streams is streams
    monkeypatch.setattr(parallel, "memory_bytes", lambda: 2 * memory)  # which two CPUs share
    config = small_config(num_devices=2, batch_size=28, data_loading=word)
    setup = prepare(config, model=Tiny(), train=TRAIN, test=TEST)
    assert setup.loading.streams is streams
    assert f"images, {setup.loading.words}\n" in describe(setup, None)


def test_a_device_of_its_own_memory_is_asked(monkeypatch):
    class Device:
        platform, process_index = "gpu", 0

        def memory_stats(self):
            return {"bytes_limit": 5}

    one = parallel.DataParallel(1)
    assert one.memory_bytes() == memory_bytes()
    monkeypatch.setattr(one, "devices", [Device()])
    assert one.memory_bytes() == 5


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        ("0::/a/b\n", {"a/memory.max": "4096\n", "a/b/memory.max": "max\n"}, 4096),
        ("0::/out/of/it\n", {"memory.max": "8192\n"}, 8192),
        (
            "12:cpu:/a\n9:hugetlb,memory:/a\n0::/\n",
            {"memory/a/memory.limit_in_bytes": "512\n", "memory.max": "max\n"},
            512,
        ),
        ("0::/\n", {"memory.max": "999999999999999999999\n"}, None),
        ("0::/\n", {}, None),
        (None, {}, None),
    ],
)
def test_the_memory_is_the_machines_or_what_a_control_group_leaves(tmp_path, groups, files, limit):
    for name, content in files.items():
        path = tmp_path / "limits" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    if groups is not None:
        (tmp_path / "groups").write_text(groups)
    found = memory_bytes(tmp_path / "groups", tmp_path / "limits")
    assert found == limit if limit else found > 2**25


def test_a_grain_that_cannot_be_imported_is_said(tmp_path, monkeypatch):
    (tmp_path / "grain.py").write_text("import not_here")
    monkeypatch.delitem(sys.modules, "grain", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError) as error:
        BatchStream(lambda number: number, count=1)
    assert f"{error.value}" == (
        "images are streamed by the package grain, which cannot be imported here (No module named "
        "'not_here'); install it again: pip install --force-reinstall grain"
    )


def test_without_grain_a_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    config = small_config(dataset="folder:nowhere", data_loading="stream")
    with pytest.raises(ConfigError) as error:  # rather than of the folder
        prepare(config)
    assert f"{error.value}" == (
        "config.data_loading is 'stream', which takes the package grain: pip install grain"
    )
    with pytest.raises(ConfigError, match=r"^images are streamed \(1.74e-05 GB are more than"):
        choose_loading("auto", [TRAIN, TEST], 1000)
    choose_loading("auto", [TRAIN, TEST], 10**6)


# The stream


def test_any_batch_can_be_next_and_few_others_are_read():
    read = []
    stream = BatchStream(lambda number: read.append(number) or -number, count=10**9)
    for number in (999_999_990, 999_999_991, 3, 999_999_999):
        assert stream.take(number) == -number
    stream.close()
    assert len(read) < 20
    with pytest.raises(ValueError, match="the batches are 0 to 999999999, got 1000000000"):
        stream.take(10**9)


def test_an_error_of_reading_is_told():
    def read(number):
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        BatchStream(read, count=3).take(0)


# Decoding and checking in parts


def as_png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("is_on_disk", [True, False])
@pytest.mark.parametrize(
    "shapes",
    [
        [(6, 6, 1)] * 7,
        [(6, 6, 1), (6, 6, 1), (6, 6, 3), (6, 6, 1)] * 2,  # the first in colour comes late
        [(6, 6, 3), (9, 9, 1), (5, 5, 3), (12, 12, 3), (20, 12, 1)],  # all become 12 x 12
        [(7, 7, 1), (7, 7, 1), (12, 12, 1), (7, 7, 3), (12, 12, 3), (3, 3, 1)],
        [(5, 5, 1)] * 3 + [(30, 40, 3)],
    ],
)
def test_pictures_become_alike_whichever_comes_first(tmp_path, shapes, is_on_disk):
    pictures = [RNG.integers(0, 256, shape, np.uint8) for shape in shapes]
    files = [(f"{i}", as_png(pixels)) for i, pixels in enumerate(pictures)]
    paths = [tmp_path / "one.npy", tmp_path / "two.npy"]
    arrays = decode("p", files, [2, len(files) - 2], 12, paths=paths if is_on_disk else None)
    size = (6, 6) if {shape[:2] for shape in shapes} == {(6, 6)} else (12, 12)
    channels = max(shape[2] for shape in shapes)
    expected = [
        np.broadcast_to(x if x.shape[:2] == size else resize_and_crop(x, 12), (*size, channels))
        for x in pictures
    ]
    np.testing.assert_array_equal(arrays[0], expected[:2])
    np.testing.assert_array_equal(arrays[1], expected[2:])
    if is_on_disk:
        for path, array in zip(paths, arrays, strict=True):
            assert isinstance(array, np.memmap)
            np.testing.assert_array_equal(np.load(path), array)


def test_a_set_that_memory_cannot_hold_is_not_decoded_into_it(monkeypatch):
    monkeypatch.setattr("jaxcnn.data.decode.memory_bytes", lambda: 10**6)
    picture = ("0", as_png(np.zeros((10, 10, 3), np.uint8)))
    with pytest.raises(DataError, match=r"^p takes 0.3 GB decoded, more than memory holds, and"):
        decode("p", [picture], [10**6, 0], None)


@contextlib.contextmanager
def at_most(limit):
    """Check how much memory arrays, bytes and other objects take meanwhile."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < limit, f"{peak:,} bytes, at most {limit:,.0f}"


def test_decoding_and_checking_take_a_part_of_the_memory_that_the_images_do(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "_PART_BYTES", 2**16)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    for i in range(160):
        path = tmp_path / "p" / ("train" if i % 2 else "test") / "ab"[i // 2 % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((256, 256, 3), i, np.uint8)).save(path)
    word = f"folder:{tmp_path / 'p'}"
    load_dataset(word, "train", image_size=7)  # what is imported at the first use stays
    size = 160 * 256 * 256 * 3  # many times what Python's table of strings may grow by meanwhile
    with at_most(size / 4):
        train, test = (load_dataset(word, split, image_size=256) for split in ("train", "test"))
        assert train.digest() != test.digest()
    assert train.images.nbytes + test.images.nbytes == size
    assert isinstance(train.images.base, np.memmap)
    with at_most(size / 16):
        sets = types.SimpleNamespace(
            train=train, validation=None, test=train, settings={"dataset": "x"}
        )
        [note] = report._data_notes(sets)
    assert note.startswith("the test set is the training set")


@pytest.mark.parametrize("part_bytes", [1, 300, 10**6])
def test_what_is_asked_of_all_pixels_does_not_depend_on_the_parts(part_bytes, monkeypatch):
    images = RNG.integers(0, 2, (50, 6, 6, 1), np.uint8)
    digest = Dataset(images, TRAIN.labels[:50], ("a",)).digest()
    monkeypatch.setattr(dataset, "_PART_BYTES", part_bytes)
    assert Dataset(images, TRAIN.labels[:50], ("a",)).digest() == digest
    with pytest.raises(ConfigError, match="of 0 and 1 alone"):
        dataset.check_dataset(Dataset(images, TRAIN.labels[:50], ("a", "b", "c")), "train")
    assert not dataset.is_constant(images)
    assert dataset.is_constant(np.ones_like(images))
    zeros = np.zeros_like(images)
    dataset.check_dataset(Dataset(zeros, TRAIN.labels[:50], ("a", "b", "c")), "train")
    images[-1, -1, -1] = 2
    dataset.check_dataset(Dataset(images, TRAIN.labels[:50], ("a", "b", "c")), "train")
    constant = np.ones_like(images)
    constant[-1, -1, -1] = 2
    assert not dataset.is_constant(constant)
