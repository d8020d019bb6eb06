"""Data of one's own: pictures in folders, IDX files, TFDS's prepared sets, arrays; and training."""

import contextlib
import gzip
import io
import json
import os
import struct
import sys
from types import ModuleType

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image, ImageDraw

import jaxcnn
import jaxcnn.data.decode as decoding
from conftest import CACHED, Tiny, small_config
from jaxcnn.cli.main import main
from jaxcnn.data import folder as folder_module
from jaxcnn.data import (
    from_arrays,
    from_folder,
    is_dataset,
    load_dataset,
    open_folder,
    open_tfds,
    sources,
)
from jaxcnn.errors import ConfigError, DataError
from jaxcnn.pictures import ASPECT_RATIOS, fit_picture, read_pictures, resize_and_crop
from jaxcnn.train import train_and_evaluate

pytestmark = CACHED

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty folder of decoded arrays."""
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "_UNKEPT", {})
    return tmp_path / "cache" / "jaxcnn" / "arrays"


def save(path, size=(8, 8), channels=3, pixels=None, **how):
    """Save a picture of noise; `size` is (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels is None:
        pixels = RNG.integers(0, 256, (*size, channels), np.uint8)
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(path, **how)
    return pixels


def fill(root, counts, **how):
    """Save pictures: {folder: how many}; return their pixels by path."""
    return {
        path: save(path, **how)
        for name, count in counts.items()
        for path in (root / name / f"{i}.png" for i in range(count))
    }


def assert_holds(dataset, pictures, names_of):
    """Check that a data set has exactly these pictures, each with the name of its class."""
    found = {
        (dataset.class_names[label], image.tobytes())
        for image, label in zip(dataset.images, dataset.labels, strict=True)
    }
    assert len(dataset.labels) == len(pictures)
    assert found == {(names_of(path), pixels.tobytes()) for path, pixels in pictures.items()}


# Folders


@pytest.mark.parametrize("held_out", ["test", "Test", "val", "valid"])
def test_a_folder_for_each_split(tmp_path, held_out):
    root = tmp_path / "pictures"
    counts = {"train/cat": 5, "train/dog": 3, f"{held_out}/cat": 2, f"{held_out}/dog": 2}
    pictures = fill(root, counts)
    save(root / "train" / "cat" / "more" / "deep.JPG", pixels=np.full((8, 8, 3), 9, np.uint8))
    pictures[root / "train" / "cat" / "more"] = np.full((8, 8, 3), 9, np.uint8)
    splits = from_folder(root)
    for split, name in (("train", "train"), ("test", held_out)):
        mine = {path: x for path, x in pictures.items() if path.relative_to(root).parts[0] == name}
        dataset = getattr(splits, split)
        assert dataset.class_names == ("cat", "dog")
        assert (dataset.images.dtype, dataset.labels.dtype) == (np.uint8, np.int32)
        assert_holds(dataset, mine, lambda path: path.relative_to(root).parts[1])


def test_a_test_folder_comes_before_one_for_validation(tmp_path, capsys):
    parts = ("train", "val", "test")
    fill(tmp_path / "p", {f"{split}/{name}": 2 for split in parts for name in "ab"})
    for path in (tmp_path / "p" / "test").rglob("*.png"):
        save(path, pixels=np.full((8, 8, 3), 100 + "ab".index(path.parent.name), np.uint8))
    assert set(from_folder(tmp_path / "p").test.images.ravel().tolist()) == {100, 101}
    assert (
        "note: left out 1 folder beside those of train and test: 'val/'" in capsys.readouterr().err
    )


def test_one_level_is_split_by_the_seed_each_class_alike(tmp_path):
    root = tmp_path / "p"
    pictures = fill(root, {"a": 10, "b": 20, "c": 2})
    train, test = from_folder(root)
    assert np.bincount(test.labels).tolist() == [2, 4, 1]
    assert np.bincount(train.labels).tolist() == [8, 16, 1]
    both = train._replace(
        images=np.concatenate([train.images, test.images]),
        labels=np.concatenate([train.labels, test.labels]),
    )
    assert_holds(both, pictures, lambda path: path.parent.name)
    assert set(train.first(6).labels.tolist()) >= {0, 1}  # the order mixes the classes
    assert from_folder(root, seed=1).test.digest() != test.digest()
    assert np.bincount(from_folder(root, test_fraction=0.5).test.labels).tolist() == [5, 10, 1]
    save(root / "b" / "new.png")  # moves at most one picture of its class, none of another
    now = {x.tobytes() for x in from_folder(root).test.images}
    assert len({x.tobytes() for x in test.images} - now) <= 1


def test_channels_are_those_of_the_pictures(tmp_path):
    gray = fill(tmp_path / "p", {"a": 2, "b": 2}, channels=1)
    train, test = from_folder(tmp_path / "p")
    assert train.images.shape == (2, 8, 8, 1)
    palette = Image.fromarray(next(iter(gray.values()))[..., 0]).quantize(16)
    palette.save(tmp_path / "p" / "a" / "palette.png")  # a palette of gray levels
    Image.fromarray(np.eye(8, dtype=bool)).save(tmp_path / "p" / "b" / "bits.png")
    assert from_folder(tmp_path / "p").train.images.shape == (4, 8, 8, 1)
    save(tmp_path / "p" / "b" / "colour.png")
    train, test = from_folder(tmp_path / "p")
    assert train.images.shape[1:] == test.images.shape[1:] == (8, 8, 3)
    levels = np.asarray(palette.convert("RGB"))
    assert any((x == levels).all() for x in (*train.images, *test.images))


def test_pictures_of_any_size_become_squares(tmp_path):
    root = tmp_path / "p"
    sizes = {"a/1": (40, 20), "a/2": (20, 41), "b/1": (16, 16), "b/2": (12, 12), "b/3": (9, 33)}
    pixels = {name: save(root / f"{name}.png", size) for name, size in sizes.items()}
    with pytest.raises(DataError, match=r"different sizes, as '.*' \(\d+ x \d+\).*image_size="):
        from_folder(root)
    splits = from_folder(root, image_size=16)
    found = {x.tobytes() for split in splits for x in split.images}
    assert found == {resize_and_crop(each, 16).tobytes() for each in pixels.values()}
    assert pixels["b/1"].tobytes() in found


@pytest.mark.parametrize("aspect_ratio", ASPECT_RATIOS)
def test_the_aspect_ratio_says_how(tmp_path, aspect_ratio, cache):
    root = tmp_path / "p"
    sizes = {"a/1": (40, 20), "a/2": (5, 37), "b/1": (16, 16), "b/2": (9, 33)}
    pixels = {name: save(root / f"{name}.png", size) for name, size in sizes.items()}
    cropped = from_folder(root, image_size=16)
    splits = from_folder(root, image_size=16, aspect_ratio=aspect_ratio)
    found = {x.tobytes() for split in splits for x in split.images}
    expected = (fit_picture(x, 16, aspect_ratio=aspect_ratio) for x in pixels.values())
    assert found == {x.tobytes() for x in expected}
    for split in ("train", "test"):
        word = load_dataset(f"folder:{root}", split, image_size=16, aspect_ratio=aspect_ratio)
        assert word.digest() == getattr(splits, split).digest()
    # Each is kept in a place of its own.
    assert len(list(cache.glob("*/*/record.json"))) == (1 if aspect_ratio == "crop" else 2)
    assert from_folder(root, image_size=16).train.digest() == cropped.train.digest()


def test_what_was_kept_before_there_was_a_choice_stays(tmp_path):
    """The settings that say where decoded arrays are: those of cropped pictures are as before."""
    two_classes(tmp_path / "p")
    where = str((tmp_path / "p").resolve())
    assert open_folder(where, image_size=16).settings == ("folder", where, [16, 0.2, 0])
    assert open_folder(where).settings == ("folder", where, [None, 0.2, 0])
    padded = open_folder(where, image_size=16, aspect_ratio="pad")
    assert padded.settings == ("folder", where, [16, 0.2, 0, "pad"])
    folder = tmp_path / "pets" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{}")
    assert open_tfds("pets", 16, tmp_path).settings == ("tfds", str(folder.resolve()), 16)
    stretched = open_tfds("pets", 16, tmp_path, "stretch")
    assert stretched.settings == ("tfds", str(folder.resolve()), [16, "stretch"])


def test_alike_pictures_stay_as_they_are_up_to_the_size(tmp_path):
    pictures = fill(tmp_path / "p", {"a": 3, "b": 3}, size=(12, 12))
    for size in (None, 12, 28):
        both = from_folder(tmp_path / "p", image_size=size)
        assert {x.tobytes() for each in both for x in each.images} == {
            x.tobytes() for x in pictures.values()
        }
    assert from_folder(tmp_path / "p", image_size=10).train.images.shape[1:] == (10, 10, 3)
    fill(tmp_path / "q", {"a": 3, "b": 3}, size=(6, 9))
    assert from_folder(tmp_path / "q").train.images.shape[1:] == (6, 9, 3)
    assert from_folder(tmp_path / "q", image_size=8).train.images.shape[1:] == (8, 8, 3)


def test_a_square_is_cut_from_the_middle():
    picture = np.zeros((30, 91, 3), np.uint8)
    picture[:, 31:61] = 200  # a margin of half a pixel, which resizing does not reach
    assert (resize_and_crop(picture, 30)[:, 1:-1] == 200).all()
    tall = resize_and_crop(picture.swapaxes(0, 1), 15)
    assert tall.shape == (15, 15, 3)
    assert (tall[2:-2] == 200).all()
    with pytest.raises(DataError, match=r"'thin.png' is 1 x 101 pixels, too narrow"):
        fit_picture(np.zeros((101, 1, 1), np.uint8), 8, "thin.png")


@pytest.mark.torch
@pytest.mark.parametrize("shape", [(40, 20, 3), (20, 41, 1), (16, 16, 3), (9, 33, 3), (7, 500, 1)])
@pytest.mark.parametrize("size", [10, 17, 64])
def test_squares_are_torchvisions(shape, size, monkeypatch):
    # Its own operators, which take PyTorch's build for CUDA, need not load.
    name = "torchvision._meta_registrations"
    monkeypatch.setitem(sys.modules, name, ModuleType(name))
    transforms = pytest.importorskip("torchvision.transforms")
    pixels = RNG.integers(0, 256, shape, np.uint8)
    image = Image.fromarray(pixels[..., 0] if shape[2] == 1 else pixels)
    theirs = transforms.CenterCrop(size)(transforms.Resize(size)(image))
    ours = resize_and_crop(pixels, size)
    np.testing.assert_array_equal(ours[..., 0] if shape[2] == 1 else ours, np.asarray(theirs))


def test_many_pictures_are_read_in_their_order():
    contents = []
    for level in range(600):
        file = io.BytesIO()
        Image.fromarray(np.full((2, 2), level % 256, np.uint8)).save(file, "PNG")
        contents.append((f"{level}", file.getvalue()))
    contents[300] = ("broken", b"no picture")
    contents[301] = ("nothing", b"")
    taken = []
    read_pictures(iter(contents), None, lambda *found: taken.append(found))
    assert [name for name, _ in taken] == [name for name, _ in contents]
    errors = [x for _, x in taken if isinstance(x, str)]
    assert errors == ["'broken' is no picture that can be read", "'nothing' is empty"]
    levels = [int(x[0, 0, 0]) for _, x in taken if not isinstance(x, str)]
    assert levels == [i % 256 for i in range(600) if i not in (300, 301)]


# What is said of a folder before training


def two_classes(root):
    fill(root, {"a": 3, "b": 3})


def bad_pictures(count):
    def make(root):
        two_classes(root)
        for i in range(count):
            (root / "b" / f"bad{i}.png").write_text("not a picture")

    return make


def only(counts):
    return lambda root: fill(root, counts)


def not_text(root):
    fill(root, {"a": 2})
    os.mkdir(os.fsencode(root) + b"/\xff")
    (root / os.fsdecode(b"\xff") / "x.png").write_bytes((root / "a" / "0.png").read_bytes())


REFUSED = {
    "missing": (lambda root: None, r"p' does not exist \(looked in /"),
    "file": (lambda root: root.write_text(""), "p' is a file"),
    "one bad": (bad_pictures(1), "'b/bad0.png' is no picture that can be read; mend or remove it"),
    "bad": (
        bad_pictures(5),
        r"5 pictures are no good: 'b/bad\d.png' is no picture that.*; 'b/.*; \.\.\.; mend",
    ),
    "empty": (lambda root: root.mkdir(), "has no folders of classes; put"),
    "no classes": (only({".": 3}), "has no folders of classes; put"),
    "empty class": (
        lambda root: (two_classes(root), (root / "c").mkdir()),
        r"has classes without pictures: 'c'; remove the folders, or add pictures \(.bmp",
    ),
    "one class": (only({"a": 3}), "has one class only, 'a'"),
    "one of test": (only({"train/a": 2, "train/b": 2, "test/a": 2}), "p/test has one class only"),
    "one picture": (only({"a": 3, "b": 1}), "class 'b' has one picture, 'b/0.png', which cannot"),
    "no test": (only({"train/a": 2, "train/b": 2}), "has train/ and no test/.*; add it, or give"),
    "class train": (only({"train": 2, "car": 2}), "or rename the folder if train is a class"),
    "class test": (only({"test": 2, "car": 2}), "or rename the folder if test is a class"),
    "no train": (only({"val/a": 2, "val/b": 2}), "has val/ and no train/; add it"),
    "other classes": (
        only({"train/a": 1, "train/b": 1, "train/c": 1, "test/b": 1, "test/c": 1, "test/d": 1}),
        "other classes in train than in test; only in train: 'a'; only in test: 'd'; give both",
    ),
    "not text": (not_text, r"has a folder '\\udcff', whose name cannot be printed"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_folders_that_cannot_be_trained_on_are_refused(tmp_path, kind, cache):
    make, message = REFUSED[kind]
    make(tmp_path / "p")
    with pytest.raises(DataError, match=message) as error:
        from_folder(tmp_path / "p")
    assert "\n" not in str(error.value)
    assert not list(cache.glob("*/*/"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"test_fraction": 1.0}, "test_fraction is 1.0; it must be between 0 and 1"),
        ({"image_size": 0}, "image_size is 0; it must be at least 1"),
        (
            {"image_size": 8, "aspect_ratio": "padd"},
            r"'padd' \(did you mean 'pad'\?\); accepted: crop",
        ),
        ({"aspect_ratio": "pad"}, "aspect_ratio is 'pad', which needs an image_size; give it"),
        ({"path": "http://x.org/a"}, "must be a path of this machine"),
    ],
)
def test_arguments_that_are_refused(tmp_path, arguments, message):
    two_classes(tmp_path / "p")
    with pytest.raises(ConfigError, match=message):
        from_folder(**{"path": tmp_path / "p", **arguments})


def stray(root):
    for name in ("1.png", "2.png"):
        save(root / name)


def others(root):
    for name in ("notes.txt", "a/Thumbs.db", "b/x.png.part", "b/list.csv"):
        (root / name).write_text("")
    os.mkfifo(root / "a" / "pipe.png")


def loop(root):
    (root / "a" / "again").symlink_to("..")
    (root / "b" / "more").symlink_to(root / "b")


def hidden(root):
    for name in (".DS_Store", "a/.hidden.png", ".git/x.png"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("")


def link(root):
    (root.parent / "elsewhere").mkdir()
    (root / "b").rename(root.parent / "elsewhere" / "b")
    (root / "b").symlink_to(root.parent / "elsewhere" / "b")


TOLD = {
    "nothing": (lambda root: None, []),
    "pictures without class": (
        stray,
        ["left out 2 pictures outside the folders of the classes: '1.png', '2.png'"],
    ),
    "other files": (
        others,
        [
            "left out 5 files of other kinds than pictures: 'notes.txt', 'a/Thumbs.db', "
            "'a/pipe.png' and 2 more"
        ],
    ),
    "loops": (loop, ["left out 2 links to folders that contain them: 'a/again', 'b/more'"]),
    "hidden": (hidden, []),
    "a link": (link, []),
}


@pytest.mark.parametrize("kind", TOLD)
def test_what_is_left_out_is_told_at_every_load(tmp_path, capsys, kind):
    make, notes = TOLD[kind]
    two_classes(tmp_path / "p")
    make(tmp_path / "p")
    for _ in range(2):
        train, test = from_folder(tmp_path / "p")
        assert len(train.labels) + len(test.labels) == 6
        assert capsys.readouterr().err.splitlines() == [f"note: {note}" for note in notes]


def test_a_load_by_word_tells_with_the_training_set(tmp_path, capsys):
    two_classes(tmp_path / "p")
    stray(tmp_path / "p")
    load_dataset(f"folder:{tmp_path / 'p'}", "train")
    assert len(capsys.readouterr().err.splitlines()) == 1
    load_dataset(f"folder:{tmp_path / 'p'}", "test")
    assert capsys.readouterr().err == ""
    with pytest.raises(ValueError, match="unknown split 'valid'"):
        load_dataset(f"folder:{tmp_path / 'p'}", "valid")


def test_the_same_pixels_are_told(tmp_path, capsys):
    root = tmp_path / "p"
    fill(root, {f"{split}/{name}": 3 for split in ("train", "test") for name in "ab"})
    same = save(root / "train" / "a" / "first.png")
    save(root / "test" / "a" / "again.bmp", pixels=same)
    for _ in range(2):  # once decoded, and once from the cache
        from_folder(root)
        assert capsys.readouterr().err == (
            "note: 1 image of test with the same pixels as one of train, so test results "
            "are too good: 'test/a/again.bmp' as 'train/a/first.png'\n"
        )
    save(root / "test" / "b" / "third.png", pixels=same)
    from_folder(root)
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(
        "note: 1 image of test with the same pixels as one of another class: 'test/"
    )
    assert second.startswith("note: 2 images of test with the same pixels as one of train")
    save(root / "train" / "a" / "twice.png", pixels=same)  # of one class, in one split: no matter
    (root / "test" / "a" / "again.bmp").unlink()
    (root / "test" / "b" / "third.png").unlink()
    from_folder(root)
    assert capsys.readouterr().err == ""


# The cache


def refuse_to_decode(monkeypatch):
    def decode(*args):
        raise AssertionError("decoded again")

    monkeypatch.setattr(folder_module, "decode", decode)


def test_a_second_load_maps_what_is_kept(tmp_path, monkeypatch, cache):
    two_classes(tmp_path / "p")
    train, test = from_folder(tmp_path / "p")
    assert isinstance(train.images, np.memmap)
    refuse_to_decode(monkeypatch)
    again = from_folder(tmp_path / "p")
    assert [each.digest() for each in again] == [train.digest(), test.digest()]
    assert isinstance(again.train.images, np.memmap)
    monkeypatch.chdir(tmp_path)
    load_dataset("folder:./p", "train")  # the same folder by another path
    with pytest.raises(AssertionError):
        from_folder(tmp_path / "p", image_size=4)
    [place] = [path for path in cache.iterdir() if any(path.glob("*/"))]
    assert place.name.startswith("folder-p-")


def test_the_arrays_are_kept_in_the_data_dir(tmp_path, monkeypatch, cache):
    two_classes(tmp_path / "p")
    (tmp_path / "given").mkdir()
    from_folder(tmp_path / "p", data_dir=tmp_path / "given")
    assert list((tmp_path / "given" / "jaxcnn-arrays").glob("*/*/record.json"))
    assert not cache.exists()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "given"))
    refuse_to_decode(monkeypatch)
    from_folder(tmp_path / "p")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # a shared one, read-only
    assert sources.cache_root(None) == cache
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parents[1]))
    monkeypatch.setenv("TFDS_DATA_DIR", "gs://bucket/tfds")  # TensorFlow's own may be on a store
    assert sources.cache_root(None) == cache
    with pytest.raises(ConfigError, match=r"^data_dir must be a path of this machine"):
        from_folder(tmp_path / "p", data_dir="gs://b")


