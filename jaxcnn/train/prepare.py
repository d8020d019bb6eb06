"""From a config to all that training needs: devices, data, model, optimizer and state."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from ml_collections import ConfigDict

from jaxcnn.config import DTYPES, check_batches, check_values, to_settings, validate_config
from jaxcnn.data import DATASETS, ChannelStatistics, Dataset, channel_statistics, preprocess
from jaxcnn.data.augment import parse_augmentation, parse_mixing
from jaxcnn.data.pipeline import batch_sizes, epoch_sizes
from jaxcnn.data.stream import check_grain, choose_loading
from jaxcnn.errors import ConfigError
from jaxcnn.keys import Purpose, derive_key
from jaxcnn.models import (
    MODELS,
    Normalized,
    describe_model,
    is_own_model,
    without_normalization,
)
from jaxcnn.registry import call_entry
from jaxcnn.train import processes
from jaxcnn.train.optim import check_no_recipe, check_recipe, create_optimizer
from jaxcnn.train.parallel import DataParallel
from jaxcnn.train.protocol import (
    check_augmentation,
    check_augmented_range,
    check_mixing,
    check_model,
    check_optimizer,
    check_padding,
    set_axis_name,
)
from jaxcnn.train.sets import load_sets
from jaxcnn.train.setup import Setup
from jaxcnn.train.state import TrainState, create_train_state


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
    """Check a config and build what it asks for; no program is compiled yet.

    An object, if given, replaces what the config names: `model` the one of `config.model`,
    `optimizer` the one of `config.optimizer`, `train` and `test` those of `config.dataset`,
    `validation` what `config.validation_examples` takes from the training set. Settings that would
    then have no effect are refused: of a model, `implementation`, `recompute` and another
    `num_classes`; of an optimizer, those of its recipe but for `learning_rate`. The other keys
    apply to objects too, such as `image_size` and `max_train_examples` to data; `dtype` applies to
    the images and the stored parameters (a model object chooses its own for the computation).

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
    _check_settings(config, model, optimizer)
    settings = _settings(config, model, optimizer, train, test if has_test else train)
    sets = load_sets(config, train, validation, test, has_test)
    parallel = DataParallel(config.num_devices, config.data_parallel)
    loading = choose_loading(
        config.data_loading, filter(None, sets), memory_bytes=parallel.memory_bytes()
    )
    check_batches(config.batch_size, len(sets.train.labels), config.gradient_accumulation_steps)
    settings["num_classes"] = config.num_classes or len(sets.train.class_names)
    built = _build_model(config, model, sets.train, parallel, settings["dataset"])
    _check_augmentation(config, sets.train)
    create_state = partial(
        create_train_state,
        built.model,
        image_shape=_image_shape(config, sets.train),
        seed=config.seed,
        dtype=DTYPES[config.dtype],
        keep_ema=config.ema_decay > 0,
    )
    if optimizer is None:
        full, last = epoch_sizes(len(sets.train.labels), config.batch_size, config.last_batch)
        optimizer = create_optimizer(config, config.num_epochs * (full + bool(last)))
    check_optimizer(optimizer, jax.eval_shape(partial(create_state, optax.identity())).params)
    traced = jax.jit(partial(create_state, optimizer)).trace()
    setup = Setup(
        config=config,
        parallel=parallel,
        loading=loading,
        optimizer=optimizer,
        shapes=parallel.shapes(traced),
        create_state=lambda: parallel.replicate(_of_the_first(parallel.compile_and_run(traced))),
        settings=settings,
        **sets._asdict(),
        **built._asdict(),
    )
    if model is not None and config.num_classes and config.num_classes != setup.num_logits:
        raise ConfigError(
            f"config.num_classes is {config.num_classes}, but a {type(model).__name__} with "
            f"{setup.num_logits} logits was given; leave it at 0"
        )
    _check_padding(setup)
    return setup


def _of_the_first(state: TrainState) -> TrainState:
    """Return the first process's state in every one: unlike processors may draw others."""
    if not processes.are_several():
        return state
    return processes.share_arrays(jax.device_get(state))


