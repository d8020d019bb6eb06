"""Fine-tuning: start from trained arrays, and keep parts of the model as they are."""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from flax import linen as nn

from jaxcnn.errors import ConfigError, did_you_mean
from jaxcnn.layers import BatchNorm
from jaxcnn.models.normalized import take_place
from jaxcnn.train.trees import name_of, shapes_by_name


class PartlyFrozen(nn.Module):
    """A model some of whose BatchNorm layers always normalize by their running averages.

    Its variables are those of the model, under the same names.

    Attributes:
        model: maps images to logits.
        frozen: names of modules of which everything stays, such as 'b2_0' or 'b2_0/bn1'.
        axis_name: mapped axis that the model averages its batch statistics over, if any.
    """

    model: nn.Module
    frozen: tuple[str, ...]
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Return the model's logits."""
        with nn.intercept_methods(partial(_average_in, self.frozen)):
            return take_place(self.model, self, self.axis_name)(images, train=train)


def _average_in(
    frozen: Sequence[str], run: Callable, args: tuple, kwargs: dict, context: Any
) -> Any:
    """Call a module's method; a frozen BatchNorm as in evaluation."""
    module = context.module
    is_training = isinstance(module, BatchNorm | nn.BatchNorm) and not module.use_running_average
    if not is_training or not is_within("/".join(module.path), frozen):
        return run(*args, **kwargs)
    kwargs.pop("use_running_average", None)  # or given by its place, after the input
    return module.clone(parent=module.scope, use_running_average=True)(*args[:1], **kwargs)


def freeze_updates(
    optimizer: optax.GradientTransformation, frozen: Sequence[str]
) -> optax.GradientTransformation:
    """Return an optimizer that leaves parameters as they are, and keeps no state for them.

    Args:
        optimizer: of the others.
        frozen: names of modules or of single arrays.

    >>> params = {"conv1": {"bias": np.ones(2)}, "conv2": {"bias": np.ones(2)}}
    >>> optimizer = freeze_updates(optax.sgd(0.5), ["conv1"])
    >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
    >>> [updates[name]["bias"].tolist() for name in updates]
    [[0.0, 0.0], [-0.5, -0.5]]
    """

    def label(path: Any, _: Any) -> str:
        return "frozen" if is_within(name_of(path), frozen) else "trained"

    transforms = {"trained": optimizer, "frozen": optax.set_to_zero()}
    return optax.multi_transform(
        transforms, lambda params: jax.tree_util.tree_map_with_path(label, params)
    )


def transfer(given: Any, initial: Any) -> tuple[Any, list[str]]:
    """Return variables with the arrays of trained ones wherever name and shape are the same.

    Args:
        given: trained variables, such as `Trained.variables`.
        initial: those of the model to be trained.

    Returns:
        The variables, and the names of the arrays that stay as they were initialized.

    Raises:
        ConfigError: if no array is the same.

    >>> transfer({"a": np.ones(2), "b": np.ones(3)}, {"a": np.zeros(2), "b": np.zeros(5)})
    ({'a': array([1., 1.]), 'b': array([0., 0., 0., 0., 0.])}, ['b'])
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(given)
    trained = {name_of(path): x for path, x in leaves}
    new: list[str] = []

    def choose(path: Any, x: Any) -> Any:
        name = name_of(path)
        if name in trained and trained[name].shape == x.shape:
            return np.array(trained[name], x.dtype)  # a copy: training donates what it starts from
        new.append(name)
        return np.array(x)  # likewise, or the moving average would be the same memory

    chosen = jax.tree_util.tree_map_with_path(choose, initial)
    if len(new) == len(jax.tree.leaves(initial)):
        raise ConfigError(
            "init_from has no array of this model's: it is of another network; it has "
            f"{', '.join(list(trained)[:5])}, ..., and the model {', '.join(new[:5])}, ..."
        )
    return chosen, new


def check_frozen(frozen: Sequence[str], variables: Any) -> None:
    """Check that every name is that of a module or an array, and that something is left to train.

    Raises:
        ConfigError: with the most similar name.

    >>> check_frozen(["conv1"], {"params": {"conv1": {"bias": np.ones(2)}}})
    Traceback (most recent call last):
    jaxcnn.errors.ConfigError: freeze=['conv1'] leaves nothing to train
    """
    names = [name.partition("/")[2] for name in shapes_by_name(variables)]
    modules = {name.rsplit("/", depth)[0] for name in names for depth in range(name.count("/") + 1)}
    for name in frozen:
        if f"batch_stats/{name}" in shapes_by_name(variables):
            raise ConfigError(
                f"freeze has {name!r}, a running average, which stays only if its module does; "
                f"give {name.rpartition('/')[0]!r}"
            )
        if name not in modules:
            raise ConfigError(
                f"freeze has {name!r}{did_you_mean(name, sorted(modules))}; it must name parts of "
                f"the model, such as {', '.join(sorted({n.split('/')[0] for n in names}))}"
            )
    trained = (name.removeprefix("params/") for name in shapes_by_name(variables["params"]))
    if all(is_within(name, frozen) for name in trained):
        raise ConfigError(f"freeze={list(frozen)} leaves nothing to train")


def is_within(name: str, modules: Sequence[str]) -> bool:
    """Return whether an array or module is one of these modules, or lies within one.

    >>> is_within("b2_0/bn1", ["b2_0"]), is_within("b2_01", ["b2_0"])
    (True, False)
    """
    return any(name == module or name.startswith(f"{module}/") for module in modules)


def digest(variables: Any) -> str:
    """Return the SHA-256 of arrays, by name, in hexadecimal."""
    total = hashlib.sha256()
    leaves, _ = jax.tree_util.tree_flatten_with_path(variables)
    for path, x in leaves:
        total.update(f"{name_of(path)} {x.dtype} {x.shape}".encode())
        total.update(np.ascontiguousarray(x).tobytes())
    return total.hexdigest()
