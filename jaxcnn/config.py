"""Every setting of a run: its default, its meaning and what it may be."""

import json
import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxcnn.errors import ConfigError, did_you_mean
from jaxcnn.models import (
    MODELS,
    create_model,
    is_own_model,
    smallest_image_size,
    takes_recompute,
)
from jaxcnn.ops import cpu

# What `config.data_parallel` may be: which of JAX's ways divides a batch over several devices.
DATA_PARALLEL = ("pmap", "jit")
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float64": jnp.float64}


def get_default_config() -> ConfigDict:
    """Return the defaults, which are d2l's for LeNet. The config is locked: it takes no new keys.

    >>> get_default_config().batch_size
    128
    """
    config = ConfigDict()

    # What is trained
    config.model = "lenet"  # a key of jaxcnn.MODELS
    config.num_classes = 0  # logits; 0: as many as the data set has classes
    config.dtype = "float32"  # "float32", "bfloat16" (parameters stay float32) or "float64"

    # On what
    config.dataset = "fashion_mnist"  # or folder:PATH, idx:PATH, tfds:NAME; see docs/data.md
    config.data_dir = ""  # TFDS's data directory; "": $TFDS_DATA_DIR, else ~/tensorflow_datasets
    config.data_source = ""  # Fashion-MNIST's published files; "": Debian's package, else download
    config.image_size = 28  # pixels; images are resized to this square
    config.aspect_ratio = "crop"  # of pictures: "crop" the middle, "pad" with black or "stretch"
    config.normalization = "none"  # or "per_channel": by mean and deviation of the training set
    config.max_train_examples = 0  # use only the first so many examples; 0: all
    config.max_test_examples = 0  # use only the first so many examples; 0: all
    config.validation_examples = 0  # taken from the training set to choose the best epoch

    # How
    config.batch_size = 128  # examples per step, over all devices
    config.gradient_accumulation_steps = 1  # parts of a batch, one at a time, for less memory
    config.recompute = False  # recompute feature maps in the backward pass: less memory, more time
    config.last_batch = "smaller"  # if not full: "smaller", or "merged" with the one before it
    config.num_epochs = 10  # passes over the training set
    config.evaluate_every_epochs = 1  # and after the last one; 0: only then
    config.optimizer = "sgd"  # a key of jaxcnn.train.OPTIMIZERS
    config.learning_rate = 0.1  # the base rate, which the schedule may vary
    config.schedule = "constant"  # of the learning rate: a key of jaxcnn.train.SCHEDULES
    config.warmup_epochs = 0.0  # the rate first rises from 0 over so many epochs; 0: no warm-up
    config.final_rate = 0.0  # what is left of the rate at the end of "cosine" and "linear"; 1: all
    config.rate_steps = ()  # after these epochs "steps" divides the rate by 10, such as (30, 60)
    config.momentum = 0.0  # of "sgd", "nesterov" and "muon"; 0 disables it
    config.weight_decay = 0.0  # times the parameter, added to its gradient; adamw, muon: decoupled
    config.weight_decay_on = "all"  # parameters, or "kernels": not biases and BatchNorm's
    config.clip_norm = 0.0  # largest norm of all gradients together, which are scaled to it; 0: any
    config.label_smoothing = 0.0  # share of each label that all classes divide equally
    config.class_weights = "none"  # or "balanced": rare classes weigh more in the loss
    config.ema_decay = 0.0  # of the moving average of the weights that is evaluated; 0: none
    config.augmentation = "none"  # or such as "shift:2, flip", of jaxcnn.data.AUGMENTATIONS
    config.mixing = "none"  # of two images and their labels: "mixup:0.2" or "cutmix:1.0"
    config.test_augmentation = "none"  # or "shift:1, flip": the mean logits of such views
    config.patience = 0  # stop after so many epochs without a better accuracy; 0: never
    config.seed = 0  # of weights, order, dropout and augmentation: a seed repeats its run exactly

    # Saving
    config.checkpoint_every_steps = 0  # within an epoch; 0: only at its end

    # Where
    config.num_devices = 0  # devices that each batch is split over; 0: all
    config.data_parallel = "pmap"  # how several devices share a batch, or "jit": XLA divides it
    config.data_loading = "auto"  # images in "memory", as a "stream" from disk, or "auto": by size
    config.steps_per_call = 0  # most steps per call of the program; 0: 1 to 50, about 4 seconds
    config.implementation = ""  # "auto": the fastest; "xla": XLA's own; "": $JAXCNN_IMPLEMENTATION

    return config.lock()