def _check_settings(config: ConfigDict, model: Any, optimizer: Any) -> None:
    """Check what can be checked before the data are loaded."""
    if model is None:
        validate_config(config)
    else:
        check_values(config)
        for key, value in (("recompute", True), ("implementation", config.implementation)):
            if config[key]:
                raise ConfigError(
                    f"config.{key} is {value!r}, but applies to models that the config names, and "
                    f"a {type(model).__name__} was given; create that with {key}={value!r}, if it "
                    "has it"
                )
    if optimizer is None:
        check_recipe(config)
    else:
        check_no_recipe(config)
    if config.data_loading == "stream":
        check_grain("config.data_loading is 'stream'")
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


class _Built(NamedTuple):
    """A model, as `Setup` describes it."""

    model: nn.Module
    described: dict[str, Any] | None
    normalization: ChannelStatistics | None


def _build_model(
    config: ConfigDict, given: nn.Module | None, train: Dataset, parallel: DataParallel, name: str
) -> _Built:
    """Return the model that is given, or that the config names, checked and ready for training.

    Args:
        config: of the run.
        given: a model in place of the config's.
        train: the training set.
        parallel: the devices.
        name: of the data set.
    """
    num_classes = len(train.class_names)
    num_mapped = len(parallel.devices) if parallel.axis_name else 1
    model = _create_model(config, num_classes, name) if given is None else given
    if given is not None or not is_own_model(config.model):
        shape = _image_shape(config, train)
        check_model(model, shape, num_classes, num_mapped, DTYPES[config.dtype])
    described = None if given is None else describe_model(without_normalization(model))
    normalization = None
    if isinstance(model, Normalized):
        mean, std = (tuple(map(float, numbers)) for numbers in (model.mean, model.std))
        normalization = ChannelStatistics(mean, std)
    elif config.normalization != "none":
        normalization = channel_statistics(train.images)
        model = Normalized(model, *normalization)
    return _Built(set_axis_name(model, parallel.axis_name), described, normalization)


def _check_padding(setup: Setup) -> None:
    """Check that a model with batch statistics leaves padding out, if there is any."""
    config, devices = setup.config, len(setup.parallel.devices)
    for size in batch_sizes(len(setup.train.labels), config.batch_size, config.last_batch):
        if setup.shapes.batch_stats and setup.padded_size(size) > size:
            parts = setup.count_parts(size)
            what = f"a batch of {size} for {devices} device(s)"
            what += f" in {parts} parts" if parts > 1 else ""
            check_padding(setup.model, _image_shape(config, setup.train), what)


def _image_shape(config: ConfigDict, train: Dataset) -> tuple[int, int, int]:
    return config.image_size, config.image_size, train.images.shape[3]


def _create_model(config: ConfigDict, num_classes: int, dataset: str) -> nn.Module:
    """Build the model that the config names."""
    _check_num_classes(config.num_classes, num_classes, dataset)
    more = {"recompute": True} if config.recompute else {}
    return call_entry(
        MODELS[config.model],
        f"jaxcnn.MODELS[{config.model!r}](num_classes=..., dtype=..., implementation=...)",
        **more,
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


def _check_augmentation(config: ConfigDict, train: Dataset) -> None:
    """Check what the augmentation makes of the first images, and mixing of each size of batch."""
    image_shape, dtype = _image_shape(config, train), DTYPES[config.dtype]
    for name, function in parse_augmentation(config.augmentation):
        check_augmentation(name, function, jax.ShapeDtypeStruct(image_shape, dtype))
        images = preprocess(jnp.asarray(train.images[:32]), config.image_size, dtype)
        keys = jax.random.split(derive_key(config.seed, Purpose.AUGMENT), len(images))
        check_augmented_range(name, function, keys, images)
    mixing = parse_mixing(config.mixing)
    if mixing is None:
        return
    for size in batch_sizes(len(train.labels), config.batch_size, config.last_batch):
        shape, targets = (size, *image_shape), (size, 2)
        check_mixing(
            *mixing,
            jax.ShapeDtypeStruct(shape, dtype),
            jax.ShapeDtypeStruct(targets, jnp.promote_types(dtype, jnp.float32)),
        )