@pytest.mark.parametrize("change", ["add", "remove", "touch", "rename"])
def test_changed_files_are_decoded_anew(tmp_path, cache, change):
    root = tmp_path / "p"
    fill(root, {"a": 3, "b": 3}, compress_level=0)
    before = from_folder(root)
    path = root / "a" / "0.png"
    if change == "add":
        save(root / "a" / "new.png")
    elif change == "remove":
        path.unlink()
    elif change == "rename":
        path.rename(root / "b" / "moved.png")
    else:  # other pixels in as many bytes
        size = path.stat().st_size
        save(path, compress_level=0)
        assert path.stat().st_size == size
        os.utime(path, ns=(1, 1))
    after = from_folder(root)
    assert [each.digest() for each in after] != [each.digest() for each in before]
    assert len(list(cache.glob("*/*/record.json"))) == 1  # the old copy is gone


def flip(folder):
    path = folder / "train_images.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "flip": (flip, "its arrays have changed"),
    "cut": (lambda folder: os.truncate(folder / "train_images.npy", 200), "mmap length|size"),
    "remove": (lambda folder: (folder / "test_labels.npy").unlink(), "No such file"),
    "record": (lambda folder: (folder / "record.json").write_text("{}"), "class_names"),
    "not JSON": (lambda folder: (folder / "record.json").write_text("{"), "Expecting"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_copy_is_made_again(tmp_path, cache, capsys, kind):
    damage, message = DAMAGE[kind]
    two_classes(tmp_path / "p")
    before = from_folder(tmp_path / "p")
    digests = [each.digest() for each in before]
    [folder] = [path.parent for path in cache.glob("*/*/record.json")]
    damage(folder)
    after = from_folder(tmp_path / "p")
    assert [each.digest() for each in after] == digests
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"note: the decoded copy in {folder} is damaged (")
    assert any(words in line for words in message.split("|"))
    from_folder(tmp_path / "p")
    assert capsys.readouterr().err == ""


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch, capsys):
    two_classes(tmp_path / "p")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    word = f"folder:{tmp_path / 'p'}"
    train = load_dataset(word, "train")
    [line] = capsys.readouterr().err.splitlines()
    assert "cannot be kept decoded in" in line
    refuse_to_decode(monkeypatch)
    test = load_dataset(word, "test")  # decoded with the training set
    assert len(train.labels) + len(test.labels) == 6


