"""Picture files as arrays: what `Trained.predict` takes, and what data sets are made of."""

import contextlib
import io
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from jaxcnn.errors import DataError, first_line
from jaxcnn.files import absolute_if_home
from jaxcnn.machine import count_cores

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_MODES = {1: "L", 3: "RGB"}  # Pillow's names of gray and colour
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")
_WITH_PREVIEWS = ("MPO",)  # formats of cameras: the first of several pictures is the photo
_AHEAD = 4  # pictures for each thread that may wait, decoded, for those before them
_MAX_RATIO = 100  # of the sides of a picture that a square is cut from


def find_pictures(path: Path) -> list[Path]:
    """Return a file, or the picture files that lie in a folder (not in folders within), by name.

    Raises:
        DataError: if there is no such file or folder, or the folder has no pictures.
    """
    if not path.is_dir():
        if not path.exists():
            raise DataError(f"there is no file or folder {str(path)!r}")
        return [path]
    files = (absolute_if_home(file) for file in path.iterdir())
    visible = (file for file in files if not file.name.startswith("."))
    pictures = (file for file in visible if file.suffix.lower() in SUFFIXES and file.is_file())
    found = sorted(pictures, key=lambda file: file.name)
    if not found:
        raise DataError(f"the folder {str(path)!r} has no pictures ({', '.join(SUFFIXES)})")
    return found


def read_picture(path: Path, channels: int) -> np.ndarray:
    """Read a picture as it is seen: turned as its EXIF data say, on white where it is transparent.

    Args:
        path: of the file.
        channels: 1 for gray, to which colours are converted by their luminance (ITU-R 601), or 3.

    Returns:
        uint8 [H, W, channels]. Of 16-bit gray, the upper 8.

    Raises:
        DataError: if it is no picture, damaged, animated, of more pixels than Pillow accepts, or of
            numbers without a range (32-bit or floating point).
    """
    if channels not in _MODES:
        raise DataError(
            f"pictures give 1 or 3 channels, and the model takes {channels}; "
            "give predict an array, in Python"
        )
    with _refuse_large():
        return _read(path, str(path), channels)


def read_pictures(
    pictures: Iterable[tuple[str, Path | bytes]],
    image_size: int | None,
    take: Callable[[str, np.ndarray | str], None],
    aspect_ratio: str = "crop",
) -> None:
    """Read many pictures, each as `read_picture` and `fit_picture` do, on all cores.

    Memory holds a few of them at a time. Pillow releases the GIL while it decodes and resizes, so
    threads suffice.

    Args:
        pictures: the name of each, for messages, and its file or the file's content.
        image_size: see `fit_picture`; None to leave them as they are.
        take: called for each picture, in their order, with its name and uint8 [H, W, C], with as
            many channels as it has by itself (1 or 3); or, if it cannot be read, with a line that
            says why.
        aspect_ratio: see `fit_picture`.
    """

    def read(name: str, source: Path | bytes) -> np.ndarray | str:
        try:
            array = _read(source, name, None)
            if image_size is None:
                return array
            return fit_picture(array, image_size, name, aspect_ratio)
        except DataError as error:
            return f"{error}"

    cores = count_cores()
    with _refuse_large(), ThreadPoolExecutor(cores) as pool:
        begun: deque = deque()
        for name, source in pictures:
            begun.append((name, pool.submit(read, name, source)))
            if len(begun) > _AHEAD * cores:
                name, picture = begun.popleft()
                take(name, picture.result())
        for name, picture in begun:
            take(name, picture.result())


def fit_picture(
    picture: np.ndarray, image_size: int, name: str = "a picture", aspect_ratio: str = "crop"
) -> np.ndarray:
    """Make a square of at most the given size of a picture.

    A square that is no larger stays as it is: the compiled program enlarges it (`preprocess`). Any
    other picture is resized (bilinear, antialiased when it shrinks), in one of three ways:

    - 'crop': its shorter side to the size, and the square in the middle is cut out, as
      torchvision's Resize and CenterCrop do;
    - 'pad': its longer side to the size, and what is missing on both sides of it is black, as
      Pillow's `ImageOps.pad` does;
    - 'stretch': both sides to the size.

    Args:
        picture: uint8 [H, W, 1 or 3].
        image_size: side of the square, in pixels.
        name: for the error.
        aspect_ratio: one of `ASPECT_RATIOS`.

    Returns:
        uint8 [S, S, C] with S at most `image_size`.

    Raises:
        DataError: if one side is more than 100 times the other, of a picture to crop.

    >>> fit_picture(np.zeros((60, 40, 3), np.uint8), 32).shape
    (32, 32, 3)
    >>> fit_picture(np.zeros((20, 20, 1), np.uint8), 32).shape
    (20, 20, 1)
    """
    height, width, _ = picture.shape
    if height == width <= image_size:
        return picture
    if aspect_ratio == "crop" and max(height, width) > _MAX_RATIO * min(height, width):
        raise DataError(
            f"{name!r} is {width} x {height} pixels, too narrow for a square; crop it, or remove it"
        )
    return ASPECT_RATIOS[aspect_ratio](picture, image_size)


