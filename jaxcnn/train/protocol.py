"""What training needs of a model and an optimizer that are given as objects.

Both are traced on shapes alone (`jax.eval_shape`), so an object that does not fit is refused
before anything is compiled. `jaxcnn.data.check_dataset` is the same for data.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.typing import DTypeLike

from jaxcnn.errors import ConfigError, first_line
from jaxcnn.layers import BatchNorm
from jaxcnn.train.state import TrainState, create_train_state, is_optimizer
from jaxcnn.train.trees import first_difference, shapes_by_name

_BATCH = 2  # images that a model is traced with


def set_axis_name(model: nn.Module, axis_name: str | None) -> nn.Module:
    """Return the model with its field `axis_name` set, or as it is if it has no such field.

    >>> from jaxcnn.models import ResNet18
    >>> set_axis_name(ResNet18(), "batch").axis_name
    'batch'
    """
    return model.clone(axis_name=axis_name) if _has_axis_name(model) else model


def _has_axis_name(model: nn.Module) -> bool:
    return "axis_name" in {field.name for field in dataclasses.fields(model)}


def check_model(
    model: nn.Module,
    image_shape: tuple[int, int, int],
    num_classes: int,
    num_devices: int = 1,
    dtype: DTypeLike = jnp.float32,
) -> None:
    """Check that a model follows the model protocol.

    The protocol is what training needs of any linen module. Images are floating point
    [N, H, W, C], logits floating point [N, K] with K at least the number of classes.

    - `model.init(key, images, train=False)` returns variables in the collections `params`
      (floating point) and, if the model has any state, `batch_stats`.
    - `model.apply(variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": key})`
      returns logits and the updated `batch_stats`, of the same shapes and dtypes as before.
    - `model.apply(variables, images, train=False)` returns logits.
    - On several devices that `pmap` maps over, a model with `batch_stats` has a field `axis_name`:
      training sets it to the mapped axis, over which the model averages its batch statistics (as
      `axis_name` of `flax.linen.BatchNorm` does).
    - Where batches are padded, for devices or parts that cannot share them equally, all
      `batch_stats` are those of `jaxcnn.layers.BatchNorm`: see `check_padding`.

    Args:
        model: the module.
        image_shape: (H, W, C) of one image.
        num_classes: of the data set.
        num_devices: that `pmap` maps over.
        dtype: of the images.

    Raises:
        ConfigError: one line that says what does not hold.

    >>> from jaxcnn.models import LeNet
    >>> check_model(LeNet(num_classes=7), (28, 28, 1), num_classes=10)
    Traceback (most recent call last):
    jaxcnn.errors.ConfigError: model LeNet returns logits of shape (2, 7) for 2 images; ...
    """
    name = f"model {type(model).__name__}"
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{name} is no flax.linen.Module; give one, such as jaxcnn.LeNet()")
    traced = set_axis_name(model, None)  # no axis is mapped while tracing
    state = _trace_init(traced, name, image_shape, dtype)
    images = jax.ShapeDtypeStruct((_BATCH, *image_shape), dtype)
    for logits in _trace_apply(traced, name, state, images):
        _check_logits(name, logits, num_classes, dtype)
    if state.batch_stats and num_devices > 1 and not _has_axis_name(model):
        raise ConfigError(
            f"{name} has batch_stats but no field axis_name, so {num_devices} devices cannot share "
            "its batch statistics; add the field and hand it to BatchNorm, or set "
            "config.num_devices=1 or config.data_parallel='jit'"
        )


def check_padding(model: nn.Module, image_shape: tuple[int, int, int], what: str) -> None:
    """Check that padding does not count in a model's batch statistics.

    Args:
        model: follows `check_model`.
        image_shape: (H, W, C) of one image.
        what: is padded, for the error.

    Raises:
        ConfigError: if a module other than `jaxcnn.layers.BatchNorm` keeps some.

    >>> from jaxcnn.models import ResNet18
    >>> check_padding(ResNet18(), (32, 32, 1), "a batch of 9 for 2 devices")
    """
    found = set()

    def look(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        result, module = call(*args, **kwargs), context.module
        if not isinstance(module, BatchNorm):
            kept = module.variables.get("batch_stats", {}).values()
            if any(not isinstance(each, Mapping) for each in kept):
                found.add(type(module).__qualname__)
        return result

    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    with nn.intercept_methods(look):
        init = partial(set_axis_name(model, None).init, train=False)
        jax.eval_shape(init, jax.random.key(0), images)
    if found:
        raise ConfigError(
            f"{what} is padded, which would count in the batch statistics of "
            f"{' and '.join(sorted(found))} in model {type(model).__name__}; use "
            "jaxcnn.layers.BatchNorm, or give a config.batch_size and a number of examples that "
            "can be shared equally"
        )


def _trace_init(
    model: nn.Module, name: str, image_shape: tuple[int, int, int], dtype: DTypeLike
) -> TrainState:
    """Return the shapes of a model's state, after checking its collections."""
    call = f"{name}: init(key, images [1, {', '.join(map(str, image_shape))}], train=False)"
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = _trace(call, partial(model.init, train=False), jax.random.key(0), images)
    collections = set(variables)
    if not {"params"} <= collections <= {"params", "batch_stats"}:
        raise ConfigError(
            f"{call} returns the collections {', '.join(sorted(collections)) or 'none'}; it must "
            "be params and, for state, batch_stats"
        )
    for array, (_, array_dtype) in shapes_by_name(variables).items():
        if not jnp.issubdtype(array_dtype, jnp.floating):
            raise ConfigError(f"{name} has {array} of {array_dtype}; it must be floating point")
    create = partial(create_train_state, model, optax.identity(), image_shape, dtype=dtype)
    return _trace(call, create)


