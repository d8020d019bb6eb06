"""Training in one call, as in a notebook: no config file, and no folder unless one is given."""

import dataclasses
import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import linen as nn
from ml_collections import ConfigDict

from jaxcnn.config import check_keys, get_default_config
from jaxcnn.data import check_dataset
from jaxcnn.errors import ConfigError
from jaxcnn.files import run_path
from jaxcnn.models import describe_normalization
from jaxcnn.train.finetune import PartlyFrozen, check_frozen, digest, freeze_updates, transfer
from jaxcnn.train.loggers import Logger
from jaxcnn.train.loop import run
from jaxcnn.train.prepare import prepare
from jaxcnn.train.protocol import set_axis_name
from jaxcnn.train.setup import Setup
from jaxcnn.trained import Trained

_RATE = 0.1
_ARGUMENTS = {  # keys of the config that are arguments by themselves
    "dataset": "the data as train= and test=",
    "model": "the model first",
    "num_epochs": "epochs=",
}


def fit(
    model: nn.Module | str,
    train: Any,
    test: Any = None,
    *,
    validation: Any = None,
    epochs: int,
    batch_size: int = 128,
    optimizer: optax.GradientTransformation | str | None = None,
    learning_rate: float = _RATE,
    seed: int = 0,
    workdir: str | Path | None = None,
    init_from: Trained | Mapping[str, Any] | None = None,
    freeze: Sequence[str] = (),
    loggers: Sequence[Logger] = (),
    **settings: Any,
) -> Trained:
    """Train a model, and evaluate it after each epoch if there is a validation or a test set.

    It is `train_and_evaluate` without a config file: the same loop and programs. In Jupyter the
    curves grow while it trains, elsewhere it prints a line for each epoch.

    Args:
        model: follows `jaxcnn.train.protocol.check_model`; or a key of `jaxcnn.MODELS`, which is
            built with as many logits as there are classes.
        train: training set, follows `jaxcnn.data.check_dataset`; or what `config.dataset` may be,
            such as 'folder:pictures', whose test set is then taken if none is given.
        test: test set; or the same word as `train`.
        validation: validation set, on which each epoch is evaluated in place of the test set, which
            is left for the end (`validation_examples=` takes one from the training set). What is
            tested is the best epoch if there is a `workdir`, else the last.
        epochs: passes over the training set.
        batch_size: examples per step.
        optimizer: an Optax transformation, or a key of `jaxcnn.train.OPTIMIZERS`; by default
            gradient descent. A transformation has its own schedule, momentum, weight decay and
            clipping: settings of those are for the keys.
        learning_rate: of an optimizer that is not a transformation, which has its own.
        seed: of weights, order, dropout and augmentation.
        workdir: folder that keeps the run, with checkpoints to resume from if the same call is
            made again; None to keep nothing.
        init_from: a trained model to start from, or variables {'params': ..., 'batch_stats': ...},
            such as `jaxcnn.interop.from_torchvision` returns: every array of the same name and
            shape is taken, as all but the last layer's are where the number of classes differs.
        freeze: names of modules or arrays that stay as they are (see `Trained.variables`), such as
            'b1_conv'; BatchNorm layers in them normalize by their running averages.
        loggers: take the results of each epoch, too; see `jaxcnn.train.loggers`.
        **settings: any other key of the config, such as `image_size` (by default that of the
            images, or 28 pixels if `train` is a word), `normalization`, `momentum`, `augmentation`,
            `num_devices`.

    Returns:
        The model after the last epoch.

    Raises:
        ConfigError: if an argument is not accepted, or `workdir` holds another run.
        DataError, TrainingError, StoppedError: see `train_and_evaluate`.

    >>> import jaxcnn
    >>> train = jaxcnn.data.load_fashion_mnist_sample("train").first(96)
    >>> trained = jaxcnn.fit("lenet", train, epochs=1, batch_size=32, num_devices=1)
    lenet: 61,706 parameters, images of 28 x 28 pixels
    ...
    >>> trained.predict(train.images[:2]).probabilities.shape
    (2, 10)
    """
    _check_arguments(init_from, freeze, settings)
    train, test = _datasets(train, test)
    given = {"num_epochs": epochs, "batch_size": batch_size, "seed": seed, **settings}
    config = _make_config(model, train, optimizer, learning_rate, given)
    setup = prepare(
        config,
        model=None if isinstance(model, str) else model,
        optimizer=None if optimizer is None or isinstance(optimizer, str) else optimizer,
        train=None if isinstance(train, str) else train,
        validation=validation,
        test=None if isinstance(test, str) else test,
        has_test=test is not None,
    )
    setup = _prepare_transfer(setup, init_from, tuple(freeze))
    facts, digests = setup.facts(), setup.digests()
    folder = None if workdir is None else run_path(workdir, "workdir")
    state, rows = run(setup, folder, loggers)
    config.update({key: setup.settings[key] for key in ("model", "dataset", "num_classes")})
    plain = setup.model.model if isinstance(setup.model, PartlyFrozen) else setup.model
    return Trained(
        model=set_axis_name(plain, None),
        variables=jax.device_put(jax.device_get(state.variables), jax.local_devices()[0]),
        config=config,
        class_names=tuple(facts["class_names"]),
        image_shape=tuple(facts["image_shape"]),
        step=int(state.step),
        history=rows,
        folder=folder,
        digests=digests,
    )