@pytest.mark.parametrize("save_method", [(np, "save"), (decoding._FileRows, "append")])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, cache, capsys, save_method):
    def save(*args):
        raise OSError(28, "No space left on device")

    two_classes(tmp_path / "p")
    monkeypatch.setattr(*save_method, save)
    train, _ = from_folder(tmp_path / "p")
    assert len(train.labels) == 4
    assert "(No space left on device)" in capsys.readouterr().err
    assert [path.name for path in cache.glob("*/*")] == [".lock"]


def test_what_a_killed_process_left_is_removed(tmp_path, cache):
    two_classes(tmp_path / "p")
    from_folder(tmp_path / "p")
    [folder] = [path.parent for path in cache.glob("*/*/record.json")]
    folder.rename(folder.with_name(".unfinished"))  # as if it had been killed just before
    (folder.with_name(".unfinished") / "record.json").write_text("half")
    from_folder(tmp_path / "p")
    assert sorted(path.name for path in folder.parent.iterdir()) == [".lock", folder.name]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_is_shown_where_it_takes_long(monkeypatch, capsys, is_terminal):
    now = [0.0]
    monkeypatch.setattr(decoding.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal, raising=False)
    progress = decoding.Progress("folder:p", 2000)
    for done in range(1, 2001):
        now[0] += 1.5 * (done == 1 or done % 500 == 0)
        progress.advance()
    progress.close()
    shown = [f"Decoding folder:p: {count} of 2,000 pictures" for count in ("500", "1,000", "1,500")]
    expected = "".join(f"\r{line}" for line in [*shown, shown[0].replace("500", "2,000", 1)]) + "\n"
    if not is_terminal:
        expected = f"{shown[0]}\n{shown[0].replace('500', '2,000', 1)}\n"
    assert capsys.readouterr().err == expected


