"""From a config to all that training needs: devices, data, model, optimizer and state."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from ml_collections import ConfigDict

from jaxcnn.config import DTYPES, check_batches, check_values, to_settings, validate_config
from jaxcnn.data import (
    DATASETS,
    ChannelStatistics,
    Dataset,
    channel_statistics,
    check_dataset,
    load_dataset,
    preprocess,
)
from jaxcnn.data.augment import parse_augmentation, parse_mixing
from jaxcnn.data.pipeline import batch_sizes, epoch_sizes
from jaxcnn.data.split import split_validation
from jaxcnn.data.stream import Loading, check_grain, choose_loading
from jaxcnn.errors import ConfigError
from jaxcnn.keys import Purpose, derive_key
from jaxcnn.models import MODELS, Normalized, describe_model, is_own_model
from jaxcnn.registry import call_entry
from jaxcnn.train.optim import check_recipe, create_optimizer, learning_rates
from jaxcnn.train.parallel import DataParallel
from jaxcnn.train.protocol import (
    check_augmentation,
    check_augmented_range,
    check_mixing,
    check_model,
    check_optimizer,
    set_axis_name,
)
from jaxcnn.train.state import TrainState, create_train_state


@dataclasses.dataclass(frozen=True)
class Setup:
    """All that a run needs: config, devices, data, model, optimizer and initial state.

    Attributes:
        config: as it was given.
        parallel: the devices.
        train: the training set, without the validation set.
        validation: the set to choose an epoch by; None if there is none.
        test: the test set; None if there is none.
        loading: whether the images stay on the devices or stream from disk.
        model: maps images in [0, 1] to logits; its axis name is that of `parallel`.
        optimizer: created the state.
        state: to start from, on the devices; training donates it.
        settings: the config as a dict, for the record: an object that was given replaces the
            config's word, as in {"model": "object ResNet"}, and `num_classes` 0 is replaced by the
            number that it stands for.
        described: what `build_model` makes a model of that was given as an object; None if it
            cannot, or the config names the model.
        normalization: the numbers that the model normalizes its images with, if the config asks for
            it.
    """

    config: ConfigDict
    parallel: DataParallel
    train: Dataset
    validation: Dataset | None
    test: Dataset | None
    loading: Loading
    model: nn.Module
    optimizer: optax.GradientTransformation
    state: TrainState
    settings: dict[str, Any]
    described: dict[str, Any] | None = None
    normalization: ChannelStatistics | None = None

    @property
    def held_out(self) -> tuple[str, Dataset] | None:
        """The set that each epoch is evaluated on, and its name: 'validation', or else 'test'."""
        sets = {"validation": self.validation, "test": self.test}
        return next(((name, data) for name, data in sets.items() if data is not None), None)

    @property
    def full_batches(self) -> int:
        """Steps of an epoch that have a full batch."""
        return _epoch_sizes(self.config, self.train)[0]

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch, with the last batch of another size if there is one."""
        return _steps_per_epoch(self.config, self.train)

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return self.config.num_epochs * self.steps_per_epoch

    @property
    def part_size(self) -> int:
        """Examples that are computed at a time, on all devices: a full batch, or a part of it."""
        return self.config.batch_size // self.config.gradient_accumulation_steps

    def count_parts(self, batch_size: int) -> int:
        """Return the parts of a batch: as few as are no larger than those of a full one.

        Args:
            batch_size: examples of the batch, on all devices.
        """
        is_whole = self.config.gradient_accumulation_steps == 1
        return 1 if is_whole else -(-batch_size // self.part_size)

    def smallest_part(self, batch_size: int) -> int:
        """Return the examples of a batch's smallest part, on all devices.

        Args:
            batch_size: examples of the batch, on all devices.
        """
        num_devices = len(self.parallel.devices)
        return batch_size // num_devices // self.count_parts(batch_size) * num_devices

    @property
    def num_logits(self) -> int:
        """Logits of the model, at least as many as there are classes."""
        return _count_logits(self.model, self.state, self.facts()["image_shape"])

    def check_resumed(self, before: dict[str, Any]) -> None:
        """Check that the steps of the earlier run would be the same in this one.

        Args:
            before: the recorded settings, which differ at most in those that may change.

        Raises:
            ConfigError: if a schedule would have taken other rates.
        """
        if self.settings["optimizer"] != self.config.optimizer:
            return  # an object, which has its own schedule
        epochs = before["num_epochs"], self.config.num_epochs
        rates = [self._rates(num_epochs) for num_epochs in epochs]
        shared = min(map(len, rates))
        if not np.array_equal(rates[0][:shared], rates[1][:shared]):
            raise ConfigError(
                f"config.num_epochs was {epochs[0]} and is {epochs[1]}, which changes the rates "
                f"of schedule {self.config.schedule!r} in the epochs that are over; give another "
                f"--workdir, or --config.num_epochs={epochs[0]}"
            )

    def _rates(self, num_epochs: int) -> np.ndarray:
        config = self.config.copy_and_resolve_references()
        config.num_epochs = num_epochs
        return learning_rates(config, num_epochs * self.steps_per_epoch)

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of each split of the data."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split.digest() for name, split in splits.items() if split is not None}

    def facts(self) -> dict[str, Any]:
        """Return what else the record of a run says, so that its model can be built again."""
        shape = [self.config.image_size, self.config.image_size, self.train.images.shape[3]]
        facts: dict[str, Any] = {
            "class_names": list(self.train.class_names),
            "image_shape": shape,
        }
        if self.described:
            facts["module"] = self.described
        if self.normalization:
            facts["normalization"] = {k: list(x) for k, x in self.normalization._asdict().items()}
        return facts


def prepare(
    config: ConfigDict,
    *,
    model: nn.Module | None = None,
    optimizer: optax.GradientTransformation | None = None,
    train: Any = None,
    validation: Any = None,
    test: Any = None,
    has_test: bool = True,
) -> Setup:
    """Check a config and build what it asks for; no training program is compiled yet.

    An object, if given, replaces what the config names: `model` the one of `config.model`,
    `num_classes` and `implementation`; `optimizer` the one of `config.optimizer`, `schedule` and
    their hyperparameters; `train` and `test` those of `config.dataset`; `validation` what
    `config.validation_examples` takes from the training set. The other keys apply to objects too,
    such as `image_size` and `max_train_examples` to data; `dtype` applies to the images and the
    stored parameters (a model object chooses its own for the computation).

    Args:
        config: see `jaxcnn.get_default_config`.
        model: a linen module that follows `jaxcnn.train.protocol.check_model`.
        optimizer: follows `jaxcnn.train.protocol.check_optimizer`.
        train: a training set that follows `jaxcnn.data.check_dataset`.
        validation: a validation set, likewise.
        test: a test set, likewise.
        has_test: whether there is a test set.

    Raises:
        ConfigError: if a value of the config or an object is not accepted, or they do not fit
            together.
        DataError: if the data set is missing or damaged.

    >>> from jaxcnn.config import get_default_config, smoke
    >>> config = smoke(get_default_config(), image_size=28)
    >>> config.num_devices = 1
    >>> setup = prepare(config, optimizer=optax.sgd(0.1))
    >>> setup.steps_per_epoch, setup.settings["model"], setup.settings["optimizer"]
    (8, 'lenet', 'object GradientTransformationExtraArgs')
    """
    if model is None:
        validate_config(config)
    else:
        check_values(config)
    if optimizer is None:
        check_recipe(config)
    if config.data_loading == "stream":
        check_grain("config.data_loading is 'stream'")  # before data are decoded
    settings = _settings(config, model, optimizer, train, test if has_test else train)
    train, validation, test = _load_data(config, train, validation, test, has_test)
    parallel = DataParallel(config.num_devices)
    num_devices = len(parallel.devices)
    datasets = [data for data in (train, validation, test) if data is not None]
    loading = choose_loading(config.data_loading, datasets, parallel.memory_bytes())
    check_batches(
        config.batch_size,
        len(train.labels),
        num_devices,
        config.last_batch,
        config.gradient_accumulation_steps,
    )
    image_shape = (config.image_size, config.image_size, train.images.shape[3])
    num_classes, dtype = len(train.class_names), DTYPES[config.dtype]
    settings["num_classes"] = config.num_classes or num_classes
    is_object = model is not None
    needs_check = is_object or not is_own_model(config.model)
    if model is None:
        model = _create_model(config, num_classes, settings["dataset"])
    _check_normalization(config, model)
    if needs_check:
        check_model(model, image_shape, num_classes, num_devices, dtype)
    described = describe_model(model) if is_object else None
    _check_augmentation(config, train, image_shape, num_devices)
    normalization = None if config.normalization == "none" else channel_statistics(train.images)
    if normalization is not None:
        model = Normalized(model, *normalization)
    model = set_axis_name(model, parallel.axis_name)
    create_state = partial(
        create_train_state,
        model,
        image_shape=image_shape,
        seed=config.seed,
        dtype=dtype,
        keep_ema=config.ema_decay > 0,
    )
    if optimizer is None:
        num_steps = config.num_epochs * _steps_per_epoch(config, train)
        optimizer = create_optimizer(config, num_steps)
    check_optimizer(optimizer, jax.eval_shape(partial(create_state, optax.identity())).params)
    state = parallel.replicate(parallel.compile_and_run(partial(create_state, optimizer)))
    return Setup(
        config,
        parallel,
        train,
        validation,
        test,
        loading,
        model,
        optimizer,
        state,
        settings,
        described=described,
        normalization=normalization,
    )


def _check_normalization(config: ConfigDict, model: nn.Module) -> None:
    if config.normalization != "none" and isinstance(model, Normalized):
        raise ConfigError(
            f"config.normalization is {config.normalization!r}, but the model is a Normalized, "
            "which has a mean and std; leave it at 'none', or give the model within"
        )


def _settings(config: ConfigDict, model: Any, optimizer: Any, train: Any, test: Any) -> dict:
    def word(key: str, given: Any) -> str:
        return config[key] if given is None else f"object {type(given).__name__}"

    datasets = dict.fromkeys(word("dataset", given) for given in (train, test))
    return to_settings(config) | {
        "model": word("model", model),
        "optimizer": word("optimizer", optimizer),
        "dataset": ", ".join(datasets),
    }


def _load_data(
    config: ConfigDict, train: Any, validation: Any, test: Any, has_test: bool
) -> tuple[Dataset, Dataset | None, Dataset | None]:
    """Return the training, validation and test set: those given, or those that the config names."""

    def load(split: str, given: Any, limit: int) -> Dataset:
        if given is not None:
            return check_dataset(given, split).first(limit)
        return load_dataset(
            config.dataset,
            split,
            config.data_dir,
            config.data_source,
            config.image_size,
            config.aspect_ratio,
        ).first(limit)

    if config.aspect_ratio != "crop" and train is not None and (test is not None or not has_test):
        raise ConfigError(
            f"config.aspect_ratio is {config.aspect_ratio!r}, which has no effect on data that are "
            "given as objects; leave it at 'crop'"
        )
    train = load("train", train, config.max_train_examples)
    if validation is not None:
        if config.validation_examples:
            raise ConfigError(
                f"config.validation_examples is {config.validation_examples}, and a validation set "
                "is given as well; give one of them"
            )
        validation = check_dataset(validation, "validation")
        _check_alike(train, validation, "validation")
    elif config.validation_examples:
        train, validation = split_validation(train, config.validation_examples, config.seed)
    if not has_test:
        return train, validation, None
    test = load("test", test, config.max_test_examples)
    _check_alike(train, test, "test")
    return train, validation, test


def _check_alike(train: Dataset, other: Dataset, name: str) -> None:
    """Check that another set has images of the shape and the classes of the training set."""
    if train.images.shape[1:] != other.images.shape[1:]:
        raise ConfigError(
            f"train.images are {_size(train)} and {name}.images {_size(other)}; give images of one "
            "shape"
        )
    if train.class_names != other.class_names:
        raise ConfigError(
            f"train.class_names are {train.class_names} and {name}.class_names "
            f"{other.class_names}; give both sets the same"
        )


def _size(dataset: Dataset) -> str:
    return " x ".join(map(str, dataset.images.shape[1:]))


def _create_model(config: ConfigDict, num_classes: int, dataset: str) -> nn.Module:
    """Build the model that the config names."""
    _check_num_classes(config.num_classes, num_classes, dataset)
    return call_entry(
        MODELS[config.model],
        f"jaxcnn.MODELS[{config.model!r}](num_classes=..., dtype=..., implementation=...)",
        num_classes=config.num_classes or num_classes,
        dtype=DTYPES[config.dtype],
        implementation=config.implementation or None,
    )


def _check_num_classes(given: int, num_classes: int, dataset: str) -> None:
    """Check that there is a logit for each class; those of one's own files take no more."""
    is_registered = dataset in DATASETS or "object " in dataset
    if given and (given < num_classes or (given > num_classes and not is_registered)):
        accepted = "at least that many" if is_registered else "that many"
        raise ConfigError(
            f"config.num_classes is {given}, but {dataset} has {num_classes} classes; give "
            f"{accepted}, or 0"
        )


def _check_augmentation(
    config: ConfigDict, train: Dataset, image_shape: tuple[int, int, int], num_devices: int
) -> None:
    """Check what the augmentation makes of the first images, and mixing of each size of batch."""
    dtype = DTYPES[config.dtype]
    for name, function in parse_augmentation(config.augmentation):
        check_augmentation(name, function, jax.ShapeDtypeStruct(image_shape, dtype))
        images = preprocess(jnp.asarray(train.images[:32]), config.image_size, dtype)
        keys = jax.random.split(derive_key(config.seed, Purpose.AUGMENT), len(images))
        check_augmented_range(name, function, keys, images)
    mixing = parse_mixing(config.mixing)
    if mixing is None:
        return
    for size in batch_sizes(len(train.labels), config.batch_size, config.last_batch):
        shape, targets = (size // num_devices, *image_shape), (size // num_devices, 2)
        check_mixing(
            *mixing,
            jax.ShapeDtypeStruct(shape, dtype),
            jax.ShapeDtypeStruct(targets, jnp.promote_types(dtype, jnp.float32)),
        )


def _count_logits(model: nn.Module, state: TrainState, image_shape: Sequence[int]) -> int:
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    apply = partial(set_axis_name(model, None).apply, train=False)
    return jax.eval_shape(apply, state.current, images).shape[-1]


def _epoch_sizes(config: ConfigDict, train: Dataset) -> tuple[int, int]:
    return epoch_sizes(len(train.labels), config.batch_size, config.last_batch)


def _steps_per_epoch(config: ConfigDict, train: Dataset) -> int:
    full_batches, last = _epoch_sizes(config, train)
    return full_batches + bool(last)
