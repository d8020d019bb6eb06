"""Classify picture files with a trained model."""

import argparse
import json
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from jaxcnn.cli.output import LeftOutError, add_run, explain, line_width, load_run, table
from jaxcnn.errors import ConfigError, DataError, JaxcnnError
from jaxcnn.files import local_path

if TYPE_CHECKING:
    import numpy as np

    from jaxcnn.trained import Trained

HELP = "the most probable classes of pictures"
EXAMPLE = "jaxcnn predict runs/lenet drawing.png --invert"

_MAX_BYTES = 2**26  # of the pictures that are in memory at once

Picture = tuple[Path, "np.ndarray"]  # uint8 [H, W, C]
Top = list[tuple[str, float]]  # the most probable classes of a picture, with their probabilities


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `jaxcnn predict` to its parser."""
    add_run(parser)
    parser.add_argument("paths", metavar="PATH", nargs="+", help="picture, or folder of pictures")
    parser.add_argument("--top", type=int, default=3, metavar="N", help="classes to show (3)")
    parser.add_argument("--invert", action="store_true", help="for drawings on a light background")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each picture")
    parser.add_argument(
        "--batch-size", type=int, default=128, metavar="N", help="pictures at a time (128)"
    )


def run(options: argparse.Namespace) -> Iterator[str]:
    """Classify, and yield the results; what is no picture is left out, and told at the end."""
    for name in ("top", "batch_size"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1")
    trained = load_run(options)
    reasons: list[str] = []
    files = _find(options.paths, reasons)
    results = _classify(trained, files, options, reasons)
    if not files:
        raise DataError("; ".join(reasons))
    is_single = len(options.paths) == 1 and not local_path(options.paths[0], "path").is_dir()
    if options.json:
        yield from (_as_json(path, top) for path, top in results)
    elif is_single:
        yield from (line for path, top in results for line in _block(path, top))
    elif len(options.paths) == 1:  # a folder, which its files need not repeat
        yield f"{options.paths[0]}:"
        names = [Path(path.name) for path in files]
        named = ((Path(path.name), top) for path, top in results)
        yield from _rows(named, names, trained.output_names, options.top)
    else:
        yield from _rows(results, files, trained.output_names, options.top)
    if reasons:
        raise DataError(reasons[0]) if is_single else LeftOutError(reasons)


def _find(paths: Iterable[str], reasons: list[str]) -> list[Path]:
    """Return the files; add why to `reasons` where there are none."""
    from jaxcnn.pictures import find_pictures

    files: list[Path] = []
    for path in paths:
        try:
            files += find_pictures(local_path(path, "path"))
        except (JaxcnnError, OSError) as error:
            reasons.append(explain(error))
    return files


def _read(trained: "Trained", files: Iterable[Path], reasons: list[str]) -> Iterator[Picture]:
    """Yield the pictures that can be read; add why to `reasons` where one cannot."""
    for path in files:
        try:
            yield path, trained.read_picture(path)
        except DataError as error:
            reasons.append(explain(error))


def _batches(pictures: Iterable[Picture], size: int) -> Iterator[list[Picture]]:
    """Yield as many pictures at a time, or fewer where they are large."""
    batch: list[Picture] = []
    for picture in pictures:
        batch.append(picture)
        if len(batch) == size or sum(image.nbytes for _, image in batch) >= _MAX_BYTES:
            yield batch
            batch = []
    if batch:
        yield batch


def _classify(
    trained: "Trained", files: list[Path], options: argparse.Namespace, reasons: list[str]
) -> Iterator[tuple[Path, Top]]:
    """Yield the results of the files that are pictures, in their order."""
    import numpy as np

    size = min(options.batch_size, len(files))
    pictures = _read(trained, files, reasons)
    for batch in _batches(pictures, size):
        tops: dict[Path, Top] = {}
        for shape in {image.shape for _, image in batch}:  # the model takes images of one size
            alike = [picture for picture in batch if picture[1].shape == shape]
            images = np.stack([image for _, image in alike])
            calls = max(1, min(size, _MAX_BYTES // images[0].nbytes))
            predictions = trained.predict(255 - images if options.invert else images, calls)
            found = predictions.top(options.top)
            tops |= {path: top for (path, _), top in zip(alike, found, strict=True)}
        yield from ((path, tops[path]) for path, _ in batch)


def _block(path: Path, top: Top) -> list[str]:
    """Return the lines of a single picture."""
    rows = [(f"  {name}", f"{probability:.4f}") for name, probability in top]
    return [f"{path}", *table(rows, "<>")]


def _rows(
    results: Iterable[tuple[Path, Top]], files: list[Path], output_names: tuple[str, ...], top: int
) -> Iterator[str]:
    """Yield a table, whose widths are known before its rows; two lines a picture if too wide."""
    path = max(len(f"{file}") for file in [Path("picture"), *files])
    name = max(map(len, output_names))
    columns = min(top, len(output_names))
    is_table = path + columns * (name + 9) <= line_width()
    for number, (file, best) in enumerate(results):
        if is_table:
            if number == 0:
                yield _row("picture", path, _headings(columns), name + 7)
            cells = [f"{label:{name}} {probability:.4f}" for label, probability in best]
            yield _row(f"{file}", path, cells, name + 7)
        else:
            yield f"{file}"
            text = ", ".join(f"{label} {probability:.4f}" for label, probability in best)
            yield textwrap.fill(text, line_width(), initial_indent="  ", subsequent_indent="  ")


def _row(first: str, width: int, cells: list[str], cell_width: int) -> str:
    return "  ".join([f"{first:{width}}", *(f"{cell:{cell_width}}" for cell in cells)]).rstrip()


def _headings(count: int) -> list[str]:
    endings = {1: "st", 2: "nd", 3: "rd"}
    others = range(2, count + 1)
    return ["class", *(f"{n}{endings.get(n % 10 * (n // 10 % 10 != 1), 'th')}" for n in others)]


def _as_json(path: Path, top: Top) -> str:
    best = [{"class": name, "probability": probability} for name, probability in top]
    return json.dumps({"path": f"{path}", **best[0], "top": best})