# IDX files


def write_idx(path, array, compress=False):
    header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    content = header + array.tobytes()
    path.parent.mkdir(exist_ok=True)
    if compress:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content))
    else:
        path.write_bytes(content)


def write_mnist(folder, prefix="", test="t10k", first=0, classes=10, compress=True, sep="-"):
    """Write four files of random images of 5 x 7 pixels; return the arrays."""
    arrays = {}
    for name, count in (("train", 30), (test, 20)):
        images = RNG.integers(0, 256, (count, 5, 7), np.uint8)
        labels = (first + np.arange(count) % classes).astype(np.uint8)
        write_idx(folder / f"{prefix}{name}-images{sep}idx3-ubyte", images, compress)
        write_idx(folder / f"{prefix}{name}-labels{sep}idx1-ubyte", labels, compress)
        arrays["train" if name == "train" else "test"] = images, labels
    return arrays


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("sep", ["-", "."])
def test_files_of_mnists_names(tmp_path, compress, sep):
    for split, (images, labels) in write_mnist(tmp_path / "m", compress=compress, sep=sep).items():
        data = load_dataset(f"idx:{tmp_path / 'm'}", split)
        np.testing.assert_array_equal(data.images[..., 0], images)
        np.testing.assert_array_equal(data.labels, labels)
        assert data.class_names == tuple("0123456789")


