"""The report as a file: the template, what is put into it, and what may stand in the way."""

import base64
import contextlib
import functools
import io
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxcnn import __version__
from jaxcnn.data import check_dataset
from jaxcnn.errors import ConfigError
from jaxcnn.files import check_output, write_atomically
from jaxcnn.report import charts
from jaxcnn.report.collect import (
    Run,
    collect,
    data_note,
    describe_environment,
    describe_results,
    describe_settings,
    name_runs,
    read_records,
    split,
    tabulate,
)
from jaxcnn.train.record.logs import evaluated_split

_MAX_PIXELS = 112  # of a picture's height and width in the file


def write_report(
    folders: Sequence[str | Path] | str | Path,
    path: str | Path,
    which: str | int = "best",
    *,
    data: Any = None,
    title: str | None = None,
    force: bool = False,
) -> Path:
    """Write a web page of one run or several, which needs no other file and no network.

    It has the curves of all runs, their results and what differs between them, and of each run the
    confusion matrix, precision, recall and F1 of each class, the most confident mistakes, the
    kernels of the first convolution and feature maps. What cannot be shown, as of a run that has
    just begun, is said there. The runs may still be training.

    Args:
        folders: of the runs, in the order of the page.
        path: of the file to write, such as 'report.html'.
        which: checkpoint of each run: 'best', 'last' or a step; see `jaxcnn.load`.
        data: to evaluate all runs on, as `jaxcnn.data.check_dataset` accepts it; None for each
            run's own test set, which a run does not record that was given its data as an object.
        title: of the page; None for the number of runs.
        force: whether to replace a file that exists.

    Returns:
        The path.

    Raises:
        ConfigError: if a folder is not that of a run, the file exists or cannot be written, or a
            package is missing: `pip install 'jaxcnn[report]'`.

    >>> write_report([], "report.html")
    Traceback (most recent call last):
    jaxcnn.errors.ConfigError: no run to report; give the folder of one, such as 'runs/lenet'
    """
    given = [folders] if isinstance(folders, str | Path) else folders
    if isinstance(which, bool) or not (isinstance(which, int) or which in ("best", "last")):
        raise ConfigError(f"which is {which!r}; it must be 'best', 'last' or the number of a step")
    records = read_records(given)
    dataset = None if data is None else check_dataset(data, "data")
    path = _check_page(path, force)
    vega = _vega()
    names = name_runs(list(records))
    runs = [
        collect(folder, name, record, which, dataset)
        for name, (folder, record) in zip(names, records.items(), strict=True)
    ]
    page = render(runs, vega, title, are_alike=dataset is not None)
    with _writing(path):
        write_atomically(path, page.encode("utf-8", "backslashreplace"))  # names of any bytes
    return path


def _check_page(path: str | Path, force: bool) -> Path:
    path = check_output(path, force)
    if path.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"the report is a web page; {str(path)!r} must end in .html")
    return path


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn a failure to write into an error of one line."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"cannot write {str(path)!r} ({error.strerror or error})") from error


@functools.cache
def _vega() -> str:
    """Return Vega-Lite in JavaScript.

    Raises:
        ConfigError: if a package that a report needs is not installed.
    """
    try:
        import jinja2  # noqa: F401
        from vl_convert import javascript_bundle
    except ImportError as error:
        raise ConfigError(
            f"a report needs the package {error.name}, which is not installed: "
            "pip install 'jaxcnn[report]'"
        ) from error
    return javascript_bundle("window.vegaEmbed = vegaEmbed;")


def render(
    runs: Sequence[Run], vega: str, title: str | None = None, are_alike: bool = False
) -> str:
    """Return the page as HTML.

    Args:
        runs: to show.
        vega: JavaScript that defines `vegaEmbed`.
        title: of the page; None for the number of runs.
        are_alike: whether all were evaluated on the same images, although their own may differ.
    """
    import jinja2  # here, since it is an extra

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["picture"] = png
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}  # the order of a tooltip
    has_curves = any(run.rows for run in runs)
    specs = {name: charts.curves(runs, name) for name in ("loss", "accuracy") if has_curves}
    for i, run in enumerate(runs, start=1):
        if run.evaluation is not None:
            specs[f"confusion-{i}"] = charts.confusion(run.evaluation)
    files = resources.files(__package__)
    return environment.from_string((files / "page.html").read_text("utf-8")).render(
        runs=runs,
        title=title,
        colors=[charts.run_color(i, len(runs)) for i in range(len(runs))],
        specs=specs,
        held_out=_held_out(runs),
        note=data_note(runs, are_alike),
        results=tabulate(map(describe_results, runs)),
        settings=split(tabulate(map(describe_settings, runs))),
        environment=split(tabulate(map(describe_environment, runs))),
        date=datetime.now(UTC),
        version=__version__,
        style=(files / "page.css").read_text("utf-8"),
        script=(files / "page.js").read_text("utf-8"),
        vega=vega.replace("</script", "<\\/script"),
    )


def _held_out(runs: Sequence[Run]) -> list[str]:
    """Return the names of the sets that epochs were evaluated on."""
    found = {evaluated_split(run.rows) for run in runs if run.rows}
    return [split for split in ("validation", "test") if split in found]


def png(image: np.ndarray) -> str:
    """Return an image as the address of a PNG that is in the address itself.

    Args:
        image: uint8 [H, W, C]; with 3 channels they are red, green and blue, of any other number
            the mean is shown.

    >>> png(np.zeros((2, 2, 1), np.uint8))[:22]
    'data:image/png;base64,'
    """
    pixels = image if image.shape[2] == 3 else image.mean(axis=2).astype(np.uint8)
    picture = Image.fromarray(pixels)
    picture.thumbnail((_MAX_PIXELS, _MAX_PIXELS))
    file = io.BytesIO()
    picture.save(file, "png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