def to_settings(config: ConfigDict) -> dict[str, Any]:
    """Return a config as a dict of what JSON has: its tuples become lists.

    >>> to_settings(get_default_config())["rate_steps"]
    []
    """
    return json.loads(json.dumps(config.to_dict()))


def smoke(config: ConfigDict, image_size: int) -> ConfigDict:
    """Shrink a config to a run of seconds on the bundled sample, to check that it works.

    Args:
        config: changed in place.
        image_size: pixels, such as the smallest that the model accepts.

    Returns:
        The config.

    >>> smoke(get_default_config(), image_size=28).dataset
    'fashion_mnist_sample'
    """
    config.dataset = "fashion_mnist_sample"
    config.image_size = image_size
    config.aspect_ratio = "crop"  # the sample has no pictures to be made squares of
    config.batch_size = 32
    config.num_epochs = 2
    config.max_train_examples = 240  # 7 full batches and one of 16
    config.max_test_examples = 200
    return config


def apply_variant(config: ConfigDict, variant: str, smoke_image_size: int) -> ConfigDict:
    """Turn the config of a full run into the variant that `configs/NAME.py:VARIANT` asks for.

    Args:
        config: of the full run; changed in place.
        variant: '' for the full run, or 'smoke'.
        smoke_image_size: see `smoke`.

    Returns:
        The config.

    Raises:
        ConfigError: if there is no such variant.

    >>> apply_variant(get_default_config(), "smoke", smoke_image_size=28).num_epochs
    2
    """
    if variant == "smoke":
        return smoke(config, smoke_image_size)
    if variant:
        raise ConfigError(f"unknown variant {variant!r} of the config file; accepted: 'smoke'")
    return config


def validate_config(config: ConfigDict) -> None:
    """Check every value on its own and, for jaxcnn's own models, the image size.

    Nothing is compiled.

    Raises:
        ConfigError: one line that names the key, what was given and what is accepted.

    >>> config = get_default_config()
    >>> config.num_epochs = 0
    >>> validate_config(config)
    Traceback (most recent call last):
    jaxcnn.errors.ConfigError: config.num_epochs is 0; it must be at least 1
    """
    check_values(config)
    if config.recompute and not takes_recompute(config.model):
        raise ConfigError(
            f"config.recompute is True, but model {config.model!r} has no blocks to compute again; "
            f"accepted with: {', '.join(filter(takes_recompute, MODELS))}"
        )
    _check_image_size(config)