@pytest.mark.parametrize(
    ("kind", "first", "classes", "some"),
    [
        ("letters", 1, 26, {0: "A", 25: "Z"}),
        ("balanced", 0, 30, {9: "9", 10: "A", 36: "a", 38: "d", 46: "t"}),
        ("byclass", 0, 30, {35: "Z", 36: "a", 61: "z"}),
        ("bymerge", 0, 30, {46: "t"}),
        ("digits", 0, 10, {9: "9"}),
        ("mnist", 0, 10, {9: "9"}),
    ],
)
def test_emnist_has_its_names_and_stands_upright(tmp_path, kind, first, classes, some):
    where = tmp_path / "emnist"
    arrays = write_mnist(where, f"emnist-{kind}-", "test", first, classes)
    write_mnist(where, "emnist-other-", "test")
    for split, (images, labels) in arrays.items():
        data = load_dataset(f"idx:{where}/emnist-{kind}", split)
        np.testing.assert_array_equal(data.images[..., 0], images.swapaxes(1, 2))
        np.testing.assert_array_equal(data.labels, labels.astype(int) - first)
        assert {i: data.class_names[i] for i in some} == some
        sizes = {"balanced": 47, "byclass": 62, "bymerge": 47, "letters": 26}
        assert len(data.class_names) == sizes.get(kind, 10)


def remove(name):
    return lambda folder: (folder / name).unlink()


def replace(name, array):
    def make(folder):
        (folder / f"{name}.gz").unlink()
        write_idx(folder / name, array)

    return make


BAD_IDX = {
    "one missing": (remove("t10k-labels-idx1-ubyte.gz"), "has no file of the test labels"),
    "counts": (
        replace("train-labels-idx1-ubyte", np.zeros(29, np.uint8)),
        r"train-labels-idx1-ubyte has \[29\] labels, and train-images-idx3-ubyte.gz 30 images",
    ),
    "sizes": (
        replace("train-images-idx3-ubyte", np.ones((30, 7, 5), np.uint8)),
        "the images of train and test are of different sizes",
    ),
    "axes": (
        replace("train-images-idx3-ubyte", np.ones((30, 7), np.uint8)),
        r"has the shape \[30, 7\]; it must be \[N, H, W\]",
    ),
    "one class": (
        replace("train-labels-idx1-ubyte", np.full(30, 4, np.uint8)),
        "has one class only, '4'",
    ),
    "damaged": (
        lambda folder: (folder / "train-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8b12"),
        "cannot read '.*train-images-idx3-ubyte.gz': .*; get the file again",
    ),
    "letters": (
        lambda folder: [
            path.rename(folder / f"emnist-letters-{path.name}") for path in folder.iterdir()
        ],
        r"labels from 0 to 9; EMNIST's of this name are from 1 to 26",
    ),
    "two": (lambda folder: write_mnist(folder, "more-"), r"found are idx:.*/m, idx:.*/m/more"),
    "none": (lambda folder: [path.unlink() for path in folder.iterdir()], "there must be train-im"),
}


@pytest.mark.parametrize("kind", BAD_IDX)
def test_idx_files_that_are_refused(tmp_path, kind):
    make, message = BAD_IDX[kind]
    write_mnist(tmp_path / "m")
    make(tmp_path / "m")
    with pytest.raises(DataError, match=message) as error:
        load_dataset(f"idx:{tmp_path / 'm'}", "train")
    assert "\n" not in str(error.value)


def test_an_idx_folder_that_does_not_exist(tmp_path):
    with pytest.raises(DataError, match="none/emnist-letters' does not exist"):
        load_dataset(f"idx:{tmp_path}/none/emnist-letters", "train")


def test_classes_without_training_images_are_told(tmp_path, capsys):
    write_mnist(tmp_path / "m")
    replace("train-labels-idx1-ubyte", (np.arange(30) % 8).astype(np.uint8))(tmp_path / "m")
    load_dataset(f"idx:{tmp_path / 'm'}", "train")
    assert "note: 2 classes without training images: '8', '9'" in capsys.readouterr().err


# TFDS


