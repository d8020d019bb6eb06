"""Pictures in folders, one for each class, as a data set."""

import dataclasses
import itertools
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxcnn.data.dataset import Dataset
from jaxcnn.data.decode import decode
from jaxcnn.data.sources import (
    Source,
    Splits,
    check_fit,
    count_of,
    describe_flaws,
    image_paths,
    listed,
    load_source,
    order_by_hash,
    split_by_hash,
)
from jaxcnn.errors import ConfigError, DataError
from jaxcnn.files import local_path
from jaxcnn.pictures import SUFFIXES

_TRAIN = ("train", "training")  # names of folders, in any case
_TEST = ("test", "testing")
_VALIDATION = ("val", "valid", "validation")


class _Picture(NamedTuple):
    """A picture file, and its path within the folder of the data set."""

    name: str
    path: Path


# The pictures of each class, by its name.
_Classes = dict[str, list[_Picture]]


def from_folder(
    path: str | Path,
    *,
    image_size: int | None = None,
    aspect_ratio: str = "crop",
    test_fraction: float = 0.2,
    seed: int = 0,
    data_dir: str | Path | None = None,
) -> Splits:
    """Load pictures that lie in a folder for each class.

    The folder has `train/` and `test/` (or `val/`, `valid/`) with the same classes in each, or the
    classes themselves, of which a part becomes the test set, of each class alike. The name of a
    class is that of its folder; the pictures may lie in folders within it. What is hidden, its name
    beginning with a dot, is ignored. The order mixes the classes, so that the first examples of a
    set have all of them.

    The pictures are decoded on all cores, and kept decoded: `load_source` says where.

    Args:
        path: of the folder.
        image_size: to make squares of at most this side of the pictures. By default they stay as
            they are, and all must be of one size.
        aspect_ratio: how those that are no squares become such: 'crop', 'pad' or 'stretch'; see
            `jaxcnn.pictures.fit_picture`.
        test_fraction: of each class that becomes the test set, if there is no folder for it.
        seed: of that choice, which stays the same as pictures are added.
        data_dir: see `load_source`.

    Returns:
        `train` and `test`: images, uint8 [N, H, W, C] with one channel if all are gray, else three;
        labels, int32 [N]; and the class names, sorted.

    Raises:
        ConfigError: if an argument is not accepted.
        DataError: if there is no such folder, a picture cannot be read, the sizes differ, there are
            fewer than two classes, one has no pictures, or train and test have different ones.

    >>> import tempfile
    >>> from PIL import Image
    >>> root = Path(tempfile.mkdtemp())
    >>> for name in ("cats/1.png", "cats/2.png", "dogs/1.png", "dogs/2.png"):
    ...     (root / name).parent.mkdir(exist_ok=True)
    ...     Image.fromarray(np.random.randint(0, 256, (20, 30, 3), np.uint8)).save(root / name)
    >>> train, test = from_folder(root, image_size=16, data_dir=tempfile.mkdtemp())
    >>> train.images.shape, sorted(test.labels.tolist()), test.class_names
    ((2, 16, 16, 3), [0, 1], ('cats', 'dogs'))
    """
    source = open_folder(
        path,
        image_size=image_size,
        aspect_ratio=aspect_ratio,
        test_fraction=test_fraction,
        seed=seed,
    )
    return load_source(source, data_dir)