def check_values(config: ConfigDict) -> None:
    """Check every value on its own.

    Raises:
        ConfigError: see `validate_config`.
    """
    check_keys(config)
    _check_types(config, get_default_config())
    _check_words(config)
    for key in ("batch_size", "gradient_accumulation_steps", "num_epochs"):
        _check_number(key, config[key], at_least=1)
    _check_number("num_classes", config.num_classes, at_least=0, below=2**20)
    _check_number("image_size", config.image_size, at_least=1, below=2**13)
    for key in (
        "max_train_examples",
        "max_test_examples",
        "checkpoint_every_steps",
        "evaluate_every_epochs",
        "num_devices",
        "patience",
        "steps_per_call",
        "validation_examples",
    ):
        _check_number(key, config[key], at_least=0)
    _check_number("learning_rate", config.learning_rate, above=0)
    _check_number("warmup_epochs", config.warmup_epochs, at_least=0, below=config.num_epochs)
    _check_number("final_rate", config.final_rate, at_least=0, at_most=1)
    _check_rate_steps(config)
    _check_number("momentum", config.momentum, at_least=0, below=1)
    _check_number("weight_decay", config.weight_decay, at_least=0)
    _check_number("clip_norm", config.clip_norm, at_least=0)
    _check_number("label_smoothing", config.label_smoothing, at_least=0, below=1)
    _check_number("ema_decay", config.ema_decay, at_least=0, below=1)
    _check_number("seed", config.seed, at_least=0, below=2**31)
    _check_devices(config.num_devices)
    if config.patience and not config.evaluate_every_epochs:
        raise ConfigError(
            f"config.patience is {config.patience}, but config.evaluate_every_epochs is 0, so that "
            "no epoch but the last is evaluated; give 1 or more, or no patience"
        )
    if config.dtype == "float64" and not jax.config.read("jax_enable_x64"):
        raise ConfigError(
            "config.dtype is 'float64', which JAX computes only if the environment has "
            "JAX_ENABLE_X64=1; set it, or use float32 or bfloat16"
        )


def check_keys(keys: Iterable[str]) -> None:
    """Check that the config has every one of these keys.

    Raises:
        ConfigError: with the most similar key.

    >>> check_keys(["num_epoch"])
    Traceback (most recent call last):
    jaxcnn.errors.ConfigError: unknown key config.num_epoch (did you mean 'num_epochs'?); known: ...
    """
    known = list(get_default_config())
    for key in keys:
        if key not in known:
            raise ConfigError(
                f"unknown key config.{key}{did_you_mean(key, known)}; known: {', '.join(known)}"
            )


def check_batches(batch_size: int, num_examples: int, gradient_accumulation_steps: int = 1) -> None:
    """Check that there are enough examples for a batch, and for each part of it.

    Args:
        batch_size: examples per step.
        num_examples: in the training set.
        gradient_accumulation_steps: parts of a batch, `config.gradient_accumulation_steps`.

    Raises:
        ConfigError: with the largest value that works.

    >>> check_batches(batch_size=128, num_examples=60000)
    """
    if batch_size > num_examples:
        raise ConfigError(
            f"config.batch_size is {batch_size}, but there are only {num_examples} training "
            "examples; give a batch size of at most that"
        )
    if gradient_accumulation_steps > batch_size:
        raise ConfigError(
            f"config.gradient_accumulation_steps is {gradient_accumulation_steps}, but a batch has "
            f"only {batch_size} examples; give at most that, or a larger config.batch_size"
        )


def _check_types(config: ConfigDict, defaults: ConfigDict) -> None:
    for key, default in defaults.items():
        if key not in config:
            raise ConfigError(f"config.{key} is missing; start from jaxcnn.get_default_config()")
        expected = type(default)
        if type(config[key]) is not expected:
            raise ConfigError(
                f"config.{key} is {config[key]!r} ({type(config[key]).__name__}); it must be "
                f"{expected.__name__}"
            )


def _check_words(config: ConfigDict) -> None:
    """Check the keys whose value names an entry of a table; `jaxcnn.train.optim` has two more."""
    # Here: `import jaxcnn` loads no data code.
    from jaxcnn.data import dataset_words, is_dataset
    from jaxcnn.data.augment import parse_augmentation, parse_mixing, parse_test_augmentation
    from jaxcnn.data.pipeline import LAST_BATCH
    from jaxcnn.data.stream import LOADING
    from jaxcnn.pictures import ASPECT_RATIOS

    for key, choices in (
        ("model", MODELS),
        ("dtype", DTYPES),
        ("aspect_ratio", ASPECT_RATIOS),
        ("normalization", ("none", "per_channel")),
        ("last_batch", LAST_BATCH),
        ("data_loading", LOADING),
        ("data_parallel", DATA_PARALLEL),
        ("weight_decay_on", ("all", "kernels")),
        ("class_weights", ("none", "balanced")),
    ):
        check_choice(key, config[key], choices)
    parse_augmentation(config.augmentation)
    parse_mixing(config.mixing)
    parse_test_augmentation(config.test_augmentation, "config.test_augmentation")
    if not is_dataset(config.dataset):
        check_choice("dataset", config.dataset, dataset_words())
    if config.implementation:
        check_choice("implementation", config.implementation, cpu.IMPLEMENTATIONS)