def prepare_tfds(data_dir, splits, version="1.2.0", more=(), keys=None, channels=3):
    """Prepare a data set of random pictures; return pixels and labels of each split.

    Args:
        data_dir: TFDS's.
        splits: the number of pictures in each.
        version: of the data set.
        more: names of further labels.
        keys: the supervised keys.
        channels: of the pictures.
    """
    made = {
        split: [
            (RNG.integers(0, 256, (6, 6 + i % 2, channels), np.uint8), i % 3) for i in range(count)
        ]
        for split, count in splits.items()
    }
    names = ["cat", "dog", "eel"]

    def encode(pixels):
        file = io.BytesIO()
        Image.fromarray(pixels if channels == 3 else pixels[..., 0]).save(file, "PNG")
        file.seek(0)
        return file

    with tfds.core.registered.skip_registration():

        class Pets(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version(version)

            def _info(self):
                features = {
                    "file": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(None, None, channels)),
                    "label": tfds.features.ClassLabel(names=names),
                    **{name: tfds.features.ClassLabel(names=["a", "b"]) for name in more},
                }
                return tfds.core.DatasetInfo(
                    builder=self,
                    features=tfds.features.FeaturesDict(features),
                    supervised_keys=keys,
                )

            def _split_generators(self, _):
                return {split: self._generate_examples(split) for split in made}

            def _generate_examples(self, split):
                for i, (pixels, label) in enumerate(made[split]):
                    others = dict.fromkeys(more, 1)
                    yield i, {"file": f"{i}", "image": encode(pixels), "label": label} | others

    with contextlib.redirect_stdout(io.StringIO()):
        Pets(data_dir=data_dir).download_and_prepare(file_format="array_record")
    return made


OPENCV = pytest.mark.filterwarnings("ignore:OpenCV")  # TFDS says that it would decode faster


@OPENCV
@pytest.mark.parametrize("held_out", ["test", "validation"])
def test_a_prepared_set_is_read(tmp_path, held_out):
    made = prepare_tfds(tmp_path, {"train": 12, held_out: 5, "unlabelled": 3})
    for split, name in (("train", "train"), ("test", held_out)):
        data = load_dataset("tfds:pets", split, tmp_path, image_size=6)
        assert data.class_names == ("cat", "dog", "eel")
        found = sorted((x.tobytes(), y) for x, y in zip(data.images, data.labels, strict=True))
        assert found == sorted((fit_picture(x, 6).tobytes(), y) for x, y in made[name])
        stretched = load_dataset("tfds:pets", split, tmp_path, image_size=6, aspect_ratio="stretch")
        expected = {fit_picture(x, 6, aspect_ratio="stretch").tobytes() for x, _ in made[name]}
        assert {x.tobytes() for x in stretched.images} == expected
    source = tfds.builder_from_directory(tmp_path / "pets" / "1.2.0").as_data_source(held_out)
    assert data.labels.tolist() == [each["label"] for each in source]  # TFDS's order


@OPENCV
def test_a_prepared_set_without_a_test_split_is_split(tmp_path):
    prepare_tfds(tmp_path, {"train": 30})
    splits = [
        load_dataset("tfds:pets", split, tmp_path, image_size=6) for split in ("train", "test")
    ]
    assert [np.bincount(each.labels).tolist() for each in splits] == [[8] * 3, [2] * 3]


@OPENCV
def test_a_class_with_one_picture_cannot_be_split(tmp_path):
    prepare_tfds(tmp_path, {"train": 4})
    with pytest.raises(DataError, match="no test split, and a single picture of the class 'dog'"):
        load_dataset("tfds:pets", "train", tmp_path, image_size=6)


@OPENCV
def test_of_several_labels_the_supervised_one_is_taken(tmp_path):
    more = ("coarse_label", "author")
    made = prepare_tfds(tmp_path, {"train": 6, "test": 3}, more=more, keys=("image", "label"))
    data = load_dataset("tfds:pets", "train", tmp_path, image_size=6)
    assert data.class_names == ("cat", "dog", "eel")
    assert sorted(data.labels) == sorted(label for _, label in made["train"])
    prepare_tfds(tmp_path / "none", {"train": 6, "test": 3}, more=more)
    with pytest.raises(DataError, match="3 features of the kind ClassLabel, and no supervised key"):
        load_dataset("tfds:pets", "train", tmp_path / "none", image_size=6)


@OPENCV
def test_emnist_of_tfds_is_turned_upright_and_named(tmp_path):
    for config in ("digits", "letters", "other"):
        made = prepare_tfds(tmp_path / config, {"train": 6, "test": 3}, channels=1)
        (tmp_path / config / "emnist" / config).mkdir(parents=True)
        (tmp_path / config / "pets" / "1.2.0").rename(
            tmp_path / config / "emnist" / config / "1.2.0"
        )
        name = f"tfds:emnist/{config}"
        if config == "letters":  # whose labels begin with 1
            with pytest.raises(DataError, match="labels from 0 to 2; EMNIST's of this name"):
                load_dataset(name, "train", tmp_path / config, image_size=6)
            continue
        data = load_dataset(name, "train", tmp_path / config, image_size=6, aspect_ratio="pad")
        is_emnist = config == "digits"
        assert data.class_names == (tuple("0123456789") if is_emnist else ("cat", "dog", "eel"))
        turn = np.swapaxes if is_emnist else lambda pixels, *_: pixels
        expected = {fit_picture(turn(x, 0, 1), 6, "", "pad").tobytes() for x, _ in made["train"]}
        assert {x.tobytes() for x in data.images} == expected
        assert data.images.shape[3] == 1


@OPENCV
def test_what_a_prepared_set_lacks_or_has_twice_is_noted(tmp_path, capsys):
    prepare_tfds(tmp_path, {"train": 6, "test": 2, "extra": 3})
    load_dataset("tfds:pets", "train", tmp_path, image_size=6)
    told = capsys.readouterr().err
    assert "splits left out: 'extra'" in told
    assert "1 class without test images: 'eel'" in told


@OPENCV
def test_of_several_versions_the_newest_is_read(tmp_path):
    for version, count in (("1.2.0", 3), ("1.10.0", 6), ("1.9.0", 9)):
        prepare_tfds(tmp_path, {"train": count, "test": 3}, version=version)
    assert len(load_dataset("tfds:pets", "train", tmp_path, image_size=6).labels) == 6
    assert len(load_dataset("tfds:pets:1.9.0", "train", tmp_path, image_size=6).labels) == 9
    with pytest.raises(DataError, match=r"1.3.0 is not prepared in .*; there are the versions 1"):
        load_dataset("tfds:pets:1.3.0", "train", tmp_path)


