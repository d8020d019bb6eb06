"""Picture files as arrays: what `Trained.predict` takes beside arrays."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from jaxcnn.errors import DataError, first_line

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_MODES = {1: "L", 3: "RGB"}  # Pillow's names of gray and colour
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")


def find_pictures(path: Path) -> list[Path]:
    """Return a file, or the picture files that lie in a folder (not in folders within), by name.

    Raises:
        DataError: if there is no such file or folder, or the folder has no pictures.
    """
    if not path.is_dir():
        if not path.exists():
            raise DataError(f"there is no file or folder {str(path)!r}")
        return [path]
    visible = (file for file in path.iterdir() if not file.name.startswith("."))
    found = sorted(file for file in visible if file.suffix.lower() in SUFFIXES and file.is_file())
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
        raise DataError(f"pictures give 1 or 3 channels, and the model takes {channels}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                frames = getattr(image, "n_frames", 1)
                if frames > 1:
                    raise DataError(f"{str(path)!r} has {frames} frames; give a single picture")
                image.load()
                return _as_array(image, path, _MODES[channels])
    except DataError:
        raise
    except UnidentifiedImageError:
        what = "is empty" if path.stat().st_size == 0 else "is no picture that can be read"
        raise DataError(f"{str(path)!r} {what}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{str(path)!r} is too large: {first_line(error)}") from None
    except IsADirectoryError:
        raise DataError(f"{str(path)!r} is a folder, not a picture") from None
    except Exception as error:  # of a damaged file, Pillow may raise anything
        reason = getattr(error, "strerror", None) or first_line(error)
        raise DataError(f"{str(path)!r} cannot be read: {reason}") from None


def _as_array(image: Image.Image, path: Path, mode: str) -> np.ndarray:
    image = ImageOps.exif_transpose(image)
    if image.mode in _SIXTEEN_BITS or (image.mode == "I" and image.format == "PNG"):
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DataError(
            f"{str(path)!r} has numbers of 32 bits, whose black and white are not known; convert "
            "it to 8 bits"
        )
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    array = np.asarray(image.convert(mode))
    return array[..., None] if mode == "L" else array