def _check_arguments(init_from: Any, freeze: Any, settings: dict[str, Any]) -> None:
    check_keys(settings)
    for key, argument in _ARGUMENTS.items():
        if key in settings:
            raise ConfigError(f"fit has no argument {key}=; give {argument}")
    if not isinstance(init_from, Trained | None) and not _are_variables(init_from):
        raise ConfigError(
            f"init_from is a {type(init_from).__name__}; give what jaxcnn.load returns, or a dict "
            "{'params': ..., 'batch_stats': ...} of arrays"
        )
    if isinstance(freeze, str):
        raise ConfigError(f"freeze is {freeze!r}; it must be a list of names, as [{freeze!r}]")


def _are_variables(given: Any) -> bool:
    if not isinstance(given, Mapping) or not isinstance(given.get("params"), Mapping):
        return False
    return all(hasattr(leaf, "shape") for leaf in jax.tree.leaves(dict(given)))


def _datasets(train: Any, test: Any) -> tuple[Any, Any]:
    """Return both sets as given; a name alone stands for both of its splits."""
    if isinstance(train, str) and test is None:
        return train, train
    if isinstance(test, str) and not isinstance(train, str):
        raise ConfigError(
            f"test is {test!r}, and train an object; give the test set as an object, too: "
            f"jaxcnn.data.load_dataset({test!r}, 'test')"
        )
    if isinstance(test, str) and train != test:
        raise ConfigError(f"train is {train!r} and test {test!r}; give the same name, or objects")
    return train, test


def _make_config(
    model: Any, train: Any, optimizer: Any, learning_rate: float, settings: dict[str, Any]
) -> ConfigDict:
    """Return the config of a call: the defaults, but for what is given and what the data say."""
    changes = {"learning_rate": learning_rate, **settings}
    if isinstance(train, str):
        changes["dataset"] = train
    else:
        dataset = check_dataset(train, "train")
        if "image_size" not in changes:
            changes["image_size"] = _size(dataset.images.shape)
    if isinstance(model, str):
        changes["model"] = model
    if isinstance(optimizer, str):
        changes["optimizer"] = optimizer
    elif optimizer is not None and learning_rate != _RATE:
        raise ConfigError(
            "learning_rate has no effect on an optimizer that is an object; give the rate to that, "
            "as in optax.adam(1e-3)"
        )
    config = get_default_config()
    with config.ignore_type():  # `prepare` checks the types, and says what is accepted
        config.update({key: _as_type(value, config[key]) for key, value in changes.items()})
    return config


def _as_type(value: Any, default: Any) -> Any:
    """Return a number as the type of the default, where that loses nothing."""
    if isinstance(value, bool | np.bool_):
        return value
    if isinstance(default, float) and isinstance(value, numbers.Real):
        return float(value)
    if isinstance(default, int) and isinstance(value, numbers.Integral):
        return int(value)
    return value


def _size(shape: Sequence[int]) -> int:
    """Return the height and width of images, if they are the same."""
    if shape[1] != shape[2]:
        raise ConfigError(
            f"the images are {shape[1]} x {shape[2]} pixels; image_size= says to which square they "
            "are resized"
        )
    return int(shape[1])


def _prepare_transfer(
    setup: Setup, init_from: Trained | Mapping[str, Any] | None, frozen: tuple[str, ...]
) -> Setup:
    """Return the setup with the arrays to start from, and with the frozen parts frozen."""
    settings = dict(setup.settings)
    if init_from is not None:
        state = setup.state
        if isinstance(init_from, Trained):
            given, title = init_from.variables, init_from.title
            was, now = (describe_normalization(model) for model in (init_from.model, setup.model))
        else:
            given, title, was, now = dict(init_from), "the given variables", "", ""
        variables, new = transfer(given, state.current)
        print(f"starting from {title}; new: {', '.join(new) or 'nothing'}")
        if was != now:
            print(f"note: its images were normalized otherwise: {was}; now: {now}")
        state = state.replace(**setup.parallel.replicate(variables))
        if state.ema:
            state = state.replace(ema=setup.parallel.replicate(variables))
        settings["init_from"] = digest(given)
        setup = dataclasses.replace(setup.starting_from(state), settings=settings)
    if frozen:
        check_frozen(frozen, setup.shapes.current)
        setup = dataclasses.replace(
            setup,
            model=PartlyFrozen(setup.model, frozen, axis_name=setup.parallel.axis_name),
            optimizer=freeze_updates(setup.optimizer, frozen),
            settings=settings | {"freeze": list(frozen)},
        )
    if init_from is None and not frozen:
        return setup
    # An optimizer's state may begin with the parameters, as that of `optax.contrib.prodigy` does.
    opt_state = setup.parallel.replicate(jax.jit(setup.optimizer.init)(setup.state.params))
    return setup.starting_from(setup.state.replace(opt_state=opt_state))