@pytest.mark.slow
@OPENCV
def test_reading_a_prepared_set_takes_no_tensorflow(tmp_path, run_python):
    prepare_tfds(tmp_path, {"train": 6, "test": 3})
    code = (
        "import sys; from jaxcnn.data import load_dataset;"
        f"load_dataset('tfds:pets', 'train', {str(tmp_path)!r}, image_size=6);"
        "print('tensorflow' in sys.modules, 'tensorflow_datasets' in sys.modules)"
    )
    for expected in ("False True\n", "False False\n"):  # what is kept takes no TFDS either
        result = run_python("-c", code)
        assert result.stdout == expected, result.stderr


@OPENCV
def test_copies_that_tensorflow_alone_can_read_are_refused(tmp_path):
    prepare_tfds(tmp_path, {"train": 6, "test": 3})
    path = tmp_path / "pets" / "1.2.0" / "dataset_info.json"
    path.write_text(path.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(DataError, match=r"not in ArrayRecord .* file_format='array_record' \(docs"):
        load_dataset("tfds:pets", "train", tmp_path)


def test_prepared_sets_that_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"not prepared in .*/pets; docs/data.md says how"):
        load_dataset("tfds:pets", "train", tmp_path)
    with pytest.raises(ConfigError, match="'tfds:a/b/c' is no name of TFDS's; accepted: tfds:NAME"):
        load_dataset("tfds:a/b/c", "train", tmp_path)
    folder = tmp_path / "pets" / "small" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{}")
    with pytest.raises(DataError, match=r"there are the configs small: tfds:pets/CONFIG"):
        load_dataset("tfds:pets", "train", tmp_path)
    with pytest.raises(DataError, match=r"pets/small/1.0.0 cannot be read .*; prepare it again"):
        load_dataset("tfds:pets/small", "train", tmp_path)


# Arrays


def test_arrays_become_a_data_set():
    gray = RNG.integers(0, 256, (4, 5, 6), np.uint8)
    data = from_arrays(gray, [0, 2, 1, 2])
    np.testing.assert_array_equal(data.images, gray[..., None])
    assert (data.labels.dtype, data.labels.tolist()) == (np.int32, [0, 2, 1, 2])
    assert data.class_names == ("0", "1", "2")
    assert from_arrays(gray, np.arange(4), ["a", "b", "c", "d", "e"]).class_names == tuple("abcde")
    named = from_arrays(gray / 255, ["dog", "cat", "dog", "eel"])
    assert named.class_names == ("cat", "dog", "eel")
    assert named.labels.tolist() == [1, 0, 1, 2]
    np.testing.assert_array_equal(named.images, data.images)
    given = from_arrays(gray, np.array(["b", "a", "b", "b"]), class_names=("b", "c", "a"))
    assert (given.labels.tolist(), given.class_names) == ([0, 2, 0, 0], ("b", "c", "a"))


@pytest.mark.parametrize(
    ("images", "labels", "names", "message"),
    [
        (np.ones((2, 3, 3)) * 9, [0, 1], None, r"data.images is float64 \[2, 3, 3, 1\].*astype"),
        (np.full((2, 3, 3), np.nan), [0, 1], None, "data.images is float64"),
        (np.full((2, 3, 3), 7, np.uint8), [0.5, 1.0], None, "data.labels is float64"),
        (np.full((2, 3, 3), 7, np.uint8), [-1, 1], None, "data.labels holds -1"),
        (np.full((2, 3, 3), 7, np.uint8), [0, 1], "ab", "data.class_names is 'ab'"),
        (np.full((2, 3, 3), 7, np.uint8), [0, 1, 1], None, r"data.labels is int64 \[3\]"),
        (np.full((2, 3, 3), 7, np.uint8), ["a", "b"], ["a"], "a label is 'b', which is not one of"),
        (np.zeros((0, 3, 3), np.uint8), [], None, "data.images is uint8"),
    ],
)
def test_arrays_that_are_refused(images, labels, names, message):
    with pytest.raises(ConfigError, match=message):
        from_arrays(images, labels, names)


# Words of the config


@pytest.mark.parametrize(
    ("word", "accepted"),
    [
        ("folder:a b/c", True),
        ("idx:/data", True),
        ("tfds:emnist/letters:3.1.0", True),
        ("folder:", False),
        ("folders:x", False),
        ("folder", False),
        ("object Dataset", False),
        ("folder:x, object Dataset", False),
    ],
)
def test_words(word, accepted):
    assert is_dataset(word) == accepted
    config = small_config(dataset=word)
    if accepted:
        jaxcnn.validate_config(config)
    else:
        with pytest.raises(ConfigError, match=r"accepted: .*, folder:PATH, idx:PATH, tfds:NAME"):
            jaxcnn.validate_config(config)