def resize_and_crop(picture: np.ndarray, image_size: int) -> np.ndarray:
    """Resize the shorter side of a picture, and cut out the square in the middle.

    Args:
        picture: uint8 [H, W, 1 or 3].
        image_size: side of the square, in pixels.

    Returns:
        uint8 [image_size, image_size, C].

    >>> resize_and_crop(np.full((5, 9, 1), 7, np.uint8), 10).mean()
    np.float64(7.0)
    """
    height, width, _ = picture.shape
    short, long = min(height, width), max(height, width)
    other = image_size * long // short
    size = (image_size, other) if width > height else (other, image_size)
    resized = _resize(picture, *size)
    top, left = (round((side - image_size) / 2) for side in size)
    return resized[top : top + image_size, left : left + image_size]


def resize_and_pad(picture: np.ndarray, image_size: int) -> np.ndarray:
    """Resize the longer side of a picture, and put it into the middle of a black square.

    Args:
        picture: uint8 [H, W, 1 or 3].
        image_size: side of the square, in pixels.

    Returns:
        uint8 [image_size, image_size, C].

    >>> resize_and_pad(np.full((1, 3, 1), 7, np.uint8), 3)[..., 0].tolist()
    [[0, 0, 0], [7, 7, 7], [0, 0, 0]]
    """
    height, width, channels = picture.shape
    long = max(height, width)
    height, width = (max(1, round(image_size * side / long)) for side in (height, width))
    top, left = (round((image_size - side) / 2) for side in (height, width))
    square = np.zeros((image_size, image_size, channels), np.uint8)
    square[top : top + height, left : left + width] = _resize(picture, height, width)
    return square


def stretch(picture: np.ndarray, image_size: int) -> np.ndarray:
    """Resize both sides of a picture.

    Args:
        picture: uint8 [H, W, 1 or 3].
        image_size: side of the square, in pixels.

    Returns:
        uint8 [image_size, image_size, C].

    >>> stretch(np.full((5, 9, 1), 7, np.uint8), 10).shape
    (10, 10, 1)
    """
    return _resize(picture, image_size, image_size)


# What `config.aspect_ratio` may be: how a picture that is no square becomes one. Each function
# takes (picture, image_size).
ASPECT_RATIOS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "crop": resize_and_crop,
    "pad": resize_and_pad,
    "stretch": stretch,
}


def _resize(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize both sides of a picture, uint8 [H, W, C]; bilinear, antialiased when it shrinks."""
    channels = picture.shape[2]
    image = Image.fromarray(picture[..., 0] if channels == 1 else picture)
    resized = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    return resized[..., None] if channels == 1 else resized


@contextlib.contextmanager
def _refuse_large() -> Iterator[None]:
    """Make an error of Pillow's warning; it holds for all threads, which must not change it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _read(source: Path | bytes, name: str, channels: int | None) -> np.ndarray:
    """Read a picture from a file or its content; `channels` None takes those that it has."""
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format not in _WITH_PREVIEWS:
                raise DataError(f"{name!r} has {frames} frames; give a single picture")
            image.load()
            return _as_array(image, name, channels)
    except DataError:
        raise
    except UnidentifiedImageError:
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        what = "is empty" if size == 0 else "is no picture that can be read"
        raise DataError(f"{name!r} {what}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{name!r} is too large: {first_line(error)}") from None
    except IsADirectoryError:
        raise DataError(f"{name!r} is a folder, not a picture") from None
    except Exception as error:  # of a damaged file, Pillow may raise anything
        reason = getattr(error, "strerror", None) or first_line(error)
        raise DataError(f"{name!r} cannot be read: {reason}") from None


def _as_array(image: Image.Image, name: str, channels: int | None) -> np.ndarray:
    is_sixteen = image.mode in _SIXTEEN_BITS or (image.mode == "I" and image.format == "PPM")
    image = ImageOps.exif_transpose(image)  # which forgets the format
    if is_sixteen:
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DataError(
            f"{name!r} has numbers of 32 bits, whose black and white are not known; convert it to "
            "8 bits"
        )
    mode = _MODES[channels or _count_channels(image)]
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    array = np.asarray(image.convert(mode))
    return array[..., None] if mode == "L" else array


def _count_channels(image: Image.Image) -> int:
    """Return 1 for a gray picture, also one whose palette is gray, and 3 for any other."""
    if image.mode == "P":
        red, green, blue = np.moveaxis(np.asarray(image.convert("RGB")), 2, 0)
        return 1 if (red == green).all() and (green == blue).all() else 3
    return 1 if image.getbands()[0] in ("1", "L") else 3