def _trace_apply(
    model: nn.Module, name: str, state: TrainState, images: jax.ShapeDtypeStruct
) -> tuple[Any, Any]:
    """Return the shapes of the logits in training and in evaluation."""

    def train(variables, images):
        rngs = {"dropout": jax.random.key(0)}
        return model.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)

    call = f"{name}: apply(variables, images, train=True, mutable=['batch_stats'], rngs=...)"
    in_training, updates = _trace(call, train, state.variables, images)
    _check_kept(f"{name}: training changes", state.batch_stats, updates.get("batch_stats", {}))
    call = f"{name}: apply(variables, images, train=False)"
    return in_training, _trace(call, partial(model.apply, train=False), state.variables, images)


def _check_logits(name: str, logits: Any, num_classes: int, dtype: DTypeLike) -> None:
    if not isinstance(logits, jax.ShapeDtypeStruct):
        raise ConfigError(f"{name} returns a {type(logits).__name__}; it must return logits [N, K]")
    shape = logits.shape
    if len(shape) != 2 or shape[0] != _BATCH or shape[1] < num_classes:
        raise ConfigError(
            f"{name} returns logits of shape {shape} for {_BATCH} images; it must be [{_BATCH}, K] "
            f"with K at least the {num_classes} classes of the data set"
        )
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ConfigError(f"{name} returns logits of {logits.dtype}; they must be floating point")
    most = jnp.promote_types(dtype, jnp.float32)
    if logits.dtype.itemsize > most.itemsize:
        raise ConfigError(
            f"{name} returns logits of {logits.dtype} for images of {jnp.dtype(dtype)}; they must "
            f"be {most} at most: convert them, or give config.dtype='float64'"
        )


def check_optimizer(optimizer: optax.GradientTransformation, params: Any) -> None:
    """Check that an optimizer follows the optimizer protocol, which is Optax's.

    - `optimizer.init(params)` returns its state, a tree of arrays.
    - `optimizer.update(grads, state, params)` returns updates, which `optax.apply_updates` adds to
      the parameters, and the new state. Neither parameters nor state change in structure, shape or
      dtype.

    Args:
        optimizer: the transformation.
        params: of the model; arrays or their shapes.

    Raises:
        ConfigError: one line that says what does not hold.

    >>> check_optimizer(optax.sgd(0.1, momentum=0.9), {"bias": jnp.zeros(3)})
    """
    name = f"optimizer {type(optimizer).__name__}"
    if not is_optimizer(optimizer):
        raise ConfigError(f"{name} is no optax.GradientTransformation; give one, as optax.sgd(0.1)")

    def update(params, state):
        updates, state = optimizer.update(params, state, params)  # grads are like the parameters
        return optax.apply_updates(params, updates), state

    state = _trace(f"{name}: init(params)", optimizer.init, params)
    if any(jnp.issubdtype(x.dtype, jax.dtypes.extended) for x in jax.tree.leaves(state)):
        raise ConfigError(
            f"{name} keeps a random key in its state, and checkpoints take numbers alone; give one "
            "that keeps jax.random.key_data(key)"
        )
    new_params, new_state = _trace(f"{name}: update(grads, state, params)", update, params, state)
    _check_kept(f"{name} changes the parameter", params, new_params)
    _check_kept(f"{name} changes its state", state, new_state)


