"""Picture files as they are seen, and the bad ones told in a line."""

import contextlib
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from jaxcnn.errors import DataError
from jaxcnn.pictures import ASPECT_RATIOS, SUFFIXES, find_pictures, fit_picture, read_picture

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (5, 7), np.uint8)
COLOUR = RNG.integers(0, 256, (5, 7, 3), np.uint8)


def test_gray_and_colour(tmp_path):
    Image.fromarray(GRAY).save(tmp_path / "gray.png")
    Image.fromarray(COLOUR).save(tmp_path / "colour.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "gray.png", 1)[..., 0], GRAY)
    np.testing.assert_array_equal(read_picture(tmp_path / "colour.png", 3), COLOUR)
    np.testing.assert_array_equal(
        read_picture(tmp_path / "gray.png", 3), np.repeat(GRAY[..., None], 3, 2)
    )
    gray = read_picture(tmp_path / "colour.png", 1)[..., 0]
    by_hand = COLOUR @ np.array([0.299, 0.587, 0.114])
    assert np.abs(gray - by_hand).max() <= 1


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_that_is_looked_for_is_read(tmp_path, suffix):
    path = tmp_path / f"picture{suffix.upper()}"
    lossless = {"lossless": True} if suffix == ".webp" else {}
    smooth = np.stack([np.add.outer(np.arange(16), np.arange(24)) * 5] * 3, 2).astype(np.uint8)
    image = Image.fromarray(smooth)
    (image.convert("L") if suffix == ".pgm" else image).save(path, **lossless)
    assert find_pictures(tmp_path) == [path]
    tolerance = 6 if suffix in (".jpg", ".jpeg") else 0
    assert np.abs(read_picture(path, 3).astype(int) - smooth).max() <= tolerance


def test_what_is_transparent_is_on_white(tmp_path):
    alpha = np.zeros((5, 7, 1), np.uint8)
    alpha[2:] = 255
    Image.fromarray(np.concatenate([COLOUR, alpha], 2)).save(tmp_path / "rgba.png")
    found = read_picture(tmp_path / "rgba.png", 3)
    assert (found[:2] == 255).all()
    np.testing.assert_array_equal(found[2:], COLOUR[2:])
    two = Image.merge("LA", [Image.fromarray(GRAY), Image.fromarray(alpha[..., 0])])
    two.save(tmp_path / "la.png")
    found = read_picture(tmp_path / "la.png", 1)[..., 0]
    np.testing.assert_array_equal(found, np.where(alpha[..., 0] == 0, 255, GRAY))
    palette = Image.fromarray(COLOUR).quantize(8)
    palette.save(tmp_path / "p.png", transparency=int(np.asarray(palette)[0, 0]))
    assert (read_picture(tmp_path / "p.png", 3)[0, 0] == 255).all()


def test_palette_and_cmyk_and_bits(tmp_path):
    palette = Image.fromarray(COLOUR).quantize(16)
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(
        read_picture(tmp_path / "palette.png", 3), np.asarray(palette.convert("RGB"))
    )
    cmyk = Image.fromarray(COLOUR).convert("CMYK")
    cmyk.save(tmp_path / "cmyk.tif")
    np.testing.assert_array_equal(read_picture(tmp_path / "cmyk.tif", 3), COLOUR)
    Image.fromarray(GRAY > 127).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(
        read_picture(tmp_path / "bits.png", 1)[..., 0], 255 * (GRAY > 127)
    )


def test_sixteen_bits_keep_the_upper_eight(tmp_path):
    numbers = RNG.integers(0, 2**16, (5, 7), np.uint16)
    Image.fromarray(numbers).save(tmp_path / "deep.png")
    Image.fromarray(numbers).save(tmp_path / "deep.tif")
    header = b"P5 7 5 65535\n"
    (tmp_path / "deep.pgm").write_bytes(header + numbers.astype(">u2").tobytes())
    for name in ("deep.png", "deep.tif", "deep.pgm"):
        np.testing.assert_array_equal(read_picture(tmp_path / name, 1)[..., 0], numbers >> 8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_it_is_turned_as_its_exif_data_say(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(GRAY).save(tmp_path / "turned.png", exif=exif)
    turns = {
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.T,
        6: lambda x: x[::-1].T,
        7: lambda x: x[::-1, ::-1].T,
        8: lambda x: x.T[::-1],
    }
    expected = turns.get(orientation, lambda x: x)(GRAY)
    np.testing.assert_array_equal(read_picture(tmp_path / "turned.png", 1)[..., 0], expected)


def bomb(path):
    """A PNG whose header says 30,000 x 30,000 pixels."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def large(path):
    """A picture of so many pixels that Pillow only warns."""
    Image.new("1", (10_000, 9_000)).save(path)


def animated(path):
    first, second = (Image.fromarray(x) for x in (GRAY, 255 - GRAY))
    first.save(path, format="GIF", save_all=True, append_images=[second])


def cut(path):
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8)).save(path, format="PNG")
    path.write_bytes(path.read_bytes()[:6000])


BAD = {
    "text": (lambda path: path.write_text("not a picture"), "is no picture that can be read"),
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "animated": (animated, "has 2 frames; give a single picture"),
    "bomb": (bomb, "is too large: Image size"),
    "large": (large, "is too large: Image size"),
    "cut": (cut, "cannot be read: "),
    "float": (
        lambda path: Image.fromarray(GRAY.astype(np.float32)).save(path, format="TIFF"),
        "numbers of 32 bits",
    ),
    "folder": (lambda path: path.mkdir(), "is a folder, not a picture"),
    "missing": (lambda path: None, "cannot be read: No such file"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_told_in_a_line(tmp_path, kind):
    make, message = BAD[kind]
    make(tmp_path / "bad.png")
    with pytest.raises(DataError, match=message) as error:
        read_picture(tmp_path / "bad.png", 1)
    assert "bad.png" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_photo_of_a_camera_comes_with_previews(tmp_path):
    path = tmp_path / "photo.jpg"
    photo, preview = (Image.fromarray(np.full((16, 24, 3), n, np.uint8)) for n in (200, 10))
    photo.save(path, format="MPO", save_all=True, append_images=[preview])
    with Image.open(path) as opened:
        assert opened.n_frames == 2
    assert np.abs(read_picture(path, 3).astype(int) - 200).max() <= 2


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow's own words on some of them
def test_damaged_bytes_never_raise_another_error(tmp_path):
    path = tmp_path / "picture.png"
    for suffix in ("png", "jpeg", "gif", "bmp", "tiff", "webp"):
        Image.fromarray(COLOUR).save(path, format=suffix)
        whole = path.read_bytes()
        for _ in range(40):
            harmed = bytearray(whole)
            for place in RNG.integers(0, len(whole), 3):
                harmed[place] = RNG.integers(0, 256)
            path.write_bytes(harmed)
            with contextlib.suppress(DataError):
                assert read_picture(path, 3).shape[2] == 3


def test_what_a_folder_has(tmp_path):
    for name in ("b.png", "a.JPG", "notes.txt", ".hidden.png"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "within.png").mkdir()
    assert [path.name for path in find_pictures(tmp_path)] == ["a.JPG", "b.png"]
    assert find_pictures(tmp_path / "b.png") == [tmp_path / "b.png"]
    (tmp_path / "empty").mkdir()
    for path, message in (("empty", "has no pictures"), ("none", "there is no file or folder")):
        with pytest.raises(DataError, match=message):
            find_pictures(tmp_path / path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    Image.fromarray(GRAY).save(tmp_path / "mine.png")
    (tmp_path / "mine.png").chmod(0)
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        read_picture(tmp_path / "mine.png", 1)


def test_models_of_other_channels_take_no_files(tmp_path):
    Image.fromarray(GRAY).save(tmp_path / "gray.png")
    with pytest.raises(DataError, match="pictures give 1 or 3 channels, and the model takes 2"):
        read_picture(tmp_path / "gray.png", 2)


# Squares


def by_pillow(image, size, aspect_ratio):
    """The square, by functions of Pillow's that jaxcnn does not call."""
    how = Image.Resampling.BILINEAR
    if aspect_ratio == "pad":
        return ImageOps.pad(image, (size, size), how)
    if aspect_ratio == "stretch":
        return image.resize((size, size), how)
    factor = size / min(image.size)
    whole = image.resize([max(size, int(factor * side + 1e-9)) for side in image.size], how)
    left, top = (round((side - size) / 2) for side in whole.size)
    return whole.crop((left, top, left + size, top + size))


@pytest.mark.parametrize("aspect_ratio", ASPECT_RATIOS)
@pytest.mark.parametrize("shape", [(5, 37), (37, 5), (40, 39), (64, 64), (3, 3), (90, 7)])
@pytest.mark.parametrize("channels", [1, 3])
def test_squares_are_pillows(aspect_ratio, shape, channels):
    pixels = RNG.integers(1, 256, (*shape, channels), np.uint8)
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    for size in (8, 19, 64):
        square = fit_picture(pixels, size, aspect_ratio=aspect_ratio)
        assert square.dtype == np.uint8
        if shape[0] == shape[1] <= size:
            np.testing.assert_array_equal(square, pixels)  # enlarged later
            continue
        expected = np.asarray(by_pillow(image, size, aspect_ratio)).reshape(size, size, channels)
        np.testing.assert_array_equal(square, expected)


def test_what_is_padded_is_black_on_both_sides():
    square = fit_picture(np.full((10, 40, 3), 200, np.uint8), 16, aspect_ratio="pad")
    assert (square[6:10] == 200).all()
    assert not square[:6].any()
    assert not square[10:].any()


def test_thin_pictures_can_be_padded_and_stretched():
    line = np.full((3, 1000, 1), 9, np.uint8)
    with pytest.raises(DataError, match="too narrow for a square; crop it"):
        fit_picture(line, 8)
    assert (fit_picture(line, 8, aspect_ratio="stretch") == 9).all()
    assert (fit_picture(line, 8, aspect_ratio="pad").sum(axis=(0, 2)) == 9).all()