def test_data_command(tmp_path, capsys):
    root = tmp_path / "p"
    fill(root, {"cat": 5, "dog": 10})
    assert main(["data", f"folder:{root}", "-o", str(tmp_path / "sheet.png")]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "train  12 images of 8 x 8 x 3, SHA-256"
    assert out[6].split() == ["cat", "4", "1"]
    assert (tmp_path / "sheet.png").exists()
    save(root / "cat" / "large.png", (30, 20))
    assert main(["data", f"folder:{root}"]) == 2
    assert "image_size" in capsys.readouterr().err
    assert main(["data", f"folder:{root}", "--image-size", "8"]) == 0
    cropped = capsys.readouterr().out
    command = ["data", f"folder:{root}", "--image-size", "8", "--aspect-ratio"]
    assert main([*command, "crop"]) == 0
    assert capsys.readouterr().out == cropped
    assert main([*command, "pad"]) == 0
    padded = capsys.readouterr().out
    assert padded != cropped
    assert from_folder(root, image_size=8, aspect_ratio="pad").train.digest() in padded


# Training


def draw(root, per_class=100, size=32):
    """Draw pictures of three shapes, each of a colour of its own, a folder for each."""
    for number, shape in enumerate(("circle", "cross", "square")):
        (root / shape).mkdir(parents=True)
        for i in range(per_class):
            ground, colour = RNG.integers(0, 90, 3), RNG.integers(50, 120, 3)
            colour[number] = 250
            image = Image.new("RGB", (size, size), tuple(ground.tolist()))
            x, y, r = RNG.integers((10, 10, 6), (size - 10, size - 10, 10)).tolist()
            pen, fill_with = ImageDraw.Draw(image), tuple(colour.tolist())
            if number == 0:
                pen.ellipse((x - r, y - r, x + r, y + r), fill=fill_with)
            elif number == 1:
                pen.line((x - r, y - r, x + r, y + r), fill=fill_with, width=3)
                pen.line((x - r, y + r, x + r, y - r), fill=fill_with, width=3)
            else:
                pen.rectangle((x - r, y - r, x + r, y + r), fill=fill_with)
            image.save(root / shape / f"{i}.png")


@pytest.mark.slow
def test_three_folders_of_pictures_are_trained_on(tmp_path, capsys):
    draw(tmp_path / "shapes")
    word = f"folder:{tmp_path / 'shapes'}"
    config = small_config(
        model="lenet_modern", dataset=word, image_size=32, batch_size=16, max_train_examples=0
    )
    config.max_test_examples = 0
    config.learning_rate = 0.05
    train_and_evaluate(config, tmp_path / "run")
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["config"]["num_classes"] == 3
    assert run["class_names"] == ["circle", "cross", "square"]
    assert run["image_shape"] == [32, 32, 3]
    trained = jaxcnn.load(tmp_path / "run")
    evaluation = trained.evaluate()
    assert len(evaluation.labels) == 60
    assert evaluation.accuracy == run["result"]["best"]["test_accuracy"]
    assert evaluation.accuracy > 0.5
    # A picture of another shape is cut as those of the folder are.
    wide = Image.open(tmp_path / "shapes" / "cross" / "0.png")
    canvas = Image.new("RGB", (64, 32))
    canvas.paste(wide, (16, 0))
    canvas.save(tmp_path / "wide.png")
    predictions = trained.predict([tmp_path / "shapes" / "cross" / "0.png", tmp_path / "wide.png"])
    assert predictions.probabilities.shape == (2, 3)
    np.testing.assert_array_equal(*predictions.probabilities)
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "run"), str(tmp_path / "wide.png")]) == 0
    assert predictions.names[1] in capsys.readouterr().out
    # Other pictures in the folder are noticed.
    save(tmp_path / "shapes" / "cross" / "0.png", (32, 32))
    with pytest.raises(ConfigError, match="holds a run on other data"):
        train_and_evaluate(config, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("aspect_ratio", ASPECT_RATIOS)
def test_a_picture_is_predicted_as_it_is_trained_on(tmp_path, aspect_ratio, capsys):
    root = tmp_path / "p"
    fill(root, {"a": 6, "b": 6}, size=(9, 22))
    settings = {"image_size": 12, "aspect_ratio": aspect_ratio}
    jaxcnn.fit(
        Tiny(),
        f"folder:{root}",
        epochs=1,
        batch_size=10,
        num_devices=1,
        **settings,
        normalization="per_channel",
        workdir=tmp_path / "run",
    )
    trained = jaxcnn.load(tmp_path / "run", "last", model=Tiny())
    train, test = from_folder(root, **settings)
    assert trained.digests == {"train": train.digest(), "test": test.digest()}
    assert trained.evaluate().accuracy == trained.history[-1]["test_accuracy"]
    files = sorted(root.glob("*/*.png"))
    logits = trained.logits(np.concatenate([train.images, test.images]))
    found = trained.predict(files).probabilities
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    order = np.argsort(found[:, 0]), np.argsort(expected[:, 0])  # of the files, of the data set
    np.testing.assert_allclose(found[order[0]], expected[order[1]], rtol=1e-4)
    assert len(set(found[:, 0].tolist())) == len(files)


def test_the_aspect_ratio_is_refused_where_it_does_nothing(tmp_path):
    data = jaxcnn.data.load_fashion_mnist_sample("train").first(64)
    config = small_config(aspect_ratio="pad")
    with pytest.raises(ConfigError, match="'pad', but fashion_mnist_sample is no folder: or tfds:"):
        train_and_evaluate(config, tmp_path / "run")
    with pytest.raises(ConfigError, match="'pad', but idx:x is no folder: or tfds:"):
        load_dataset("idx:x", "train", image_size=8, aspect_ratio="pad")
    for test in (data, None):
        with pytest.raises(ConfigError, match="has no effect on data that are given as objects"):
            jaxcnn.fit(Tiny(), data, test, epochs=1, aspect_ratio="stretch")
    config.aspect_ratio = "padd"
    with pytest.raises(
        ConfigError, match=r"config.aspect_ratio is 'padd' \(did you mean 'pad'\?\)"
    ):
        jaxcnn.validate_config(config)
    config.aspect_ratio = "pad"  # of a config of one's own, whose variant takes the sample
    assert jaxcnn.config.smoke(config, 28).aspect_ratio == "crop"


def test_the_number_of_classes_is_that_of_the_data(tmp_path):
    fill(tmp_path / "p", dict.fromkeys("abc", 20), channels=1)
    config = small_config(dataset=f"folder:{tmp_path / 'p'}", image_size=12, num_epochs=1)
    for num_classes, message in ((2, "has 3 classes; give that many, or 0"), (4, "or 0")):
        config.num_classes = num_classes
        with pytest.raises(ConfigError, match=rf"num_classes is {num_classes}, but .* {message}"):
            train_and_evaluate(config, tmp_path / "run")
    sample = small_config(num_classes=9)
    with pytest.raises(ConfigError, match=r"num_classes is 9, but .* at least that many, or 0"):
        train_and_evaluate(sample, tmp_path / "run")


def test_runs_that_recorded_ten_classes_go_on(tmp_path, capsys):
    """Earlier versions had 10 as default, whatever logits a model had that was an object."""
    data = jaxcnn.data.load_fashion_mnist_sample("train").first(64)
    few = from_arrays(data.images, data.labels % 3)
    config = small_config(num_classes=10, num_epochs=1)
    train_and_evaluate(config, tmp_path / "run", model=Tiny(), train=few, test=few)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["config"]["num_classes"] == 10
    config.num_classes, config.num_epochs = 0, 2
    train_and_evaluate(config, tmp_path / "run", model=Tiny(), train=few, test=few)
    assert "resuming after epoch 1" in capsys.readouterr().out
    jaxcnn.load(tmp_path / "run", model=Tiny())
