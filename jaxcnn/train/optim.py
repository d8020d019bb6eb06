"""The optimizer that a config asks for, looked up by name in two tables."""

from collections.abc import Callable

import optax
from ml_collections import ConfigDict

from jaxcnn.config import check_choice
from jaxcnn.errors import ConfigError
from jaxcnn.registry import call_entry
from jaxcnn.train.protocol import check_learning_rate
from jaxcnn.train.state import is_optimizer

Schedule = float | Callable[..., float]  # a rate, or an Optax schedule: step -> rate


def constant(config: ConfigDict, num_steps: int) -> Schedule:
    """Return `learning_rate` as it is.

    A plain float, not a schedule: a schedule adds a step count to the optimizer's state, and
    checkpoints of earlier runs have none.
    """
    return config.learning_rate


def sgd(config: ConfigDict, learning_rate: Schedule) -> optax.GradientTransformation:
    """Build stochastic gradient descent with `momentum` and `weight_decay`.

    With both at 0 it is d2l's `torch.optim.SGD(lr)`. Otherwise PyTorch's definitions hold too:
    weight decay is added to the gradient, and momentum is not dampened.
    """
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay) if config.weight_decay else optax.identity(),
        optax.sgd(learning_rate, momentum=config.momentum or None),
    )


# `config.schedule` -> function (config, num_steps) that returns the learning rate, or a function
# of the step that does (an Optax schedule). num_steps: optimizer steps of the whole run; a schedule
# that depends on it changes if the run is resumed with another `num_epochs`.
SCHEDULES: dict[str, Callable[[ConfigDict, int], Schedule]] = {"constant": constant}

# `config.optimizer` -> function (config, learning_rate) that returns an Optax transformation.
# learning_rate: what the schedule returned; Optax's optimizers take both kinds.
OPTIMIZERS: dict[str, Callable[[ConfigDict, Schedule], optax.GradientTransformation]] = {"sgd": sgd}


def check_names(config: ConfigDict) -> None:
    """Check that `config.optimizer` and `config.schedule` are names of the tables.

    Raises:
        ConfigError: with the names that are.
    """
    check_choice("optimizer", config.optimizer, OPTIMIZERS)
    check_choice("schedule", config.schedule, SCHEDULES)


def create_optimizer(config: ConfigDict, num_steps: int) -> optax.GradientTransformation:
    """Build the optimizer that `config.optimizer` and `config.schedule` name.

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
    call = f"jaxcnn.train.SCHEDULES[{config.schedule!r}](config, num_steps)"
    learning_rate = call_entry(SCHEDULES[config.schedule], call, config, num_steps)
    check_learning_rate(learning_rate, call)
    call = f"jaxcnn.train.OPTIMIZERS[{config.optimizer!r}](config, learning_rate)"
    optimizer = call_entry(OPTIMIZERS[config.optimizer], call, config, learning_rate)
    if not is_optimizer(optimizer):
        raise ConfigError(
            f"{call} returns a {type(optimizer).__name__}; it must return an "
            "optax.GradientTransformation, as optax.sgd(learning_rate)"
        )
    return optimizer
