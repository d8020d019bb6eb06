"""A trained model: predict, evaluate, plot and export what a run has made."""

import dataclasses
import warnings
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from jaxcnn.config import DTYPES, get_default_config
from jaxcnn.data import (
    Dataset,
    check_dataset,
    has_pictures,
    is_dataset,
    load_dataset,
    preprocess,
)
from jaxcnn.data.dataset import is_channels_first, to_uint8
from jaxcnn.data.fashion_mnist import FASHION_MNIST
from jaxcnn.data.split import split_validation
from jaxcnn.errors import ConfigError, DataError
from jaxcnn.files import local_path, run_path
from jaxcnn.inspect.figures import curves_figure, curves_png, save_figure
from jaxcnn.models import (
    MODELS,
    Normalized,
    build_model,
    create_model,
    predict_logits,
    without_normalization,
)
from jaxcnn.ops import cpu
from jaxcnn.pictures import find_pictures, fit_picture, read_picture
from jaxcnn.scores import Evaluation, evaluate_logits, softmax
from jaxcnn.train.protocol import set_axis_name
from jaxcnn.train.record.checkpoint import FOLDER, Checkpoints, MissingCheckpointError
from jaxcnn.train.record.integrity import DamagedCheckpointError
from jaxcnn.train.record.logs import JsonLines, Row
from jaxcnn.train.record.remote import fetched
from jaxcnn.train.record.workdir import read_run
from jaxcnn.train.state import TrainState
from jaxcnn.train.trees import Shapes, first_difference, shapes_by_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAX_CHANNELS = 4  # that an earlier record, which does not tell them, is tried with


