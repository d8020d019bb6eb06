"""Prepare and verify a data set, and print what it holds."""

import argparse
import io
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from jaxcnn.cli.output import add_output, check_output, table
from jaxcnn.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image

    from jaxcnn.data import Dataset

HELP = "check a data set, count its classes, draw samples"
EXAMPLE = "jaxcnn data fashion_mnist -o samples.png"

_PER_CLASS = 10  # samples
_CELL, _GAP = 56, 4  # pixels of a sample, and between two of them
_MODES = {1: "L", 3: "RGB"}  # Pillow's, by the number of channels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `jaxcnn data` to its parser."""
    parser.add_argument(
        "name",
        metavar="NAME",
        help="such as fashion_mnist, folder:PATH, idx:PATH, tfds:NAME (see docs/data.md)",
    )
    parser.add_argument(
        "--image-size",
        type=int,
        metavar="N",
        help="make squares of at most N pixels of pictures; needed if their sizes differ",
    )
    parser.add_argument(
        "--aspect-ratio",
        choices=("crop", "pad", "stretch"),
        default="crop",
        help="how: crop the middle (the default), pad with black, or stretch",
    )
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        help="of TFDS; by default $TFDS_DATA_DIR, else ~/tensorflow_datasets",
    )
    parser.add_argument(
        "--data-source",
        metavar="DIR",
        help="with Fashion-MNIST's published files; else Debian's package, else a download",
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="PNG to draw ten training images of each class into"
    )
    add_output(parser)


def run(options: argparse.Namespace) -> Iterator[str]:
    """Prepare the data, yield the numbers, and draw the sheet if it is asked for."""
    path = None
    if options.output is not None:
        path = check_output(options.output, options.force)
        if path.suffix.lower() != ".png":
            raise ConfigError(f"{options.output!r} must end in .png")
    from jaxcnn.data import has_pictures, is_dataset, load_dataset
    from jaxcnn.files import write_atomically

    if options.image_size is not None and is_dataset(name := options.name):
        if not has_pictures(name):
            raise ConfigError(
                f"--image-size is {options.image_size}, but the images of {name} are resized while "
                "training (config.image_size); leave it out"
            )
        if options.image_size < 1:
            raise ConfigError(f"--image-size is {options.image_size}; it must be at least 1")

    splits = {
        split: load_dataset(
            options.name,
            split,
            options.data_dir,
            options.data_source,
            options.image_size,
            options.aspect_ratio,
        )
        for split in ("train", "test")
    }
    yield from _describe(splits)
    if path is not None:
        write_atomically(path, _as_png(draw_samples(splits["train"])))
        yield ""
        yield f"samples in {path}"


def _describe(splits: Mapping[str, "Dataset"]) -> Iterator[str]:
    import numpy as np

    for name, dataset in splits.items():
        count, *shape = dataset.images.shape
        yield f"{name:5}  {count:,} images of {' x '.join(map(str, shape))}, SHA-256"
        yield f"       {dataset.digest()}"
    yield ""
    class_names = splits["train"].class_names
    counts = [np.bincount(each.labels, minlength=len(class_names)) for each in splits.values()]
    rows = [
        (name, *(f"{count:,}" for count in of_class))
        for name, *of_class in zip(class_names, *counts, strict=True)
    ]
    total = (f"{len(class_names)} classes", *(f"{count.sum():,}" for count in counts))
    yield from table([("class", *splits), *rows, total], "<" + ">" * len(splits))


def draw_samples(dataset: "Dataset") -> "Image.Image":
    """Return a picture of the first ten images of each class, a row for each.

    Args:
        dataset: with images of 1 or 3 channels.

    Raises:
        ConfigError: if they have another number of channels.
    """
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    channels = dataset.images.shape[3]
    if channels not in _MODES:
        raise ConfigError(f"the images have {channels} channels; samples are drawn of 1 or 3")
    step, names, font = _CELL + _GAP, dataset.class_names, ImageFont.load_default(14)
    left = 3 * _GAP + math.ceil(max(font.getlength(name) for name in names))
    size = (left + _PER_CLASS * step, len(names) * step + _GAP)
    sheet = Image.new(_MODES[channels], size, "white")
    draw = ImageDraw.Draw(sheet)
    for label, name in enumerate(names):
        top = _GAP + label * step
        draw.text((_GAP, top + _CELL // 2), name, "black", font, anchor="lm")
        for column, index in enumerate(np.flatnonzero(dataset.labels == label)[:_PER_CLASS]):
            pixels = dataset.images[index]
            image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
            sheet.paste(_fit(image), (left + column * step, top))
    return sheet


def _fit(image: "Image.Image") -> "Image.Image":
    """Return an image that fills a cell; small pixels stay sharp."""
    from PIL import Image

    scale = _CELL / max(image.size)
    size = [max(1, round(side * scale)) for side in image.size]
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX)


def _as_png(image: "Image.Image") -> bytes:
    content = io.BytesIO()
    image.save(content, format="png")
    return content.getvalue()