def check_choice(key: str, value: str, choices: Any) -> None:
    """Check that the value of a key is one of the choices.

    Raises:
        ConfigError: with the choices, and the most similar one.

    >>> check_choice("dtype", "float", ["float32", "bfloat16"])
    Traceback (most recent call last):
    jaxcnn.errors.ConfigError: config.dtype is 'float' (did you mean 'float32'?); accepted: ...
    """
    if value not in choices:
        hint = did_you_mean(value, choices)
        raise ConfigError(f"config.{key} is {value!r}{hint}; accepted: {', '.join(choices)}")


def _check_number(
    key: str,
    value: float,
    at_least: float = -math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    at_most: float = math.inf,
) -> None:
    if at_least <= value <= at_most and above < value < below:  # false for nan as well
        return
    bounds = [
        f"{words} {bound:,}"
        for words, bound in (
            ("at least", at_least),
            ("above", above),
            ("below", below),
            ("at most", at_most),
        )
        if math.isfinite(bound)
    ] or ["finite"]
    raise ConfigError(f"config.{key} is {value}; it must be {' and '.join(bounds)}")


def _check_rate_steps(config: ConfigDict) -> None:
    epochs = config.rate_steps
    are_epochs = all(type(epoch) is int and 0 < epoch < config.num_epochs for epoch in epochs)
    if not are_epochs or list(epochs) != sorted(set(epochs)):
        raise ConfigError(
            f"config.rate_steps is {epochs!r}; it must be increasing epochs, each from 1 to "
            f"{config.num_epochs - 1}"
        )


def _check_devices(num_devices: int) -> None:
    try:
        jax.local_devices()
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"JAX finds no device ({f'{error}'.splitlines()[0] if f'{error}' else 'none'}); "
            "see the environment variable JAX_PLATFORMS"
        ) from error
    if num_devices > jax.device_count():
        raise ConfigError(
            f"config.num_devices is {num_devices}, but there are {jax.device_count()} "
            f"({jax.default_backend()}); give at most that many, or 0 for all"
        )
    counts = Counter(device.process_index for device in jax.devices())
    if len(set(counts.values())) > 1:
        raise ConfigError(
            "the processes of a run need as many devices each, and have "
            f"{', '.join(f'{counts[i]}' for i in sorted(counts))}; start them alike"
        )
    if jax.process_count() > 1 and 0 < num_devices < jax.device_count():
        raise ConfigError(
            f"config.num_devices is {num_devices}, but a run of {jax.process_count()} processes "
            f"takes all of their {jax.device_count()} devices; give 0, or start fewer processes"
        )


def _check_image_size(config: ConfigDict) -> None:
    """Trace the model on the shape alone: its layers know which images are too small.

    A model that is not jaxcnn's own is traced later, with the channels of the data set.
    """
    if not is_own_model(config.model):
        return
    images = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 1), jnp.float32)
    model = create_model(config.model, num_classes=config.num_classes)
    try:
        jax.eval_shape(model.init, jax.random.key(0), images)
    except ConfigError:  # of the environment: JAXCNN_IMPLEMENTATION
        raise
    except ValueError as error:
        smallest = smallest_image_size(model)
        is_small = smallest is not None and config.image_size < smallest
        advice = f"give {smallest} or more" if is_small else f"{error}"
        raise ConfigError(
            f"config.image_size is {config.image_size}, too small for model {config.model!r}; "
            f"{advice}"
        ) from error