def open_folder(
    path: str | Path,
    *,
    image_size: int | None = None,
    aspect_ratio: str = "crop",
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Source:
    """Find the pictures of a folder, and check what can be told without decoding them.

    Args:
        path: see `from_folder`.
        image_size: likewise.
        aspect_ratio: likewise.
        test_fraction: likewise.
        seed: likewise.

    Raises:
        ConfigError, DataError: see `from_folder`.
    """
    if not 0 < test_fraction < 1:
        raise ConfigError(f"test_fraction is {test_fraction}; it must be between 0 and 1")
    size, *how = check_fit(image_size, aspect_ratio)
    root = local_path(path, "the folder of pictures")
    title = f"folder:{path}"
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise DataError(f"the folder of pictures {str(path)!r} {what} (looked in {Path.cwd()})")
    found = _Finder(root)
    layout = _find_layout(root, found)
    if layout is None:
        classes = found.classes(root)
        _check_classes({title: classes})
        splits = _split_classes(classes, test_fraction, seed)
    else:
        splits = {split: found.classes(folder) for split, folder in layout.items()}
        _check_classes({f"{title}/{folder.name}": splits[s] for s, folder in layout.items()})
        _check_same_classes(title, splits)
    examples = {split: _in_order(classes) for split, classes in splits.items()}
    files = [
        (f"{split}/{label}/{picture.name}", picture.path)
        for split, labelled in examples.items()
        for label, picture in labelled
    ]
    return Source(
        title,
        ("folder", str(root.resolve()), [size, test_fraction, seed, *how]),
        files,
        found.notes(),
        partial(_read, title, examples, tuple(sorted(splits["train"])), image_size, aspect_ratio),
    )


def _read(
    title: str,
    examples: Mapping[str, list[tuple[str, _Picture]]],
    class_names: tuple[str, ...],
    image_size: int | None,
    aspect_ratio: str,
    folder: Path | None,
) -> tuple[Splits, list[str]]:
    parts = [examples[split] for split in Splits._fields]
    both = [each for part in parts for each in part]
    pictures = ((picture.name, picture.path) for _, picture in both)
    paths = image_paths(folder)
    images = decode(title, pictures, [*map(len, parts)], image_size, aspect_ratio, paths)
    place = {name: i for i, name in enumerate(class_names)}
    labels = [np.array([place[label] for label, _ in part], np.int32) for part in parts]
    splits = Splits(*(Dataset(*pair, class_names) for pair in zip(images, labels, strict=True)))
    return splits, describe_flaws(title, splits, [picture.name for _, picture in both])


def _find_layout(root: Path, found: "_Finder") -> dict[str, Path] | None:
    """Return the folders of the splits; None if the folder has the classes themselves."""
    folders, _ = _list(root)

    def named(names: tuple[str, ...]) -> Path | None:
        return next((folder for folder in folders if folder.name.lower() in names), None)

    train, test, validation = (named(names) for names in (_TRAIN, _TEST, _VALIDATION))
    held_out = test or validation
    if train and held_out:
        found.leave_out_beside([train, held_out], root)
        return {"train": train, "test": held_out}
    if train:
        raise DataError(
            f"{str(root)!r} has {train.name}/ and no test/ (nor val/, valid/); add it, or give "
            f"{str(train)!r}, of which a part then becomes the test set; or rename the folder if "
            f"{train.name} is a class"
        )
    if held_out:
        raise DataError(
            f"{str(root)!r} has {held_out.name}/ and no train/; add it, or rename the folder if "
            f"{held_out.name} is a class"
        )
    return None


def _split_classes(classes: _Classes, fraction: float, seed: int) -> dict[str, _Classes]:
    """Return a training and a test set, each class split alike."""
    splits: dict[str, _Classes] = {"train": {}, "test": {}}
    for name, pictures in classes.items():
        if len(pictures) == 1:
            raise DataError(
                f"class {name!r} has one picture, {pictures[0].name!r}, which cannot be in train "
                "and test; add pictures, or remove the class"
            )
        parts = split_by_hash([picture.name for picture in pictures], fraction, seed)
        for split, part in zip(splits, parts, strict=True):
            splits[split][name] = [pictures[i] for i in part]
    return splits


def _in_order(classes: _Classes) -> list[tuple[str, _Picture]]:
    """Return the pictures with their classes, mixed."""
    labelled = [(name, picture) for name, pictures in classes.items() for picture in pictures]
    return [labelled[i] for i in order_by_hash([picture.name for _, picture in labelled])]


def _check_classes(splits: Mapping[str, _Classes]) -> None:
    """Check that each folder has two classes or more, and each class pictures."""
    for where, classes in splits.items():
        if not classes:
            raise DataError(
                f"{where} has no folders of classes; put the pictures of each class into a folder "
                "with its name"
            )
        if empty := [name for name, pictures in classes.items() if not pictures]:
            raise DataError(
                f"{where} has classes without pictures: {listed(empty)}; remove the folders, or "
                f"add pictures ({', '.join(SUFFIXES)})"
            )
        if len(classes) == 1:
            raise DataError(f"{where} has one class only, {next(iter(classes))!r}; it takes two")
        for name in classes:
            if not name.isprintable():  # line breaks, or bytes that are not UTF-8
                raise DataError(
                    f"{where} has a folder {name!r}, whose name cannot be printed; rename it"
                )


def _check_same_classes(title: str, splits: Mapping[str, _Classes]) -> None:
    train, test = (set(splits[split]) for split in ("train", "test"))
    if train != test:
        only = [
            f"only in {split}: {listed(sorted(names))}"
            for split, names in (("train", train - test), ("test", test - train))
            if names
        ]
        raise DataError(
            f"{title} has other classes in train than in test; {'; '.join(only)}; give both the "
            "same folders"
        )


@dataclasses.dataclass
class _Finder:
    """Finds pictures, and remembers what it leaves out."""

    root: Path
    _others: list[str] = dataclasses.field(default_factory=list)
    _no_class: list[str] = dataclasses.field(default_factory=list)
    _loops: list[str] = dataclasses.field(default_factory=list)
    _beside: list[str] = dataclasses.field(default_factory=list)

    def classes(self, folder: Path) -> _Classes:
        """Return the pictures of each class, whose folders are in the given one."""
        folders, files = _list(folder)
        for file in files:
            (self._no_class if _is_picture(file) else self._others).append(self._name(file))
        self._loops += [self._name(each) for each in folders if _leads_to(each, [folder])]
        folders = [each for each in folders if not _leads_to(each, [folder])]
        return {each.name: list(self._pictures(each, [folder])) for each in folders}

    def leave_out_beside(self, taken: list[Path], folder: Path) -> None:
        """Remember what lies in a folder beside what is taken."""
        folders, files = _list(folder)
        self._beside += [f"{self._name(each)}/" for each in folders if each not in taken]
        for file in files:
            (self._no_class if _is_picture(file) else self._others).append(self._name(file))

    def notes(self) -> list[str]:
        """Return a line for each kind of thing that was left out."""
        return [
            f"left out {count_of(len(names), noun)} {why}: {listed(names)}"
            for names, noun, why in (
                (self._no_class, "picture", "outside the folders of the classes"),
                (self._others, "file", "of other kinds than pictures"),
                (self._beside, "folder", "beside those of train and test"),
                (self._loops, "link", "to folders that contain them"),
            )
            if names
        ]

    def _pictures(self, folder: Path, above: list[Path]) -> Iterator[_Picture]:
        folders, files = _list(folder)
        for file in files:
            if _is_picture(file):
                yield _Picture(self._name(file), file)
            else:
                self._others.append(self._name(file))
        above = [*above, folder]
        for each in folders:
            if _leads_to(each, above):
                self._loops.append(self._name(each))
            else:
                yield from self._pictures(each, above)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def _list(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the folders and the files in a folder that are not hidden, by name."""
    try:
        with os.scandir(folder) as entries:
            visible = sorted((e for e in entries if not e.name.startswith(".")), key=_entry_name)
        is_folder = [entry.is_dir() for entry in visible]
    except OSError as error:
        raise DataError(f"cannot read the folder {str(folder)!r}: {error.strerror}") from None
    paths = [folder / entry.name for entry in visible]
    folders = list(itertools.compress(paths, is_folder))
    return folders, [path for path, is_dir in zip(paths, is_folder, strict=True) if not is_dir]


def _entry_name(entry: os.DirEntry[str]) -> str:
    return entry.name


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _leads_to(folder: Path, above: list[Path]) -> bool:
    """Return whether a folder is a link to one of those above it."""
    return folder.is_symlink() and any(folder.samefile(each) for each in above)
