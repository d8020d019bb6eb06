"""The optimizer that a config asks for: its rate by a schedule, both looked up by name."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from jaxcnn.config import check_choice, get_default_config
from jaxcnn.errors import ConfigError
from jaxcnn.registry import call_entry
from jaxcnn.train.protocol import check_learning_rate
from jaxcnn.train.state import is_optimizer
from jaxcnn.train.trees import name_of

Schedule = float | Callable[..., float]  # a rate, or an Optax schedule: step -> rate


def constant(config: ConfigDict, num_steps: int) -> Schedule:
    """Return `learning_rate` as it is.

    A plain float, not a schedule: a schedule adds a step count to the optimizer's state, and
    checkpoints of earlier runs have none.
    """
    return config.learning_rate


def cosine(config: ConfigDict, num_steps: int) -> Schedule:
    """Fall along half a cosine to `final_rate` of the rate.

    Source: Loshchilov and Hutter, SGDR, 2017, without restarts; d2l 12.11.3.
    """
    return optax.cosine_decay_schedule(config.learning_rate, num_steps, config.final_rate)


def linear(config: ConfigDict, num_steps: int) -> Schedule:
    """Fall along a line to `final_rate` of the rate; after a warm-up, a triangle.

    Source: Smith, Cyclical learning rates for training neural networks, 2017; of one cycle.
    """
    rate = config.learning_rate
    return optax.linear_schedule(rate, config.final_rate * rate, num_steps)


def steps(config: ConfigDict, num_steps: int) -> Schedule:
    """Divide the rate by 10 after each epoch of `rate_steps`.

    Source: He et al., Deep residual learning for image recognition, 2016; d2l 12.11.2.
    """
    per_epoch = num_steps / (config.num_epochs - config.warmup_epochs)
    ends = (round((epoch - config.warmup_epochs) * per_epoch) for epoch in config.rate_steps)
    return optax.piecewise_constant_schedule(config.learning_rate, dict.fromkeys(ends, 0.1))


def one_cycle(config: ConfigDict, num_steps: int) -> Schedule:
    """Rise for three tenths of the run, then fall, both along half cosines.

    From a 25th of the rate to the rate, and down to 10^-4 of where it began, as PyTorch's
    `OneCycleLR`, whose two parts end a step earlier.

    Source: Smith and Topin, Super-convergence, 2018.
    """
    return optax.cosine_onecycle_schedule(num_steps, config.learning_rate)


def sgd(config: ConfigDict, learning_rate: Schedule) -> optax.GradientTransformation:
    """Build stochastic gradient descent with `momentum` and `weight_decay`.

    With both at 0 it is d2l's `torch.optim.SGD(lr)`. Otherwise PyTorch's definitions hold too:
    weight decay is added to the gradient, and momentum is not dampened.

    Source: Polyak, Some methods of speeding up the convergence of iteration methods, 1964; d2l
    12.6.
    """
    return optax.chain(
        _add_weight_decay(config), optax.sgd(learning_rate, momentum=config.momentum or None)
    )


def nesterov(config: ConfigDict, learning_rate: Schedule) -> optax.GradientTransformation:
    """Build `sgd` with Nesterov's momentum, as PyTorch's `SGD(nesterov=True)`.

    Source: Sutskever et al., On the importance of initialization and momentum, 2013.
    """
    descent = optax.sgd(learning_rate, momentum=config.momentum, nesterov=True)
    return optax.chain(_add_weight_decay(config), descent)


def adam(config: ConfigDict, learning_rate: Schedule) -> optax.GradientTransformation:
    """Build Adam; weight decay is added to the gradient, as in PyTorch's `Adam`.

    Source: Kingma and Ba, Adam, 2015; d2l 12.10.
    """
    return optax.chain(_add_weight_decay(config), optax.adam(learning_rate))


def adamw(config: ConfigDict, learning_rate: Schedule) -> optax.GradientTransformation:
    """Build Adam with decoupled weight decay: the rate times the decay, off each parameter.

    Source: Loshchilov and Hutter, Decoupled weight decay regularization, 2019.
    """
    decay, mask = config.weight_decay, _decayed(config)
    return optax.adamw(learning_rate, weight_decay=decay, mask=mask)


def muon(config: ConfigDict, learning_rate: Schedule) -> optax.GradientTransformation:
    """Build Muon: each kernel moves by an orthogonal matrix, all else as by Adam.

    A kernel [h, w, I, O] counts as a matrix [h w I, O]. Momentum is Nesterov's, Adam's too, and
    weight decay decoupled. One rate serves both: updates of a matrix are as large as Adam's.

    Source: Jordan et al., Muon, 2024; Liu et al., Muon is scalable for LLM training, 2025.
    """
    from optax import contrib  # here, as it is slow to import

    return contrib.muon(
        learning_rate,
        beta=config.momentum,
        weight_decay=config.weight_decay,
        adam_weight_decay=config.weight_decay if config.weight_decay_on == "all" else 0.0,
        muon_weight_dimension_numbers=_matrices,
        consistent_rms=0.2,
    )


# `config.schedule` -> function (config, num_steps) that returns the learning rate, or a function
# of the step that does (an Optax schedule). num_steps: optimizer steps after the warm-up, from
# whose end the function's steps count. A schedule that depends on it cannot be resumed with another
# `num_epochs`.
SCHEDULES: dict[str, Callable[[ConfigDict, int], Schedule]] = {
    "constant": constant,
    "cosine": cosine,
    "linear": linear,
    "steps": steps,
    "one_cycle": one_cycle,
}

# `config.optimizer` -> function (config, learning_rate) that returns an Optax transformation.
# learning_rate: what the schedule returned; Optax's optimizers take both kinds.
OPTIMIZERS: dict[str, Callable[[ConfigDict, Schedule], optax.GradientTransformation]] = {
    "sgd": sgd,
    "nesterov": nesterov,
    "adam": adam,
    "adamw": adamw,
    "muon": muon,
}
_OWN = SCHEDULES | OPTIMIZERS

# Settings that only some entries use: the setting, what it is where it does nothing, whose it is.
_USERS = (
    ("rate_steps", (), "schedule", ("steps",)),
    ("final_rate", 0.0, "schedule", ("cosine", "linear")),
    ("momentum", 0.0, "optimizer", ("sgd", "nesterov", "muon")),
)
_OF_AN_OPTIMIZER = (  # but for the rate, which config files have
    "schedule",
    "warmup_epochs",
    "final_rate",
    "rate_steps",
    "momentum",
    "weight_decay",
    "weight_decay_on",
    "clip_norm",
)
_NEEDS = (
    ("schedule", "steps", "rate_steps"),
    ("optimizer", "nesterov", "momentum"),
    ("optimizer", "muon", "momentum"),
)


def check_recipe(config: ConfigDict) -> None:
    """Check that optimizer and schedule are names of the tables, with the settings that they use.

    Raises:
        ConfigError: with the names that are, or the setting.
    """
    check_choice("optimizer", config.optimizer, OPTIMIZERS)
    check_choice("schedule", config.schedule, SCHEDULES)
    for key, unused, of, users in _USERS:
        word = config[of]
        if config[key] != unused and word not in users and _is_own(word):
            raise ConfigError(
                f"config.{key} is {config[key]}, but {of} {word!r} has none; leave it at "
                f"{unused!r}, or choose {of} {' or '.join(map(repr, users))}"
            )
    for of, word, key in _NEEDS:
        if config[of] == word and _is_own(word) and not config[key]:
            raise ConfigError(f"config.{of} is {word!r}, which needs config.{key}; give it")
    if config.rate_steps and config.rate_steps[0] <= config.warmup_epochs:
        raise ConfigError(
            f"config.rate_steps begins with {config.rate_steps[0]}, within the warm-up of "
            f"{config.warmup_epochs:g} epochs; give later epochs, or a shorter warm-up"
        )
    if config.schedule == "one_cycle" and config.warmup_epochs:
        raise ConfigError(
            f"config.warmup_epochs is {config.warmup_epochs}, but schedule 'one_cycle' has its own "
            "warm-up; leave it at 0.0"
        )


def check_no_recipe(config: ConfigDict) -> None:
    """Check that a config leaves the recipe to an optimizer that is given as an object.

    Raises:
        ConfigError: with the setting that would have no effect.
    """
    for key, default in get_default_config().items():
        if key in _OF_AN_OPTIMIZER and config[key] != default:
            raise ConfigError(
                f"config.{key} is {config[key]!r}, which has no effect on an optimizer that is an "
                f"object; leave it at {default!r}, and give it to that, as in "
                "optax.sgd(0.1, momentum=0.9)"
            )


def create_schedule(config: ConfigDict, num_steps: int) -> Schedule:
    """Build the learning rate that `config.schedule` and `config.warmup_epochs` ask for.

    The warm-up is that of Goyal et al., Accurate, large minibatch SGD, 2017, from 0.

    Args:
        config: see `jaxcnn.get_default_config`.
        num_steps: optimizer steps of the whole run.

    Returns:
        A number, or a function from the step to one.

    Raises:
        ConfigError: if an entry of the table does not take its arguments, or returns something
            else.

    >>> from jaxcnn.config import get_default_config
    >>> config = get_default_config()
    >>> config.update(schedule="linear", warmup_epochs=2.0)
    >>> schedule = create_schedule(config, num_steps=40)
    >>> [round(float(schedule(step)), 3) for step in (0, 4, 8, 24, 40)]
    [0.0, 0.05, 0.1, 0.05, 0.0]
    """
    warmup = round(config.warmup_epochs * num_steps / config.num_epochs)
    if warmup >= num_steps:
        raise ConfigError(
            f"config.warmup_epochs is {config.warmup_epochs:g}, which takes all {num_steps} steps; "
            "give less, or more epochs"
        )
    call = f"jaxcnn.train.SCHEDULES[{config.schedule!r}](config, num_steps)"
    rate = call_entry(SCHEDULES[config.schedule], call, config, num_steps - warmup)
    check_learning_rate(rate, call)
    if not warmup:
        return rate
    schedule = rate if callable(rate) else optax.constant_schedule(rate)
    rise = optax.linear_schedule(0.0, float(schedule(0)), warmup)
    return optax.join_schedules([rise, schedule], [warmup])


def create_optimizer(config: ConfigDict, num_steps: int) -> optax.GradientTransformation:
    """Build the optimizer that `config.optimizer`, `config.schedule` and `config.clip_norm` name.

    Clipping is that of Pascanu et al., On the difficulty of training recurrent neural networks,
    2013; d2l 9.5.3.

    Args:
        config: see `jaxcnn.get_default_config`.
        num_steps: optimizer steps of the whole run, for schedules that depend on it.

    Raises:
        ConfigError: if an entry of the tables does not take its arguments, or returns something
            else.

    >>> from jaxcnn.config import get_default_config
    >>> optimizer = create_optimizer(get_default_config(), num_steps=4690)
    >>> updates, _ = optimizer.update(2.0, optimizer.init(1.0), 1.0)
    >>> float(updates)
    -0.2
    """
    learning_rate = create_schedule(config, num_steps)
    call = f"jaxcnn.train.OPTIMIZERS[{config.optimizer!r}](config, learning_rate)"
    optimizer = call_entry(OPTIMIZERS[config.optimizer], call, config, learning_rate)
    if not is_optimizer(optimizer):
        raise ConfigError(
            f"{call} returns a {type(optimizer).__name__}; it must return an "
            "optax.GradientTransformation, as optax.sgd(learning_rate)"
        )
    if not config.clip_norm:
        return optimizer
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)


def learning_rates(config: ConfigDict, num_steps: int) -> np.ndarray:
    """Return the learning rate of every step of a run, float32 [num_steps].

    >>> from jaxcnn.config import get_default_config
    >>> learning_rates(get_default_config(), num_steps=3)
    array([0.1, 0.1, 0.1], dtype=float32)
    """
    schedule = create_schedule(config, num_steps)
    if not callable(schedule):
        return np.full(num_steps, schedule, np.float32)
    rates = jax.jit(jax.vmap(lambda step: jnp.asarray(schedule(step), jnp.float32)))
    return np.asarray(rates(jnp.arange(num_steps)))


def _is_own(word: str) -> bool:
    return (SCHEDULES | OPTIMIZERS).get(word) is _OWN.get(word)


def _add_weight_decay(config: ConfigDict) -> optax.GradientTransformation:
    if not config.weight_decay:
        return optax.identity()
    return optax.add_decayed_weights(config.weight_decay, _decayed(config))


def _decayed(config: ConfigDict) -> Callable[[Any], Any] | None:
    """Return what tells the parameters that decay; None for all."""
    return None if config.weight_decay_on == "all" else _are_kernels


def _are_kernels(params: Any) -> Any:
    """Return a tree of whether each parameter is a kernel, rather than a bias or BatchNorm's.

    Kernels have several axes, and so do embeddings; but so have the biases of Flax's attention.

    Source: He et al., Bag of tricks for image classification, 2019, section 3.1.
    """

    def is_kernel(path: Any, x: jax.Array) -> bool:
        return jnp.ndim(x) > 1 and name_of(path[-1:]) not in ("bias", "scale")

    return jax.tree_util.tree_map_with_path(is_kernel, params)


def _matrices(params: Any) -> Any:
    """Return which axes of each parameter are a matrix's rows and columns; None if it is none."""
    from optax import contrib

    def axes(x: jax.Array, is_kernel: bool) -> Any:
        last = jnp.ndim(x) - 1
        return contrib.MuonDimensionNumbers(tuple(range(last)), last) if is_kernel else None

    return jax.tree.map(axes, params, _are_kernels(params))