def check_augmentation(name: str, function: Callable, image: jax.ShapeDtypeStruct) -> None:
    """Check that an augmentation keeps the shape and dtype of its image.

    Args:
        name: of the entry of `jaxcnn.data.AUGMENTATIONS`.
        function: of (key, image).
        image: shape and dtype of one image.

    Raises:
        ConfigError: one line that says what does not hold.

    >>> from jaxcnn.data.augment import flip
    >>> check_augmentation("flip", flip, jax.ShapeDtypeStruct((28, 28, 1), jnp.float32))
    """
    call = f"jaxcnn.data.AUGMENTATIONS[{name!r}](key, image)"
    augmented = _trace(call, function, jax.random.key(0), image)
    if _describe(augmented) != _describe(image):
        raise ConfigError(
            f"{call} returns {_describe(augmented)} for an image {_describe(image)}; it must "
            "return an image of the same shape and dtype"
        )


def check_augmented_range(
    name: str, function: Callable, keys: jax.Array, images: jax.Array
) -> None:
    """Check that an augmentation leaves images near [0, 1], in which evaluation sees them.

    Args:
        name: of the entry.
        function: of (key, image).
        keys: to augment with, [N].
        images: floating point [N, H, W, C], in [0, 1].

    Raises:
        ConfigError: if a number is NaN or beyond 10.
    """
    augmented = jax.jit(jax.vmap(function))(keys, images)
    low, high = float(augmented.min()), float(augmented.max())
    if not -10 <= low <= high <= 10:  # true for nan as well
        raise ConfigError(
            f"jaxcnn.data.AUGMENTATIONS[{name!r}] returns {low:g} to {high:g} for the first images "
            "of the training set; it must leave them near [0, 1]"
        )


def check_mixing(
    name: str, function: Callable, images: jax.ShapeDtypeStruct, targets: jax.ShapeDtypeStruct
) -> None:
    """Check that a function that mixes images and labels keeps their shapes and dtypes.

    Args:
        name: of the entry of `jaxcnn.data.MIXINGS`.
        function: of (key, images, targets).
        images: shape and dtype of a batch, or of the part of it that one device has.
        targets: shape and dtype of its labels, as probabilities.

    Raises:
        ConfigError: one line that says what does not hold.
    """
    call = f"jaxcnn.data.MIXINGS[{name!r}](key, images, targets)"
    mixed = _trace(call, function, jax.random.key(0), images, targets)
    _check_kept(f"{call} changes", (images, targets), mixed)


def check_learning_rate(rate: Any, call: str) -> None:
    """Check that what a schedule returns is a finite number, or a function of the step to one.

    Args:
        rate: what it returned.
        call: of the schedule, for messages.

    Raises:
        ConfigError: one line that says what it is instead.

    >>> check_learning_rate(0.1, "constant(config, num_steps)")
    >>> check_learning_rate(lambda step: jnp.where(step < 9, 0.1, 0.01), "two(config, num_steps)")
    """
    if callable(rate):
        found = _trace(f"{call}(step)", rate, jax.ShapeDtypeStruct((), jnp.int32))
        is_rate, what = _is_real_number(found), f"a function to {_describe(found)}"
    else:
        is_rate, what = _is_real_number(rate) and math.isfinite(rate), _describe(rate)
    if not is_rate:
        raise ConfigError(
            f"{call} returns {what}; it must return a finite number, or a function from the step "
            "to one"
        )


def _is_real_number(value: Any) -> bool:
    """Return whether a value is a real number, or an array of one or its shape."""
    if isinstance(value, Real):
        return True
    is_number = getattr(value, "shape", None) == () and jnp.issubdtype(value.dtype, np.number)
    return is_number and not jnp.issubdtype(value.dtype, np.complexfloating)


def _describe(value: Any) -> str:
    """Return a number itself, an array's dtype and shape, and the type of anything else."""
    if isinstance(value, Real):
        return f"{value}"
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype} {list(value.shape)}"
    return f"a {type(value).__name__}"


def _trace(call: str, function: Callable, *args: Any) -> Any:
    """Return the shapes of a function's results; an error in it ends in one line."""
    try:
        return jax.eval_shape(function, *args)
    except Exception as error:  # a model may raise anything
        raise ConfigError(f"{call} fails: {type(error).__name__}: {first_line(error)}") from error


def _check_kept(what: str, before: Any, after: Any) -> None:
    """Check that a tree has kept its structure, shapes and dtypes."""
    difference = first_difference(shapes_by_name(before), shapes_by_name(after))
    if difference:
        array, was, is_now = difference
        raise ConfigError(f"{what} {array} from {was} to {is_now}; shape and dtype must stay")
    structures = {str(jax.tree.structure(tree)) for tree in (before, after)}
    if len(structures) > 1:
        raise ConfigError(f"{what} in structure; the tree must stay the same")