@dataclasses.dataclass(frozen=True, repr=False)
class Predictions:
    """What a model says of images.

    Attributes:
        probabilities: float32 [N, C], of each class.
        class_names: C of them.
        paths: of the files, if files were given.
    """

    probabilities: np.ndarray
    class_names: tuple[str, ...]
    paths: tuple[Path, ...] = ()

    @property
    def labels(self) -> np.ndarray:
        """int32 [N], the most probable class of each image."""
        return self.probabilities.argmax(axis=1).astype(np.int32)

    @property
    def names(self) -> list[str]:
        """The name of the most probable class of each image."""
        return [self.class_names[label] for label in self.labels]

    def top(self, count: int = 3) -> list[list[tuple[str, float]]]:
        """Return the most probable classes of each image, with their probabilities."""
        order = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :count]
        return [
            [(self.class_names[label], float(row[label])) for label in best]
            for row, best in zip(self.probabilities, order, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.probabilities)

    def __repr__(self) -> str:
        shown = [
            f"{self.paths[i].name if self.paths else i}: "
            + ", ".join(f"{name} {probability:.3f}" for name, probability in best)
            for i, best in enumerate(Predictions(self.probabilities[:10], self.class_names).top())
        ]
        more = [f"... {len(self) - 10:,} more"] if len(self) > 10 else []
        return "\n".join(shown + more)


@dataclasses.dataclass(frozen=True, repr=False)
class Trained:
    """A trained model, from `jaxcnn.fit` or `jaxcnn.load`.

    Attributes:
        model: maps images in [0, 1] to logits; a `Normalized` if the run normalized its images.
        variables: `params` and `batch_stats`, to call it with: `model.apply(variables, images)`.
        config: of the run.
        class_names: of the data set, by label.
        image_shape: (H, W, C) of the images that the model takes.
        step: optimizer steps taken.
        history: a row for each epoch of the run, as in `metrics.jsonl`.
        folder: of the run; None if it has none.
        digests: SHA-256 of each split of the data.
    """

    model: nn.Module
    variables: dict[str, Any]
    config: ConfigDict
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    step: int
    history: list[Row]
    folder: Path | None = None
    digests: dict[str, str] = dataclasses.field(default_factory=dict)

    def predict(self, images: Any, batch_size: int = 128) -> Predictions:
        """Classify images, prepared as those of the run were.

        Args:
            images: an array, uint8 or floating point in [0, 1], of one image, [H, W] or [H, W, C],
                or of several, [N, H, W, C], of any size; or paths of picture files and of folders
                of them (see `read_picture`).
            batch_size: most images per call of the compiled program.

        Raises:
            ValueError: if an array is of another dtype, range or shape.
            DataError: if a file is no picture, or a folder has none.
        """
        if _are_paths(images):
            return self._predict_files(images, batch_size)
        array = self._as_images(images)
        return Predictions(softmax(self.logits(array, batch_size)), self.output_names)

    def read_picture(self, path: str | Path) -> np.ndarray:
        """Read a picture file, and make a square of it if the pictures of the run became such.

        Args:
            path: of the file.

        Returns:
            uint8 [H, W, C], for `predict`.

        Raises:
            DataError: see `jaxcnn.pictures.read_picture`.
        """
        file = local_path(path, "path")
        picture = read_picture(file, self.image_shape[2])
        if not has_pictures(self.config.dataset):
            return picture
        return fit_picture(picture, self.image_shape[0], str(path), self._aspect_ratio)

    def logits(self, images: np.ndarray, batch_size: int = 128) -> np.ndarray:
        """Return the logits of images, prepared as those of the run were.

        Args:
            images: uint8 [N, H, W, C].
            batch_size: most images per call of the compiled program.

        Returns:
            Floating point [N, C].
        """
        if len(images) == 1:
            return np.asarray(self._program(self.variables, np.asarray(images)))
        found: list[np.ndarray] = []
        call = None
        for start in range(0, len(images), batch_size):
            part = _padded(images[start : start + batch_size], batch_size)
            latest, call = call, self._program(self.variables, part)
            if latest is not None:  # one call ahead of the device: it need not hold all images
                found.append(np.asarray(latest))
        return np.concatenate([*found, np.asarray(call)])[: len(images)]

    def evaluate(self, data: Any = "test") -> Evaluation:
        """Evaluate the model on a split of the run's data, or on another data set.

        Args:
            data: 'test', 'validation', 'train', or an object that `jaxcnn.data.check_dataset`
                accepts, with the classes of the run.

        Raises:
            ConfigError: if the object is not accepted, or the split is not the one of the run.
            DataError: if the data set is missing or damaged.
        """
        dataset = self.dataset(data) if isinstance(data, str) else check_dataset(data, "data")
        if dataset.class_names != self.class_names:
            raise ConfigError(
                f"the data set has the classes {_listed(dataset.class_names)}, and the model was "
                f"trained on {_listed(self.class_names)}; give one with the same"
            )
        self._check_channels(dataset.images, "data.images")
        part = -(-self.config.batch_size // self.config.gradient_accumulation_steps)
        logits = self.logits(dataset.images, part)
        return evaluate_logits(logits, dataset.labels, self.output_names)

    def plot(self, path: str | Path | None = None) -> "Figure":
        """Return the curves of loss and accuracy as a figure of Matplotlib.

        Args:
            path: of a file to draw into as well; its suffix says the format, such as '.png'.

        Raises:
            ConfigError: if no epoch has been finished.
        """
        if not self.history:
            raise ConfigError("there are no curves yet: the run has not finished an epoch")
        figure = curves_figure(self.history, self.title)
        if path is not None:
            save_figure(figure, local_path(path, "path"))
        return figure

    def export(self, path: str | Path, names: str | None = None, *, force: bool = False) -> Path:
        """Write the model for another runtime; the suffix of the path says which.

        A program has the logits of `predict`, with `test_augmentation` if the run has it. Weights
        are those of the model alone.

        Args:
            path: of a file that ends in '.onnx', '.stablehlo', '.safetensors' or '.pt'; see
                `jaxcnn.export.export_model`.
            names: of the arrays in the last two: those of 'd2l' (the default) or 'torchvision'.
            force: whether to replace a file that exists.

        Returns:
            The path.

        Raises:
            ConfigError: if the path or the model is not accepted, or a package is missing.
        """
        from jaxcnn.export import export_model  # here, as it is seldom needed

        return export_model(
            path,
            self.model,
            self.variables,
            image_shape=self.image_shape,
            class_names=self.class_names,
            dtype=DTYPES[self.config.dtype],
            names=names,
            test_augmentation=self.config.test_augmentation,
            aspect_ratio=self._aspect_ratio,
            force=force,
        )

    @property
    def _aspect_ratio(self) -> str:
        """How pictures become squares: those of arrays are only resized."""
        return self.config.aspect_ratio if has_pictures(self.config.dataset) else "stretch"

    @property
    def title(self) -> str:
        """What was trained on what."""
        return f"{self.config.model} on {self.config.dataset}"

    def dataset(self, split: str = "test") -> Dataset:
        """Return a split of the run's data, as it was then.

        Args:
            split: 'test', 'train' (without the validation set) or 'validation'.

        Raises:
            ConfigError: if the run was given its data as an object, they are others by now, or it
                has no such set.
            DataError: if the data set is missing or damaged.
        """
        config = self.config
        if split not in SPLITS:
            raise ConfigError(f"unknown split {split!r}; accepted: {', '.join(map(repr, SPLITS))}")
        if not is_dataset(config.dataset):
            raise ConfigError(
                f"the run was made with {config.dataset!r}, which is not in jaxcnn.data.DATASETS; "
                "give the data set itself, in Python: trained.evaluate(dataset)"
            )
        if self.digests and split not in self.digests:
            raise ConfigError(
                f"the run has no {split} set; it has: {', '.join(map(repr, self.digests))}"
            )
        dataset = self._load(split)
        if split in self.digests and self.digests[split] != dataset.digest():
            raise ConfigError(
                f"the {split} set of {config.dataset} is not the one of the run any more (see its "
                "run.json); to evaluate on it all the same, give it as an object"
            )
        return dataset

    def _load(self, split: str) -> Dataset:
        """Load a split of the data set that the config names."""
        config = self.config
        if split == "validation" and not config.validation_examples:
            raise ConfigError(
                "the validation set of the run was given as an object; give it again: "
                "evaluate(dataset)"
            )
        source = "test" if split == "test" else "train"
        limits = {"train": config.max_train_examples, "test": config.max_test_examples}
        dataset = load_dataset(
            config.dataset,
            source,
            config.data_dir,
            config.data_source,
            config.image_size,
            config.aspect_ratio,
        ).first(limits[source])
        if split == "test" or not config.validation_examples:
            return dataset
        train, validation = split_validation(dataset, config.validation_examples, config.seed)
        return train if split == "train" else validation

    def _as_images(self, images: Any) -> np.ndarray:
        """Return an array of images as uint8 [N, H, W, C]."""
        array = np.asarray(images)
        one = f"[H, W, {self.image_shape[2]}]"
        given = (
            f"images must be uint8, or floating point in [0, 1], [H, W], {one} or [N, {one[1:]}, "
            f"got {array.dtype} {list(array.shape)}"
        )
        if array.ndim == 2:
            array = array[..., None]
        if array.ndim == 3:
            array = array[None]
        if array.ndim != 4 or array.size == 0 or is_channels_first(array.shape[1:]):
            raise ValueError(given)
        if array.dtype != np.uint8:
            if not jnp.issubdtype(array.dtype, jnp.floating):
                raise ValueError(given)
            low, high = float(array.min()), float(array.max())
            if not 0 <= low <= high <= 1:  # false for nan as well
                raise ValueError(f"{given} from {low:g} to {high:g}")
            array = to_uint8(array)
        self._check_channels(array, "images")
        return array

    def _check_channels(self, images: np.ndarray, name: str) -> None:
        if images.shape[3] != self.image_shape[2]:
            raise ConfigError(
                f"{name} are {list(images.shape)}, and the model takes {self.image_shape[2]} "
                "channel(s), on the last axis; several gray images take images[..., None]"
            )

    def _predict_files(self, paths: Any, batch_size: int) -> Predictions:
        given = [paths] if isinstance(paths, str | Path) else list(paths)
        files = [file for path in given for file in find_pictures(local_path(path, "path"))]
        pictures = [self.read_picture(file) for file in files]
        logits = np.zeros((len(files), len(self.output_names)), np.float32)
        for shape in {picture.shape for picture in pictures}:  # a program for each size
            alike = [i for i, picture in enumerate(pictures) if picture.shape == shape]
            logits[alike] = self.logits(np.stack([pictures[i] for i in alike]), batch_size)
        return Predictions(softmax(logits), self.output_names, tuple(files))

    @cached_property
    def output_names(self) -> tuple[str, ...]:
        """A name for each logit: there may be more logits than classes."""
        images = jax.ShapeDtypeStruct((1, *self.image_shape), jnp.float32)
        logits = jax.eval_shape(partial(self.model.apply, train=False), self.variables, images)
        more = range(len(self.class_names), logits.shape[-1])
        return self.class_names + tuple(f"logit {i} (no class)" for i in more)

    @cached_property
    def _program(self) -> Any:
        size, dtype = self.image_shape[0], DTYPES[self.config.dtype]

        def apply(variables: Any, images: jax.Array) -> jax.Array:
            images = preprocess(images, size, dtype)
            how = self.config.test_augmentation
            return jnp.asarray(predict_logits(self.model, variables, images, how))

        is_on_cpu = jax.default_backend() == "cpu"
        return jax.jit(apply, compiler_options=cpu.compiler_options() if is_on_cpu else {})

    def __repr__(self) -> str:
        height, width, channels = self.image_shape
        parameters = sum(x.size for x in jax.tree.leaves(self.variables["params"]))
        lines = [
            f"Trained {self.title}: {parameters:,} parameters, images {height} x {width} x "
            f"{channels}, {len(self.class_names)} classes",
            f"step {self.step}" + (f", in {self.folder}" if self.folder else ""),
        ]
        if self.history:
            last = self.history[-1]
            results = (f"{key} {last[key]:.4f}" for key in _RESULTS if key in last)
            lines.append(f"epoch {last['epoch']}: {', '.join(results)}")
        return "\n".join(lines)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """Show a picture and the text of `repr` in a notebook."""
        content: dict[str, Any] = {"text/plain": repr(self)}
        if self.history:
            content["image/png"] = curves_png(self.history, self.title)
        return content


SPLITS = ("test", "validation", "train")  # of a run's data
_RESULTS = [f"{split}_{name}" for split in reversed(SPLITS) for name in ("loss", "accuracy")]


def load(folder: str | Path, which: str | int = "best", model: nn.Module | None = None) -> Trained:
    """Load what a run has trained; nothing in its folder changes, and it may still be training.

    Args:
        folder: of the run, such as 'runs/lenet' or 'gs://bucket/lenet'.
        which: 'best' for the checkpoint of the highest accuracy on the validation set, or on the
            test set if there is none, 'last' for the newest, or the step of one that is there.
        model: needed if the run was given a model as an object that is not one of jaxcnn's.

    Raises:
        ConfigError: if it is no folder of a run, has no such checkpoint yet, or the model is
            another.
        DataError: if a file of the checkpoint is not what was written.
    """
    path = run_path(folder, "folder")
    with fetched(path) as here:
        return _load(here, path, which, model)


def _load(folder: Path, name: Path, which: str | int, model: nn.Module | None) -> Trained:
    """Load what a run has trained from a folder of this machine; `name` is what it is called."""
    run = read_run(folder)
    config = as_config(run["config"])
    model = rebuild_model(run, config, folder, model)
    state = _read_state(folder, which)
    variables = state.variables
    image_shape = _find_image_shape(run, config, model, variables)
    return Trained(
        model=set_axis_name(model, None),
        variables=variables,
        config=config,
        class_names=_class_names(run, config),
        image_shape=image_shape,
        step=int(state.step),
        history=JsonLines(folder / "metrics.jsonl").rows(),
        folder=name,
        digests=run["data"],
    )


def as_config(settings: dict[str, Any]) -> ConfigDict:
    """Return the recorded settings as a config; what replaced a word stays as it is recorded."""
    config = get_default_config()
    known = {key: settings[key] for key in config if key in settings}
    config.update({key: tuple(x) if isinstance(x, list) else x for key, x in known.items()})
    return config


def rebuild_model(
    run: dict[str, Any], config: ConfigDict, folder: Path, model: nn.Module | None = None
) -> nn.Module:
    """Return the model of a run: the given one, or that of its record, as it normalizes.

    Args:
        run: the record: `module` if the model was an object, `normalization` if there is one.
        config: of the run.
        folder: for the error.
        model: the object, if it is not recorded.

    Raises:
        ConfigError: if it is needed.
    """
    model = model or _recorded_model(run, config, folder)
    return _normalized(model, run["normalization"]) if "normalization" in run else model


def _recorded_model(run: dict[str, Any], config: ConfigDict, folder: Path) -> nn.Module:
    """Return the model that a run's config names, or the object as described."""
    if "module" in run:
        return build_model(run["module"])
    if config.model not in MODELS:
        raise ConfigError(
            f"the run in {str(folder)!r} was given its model as an {config.model}, which is not "
            "recorded; give it again: jaxcnn.load(folder, model=...)"
        )
    return create_model(
        config.model,
        num_classes=config.num_classes,
        dtype=DTYPES[config.dtype],
        implementation=config.implementation or None,
    )


def _normalized(model: nn.Module, numbers: dict[str, list[float]]) -> nn.Module:
    """Return the model with a run's normalization, which that of `Trained.model` has already."""
    mean, std = (tuple(numbers[key]) for key in ("mean", "std"))
    return Normalized(without_normalization(model), mean, std)


def _read_state(folder: Path, which: str | int) -> TrainState:
    """Return the state of a checkpoint, with the optimizer's as plain lists and dicts."""
    if not (folder / FOLDER).is_dir():
        raise ConfigError(f"the run in {str(folder)!r} has not saved a checkpoint yet")
    checkpoints = Checkpoints(folder / FOLDER)
    try:
        while True:
            steps = checkpoints.steps
            try:
                return _restore(checkpoints, which, folder)
            except MissingCheckpointError:
                if isinstance(which, int) or checkpoints.steps == steps:
                    raise
            # The run has saved a better one in the meantime, and deleted this one.
    finally:
        checkpoints.close()


def _restore(checkpoints: Checkpoints, which: str | int, folder: Path) -> TrainState:
    if which == "last":
        restored = checkpoints.restore_newest(None, warn=warnings.warn)
        if restored is None:
            raise ConfigError(f"the run in {str(folder)!r} has not saved a checkpoint yet")
        return restored[0]
    step = checkpoints.best() if which == "best" else which
    if step is None:
        raise ConfigError(
            f"the run in {str(folder)!r} has no checkpoint of an evaluated epoch; which='last' "
            "(--which last) takes the newest"
        )
    if isinstance(step, bool) or not isinstance(step, int):
        raise ConfigError(f"which is {which!r}; it must be 'best', 'last' or the number of a step")
    try:
        return checkpoints.restore(step)[0]
    except DamagedCheckpointError as error:
        there = ", ".join(map(str, checkpoints.steps))
        raise DataError(
            f"the checkpoint of step {step} in {str(folder)!r} is damaged ({error}); which= "
            f"(--which) takes another: {there}"
        ) from error


def _find_image_shape(
    run: dict[str, Any], config: ConfigDict, model: nn.Module, variables: dict[str, Any]
) -> tuple[int, int, int]:
    """Return the shape of the images that make the model have variables of these shapes.

    Raises:
        ConfigError: if there is none: the variables are those of another model.
    """
    size = config.image_size
    recorded = [tuple(run["image_shape"])] if "image_shape" in run else []
    saved = shapes_by_name(variables)
    difference = None
    for shape in recorded or [(size, size, channels) for channels in range(1, _MAX_CHANNELS + 1)]:
        images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        made = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
        difference = _first_difference(saved, shapes_by_name({"batch_stats": {}, **made}))
        if difference is None:
            return shape
    assert difference is not None
    name, there, here = difference
    raise ConfigError(
        f"the checkpoint is of another model: {name} is {there} there, and {here} in the given one"
    )


def _first_difference(saved: Shapes, made: Shapes) -> tuple[str, str, str] | None:
    """Return the first difference but those of dtypes, which `init` leaves to training."""
    dtypes = {name: dtype for name, (_, dtype) in saved.items()}
    made = {name: (shape, dtypes.get(name, dtype)) for name, (shape, dtype) in made.items()}
    return first_difference(saved, made)


def _class_names(run: dict[str, Any], config: ConfigDict) -> tuple[str, ...]:
    """Return the names of a run's classes; numbers if it is of the time before they were kept."""
    if "class_names" in run:
        return tuple(run["class_names"])
    if config.dataset.startswith("fashion_mnist"):
        return FASHION_MNIST.class_names
    return tuple(f"class {i}" for i in range(config.num_classes))


def _are_paths(images: Any) -> bool:
    if isinstance(images, str | Path):
        return True
    is_list = isinstance(images, Sequence) and not hasattr(images, "shape")
    return is_list and len(images) > 0 and all(isinstance(each, str | Path) for each in images)


def _padded(images: np.ndarray, size: int) -> np.ndarray:
    """Return a batch of a size that one program takes: black images at its end are left out."""
    missing = size - len(images)
    return np.pad(images, [(0, missing), *[(0, 0)] * 3]) if missing else images


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:10])
    return f"{shown}, ... ({len(names)})" if len(names) > 10 else shown
