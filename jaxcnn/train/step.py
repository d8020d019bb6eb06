"""One step of training and of evaluation: pure functions of a state and a batch."""

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import lax

from jaxcnn.keys import Purpose, derive_key
from jaxcnn.layers import DROPOUT_OF_BATCH, weigh_examples
from jaxcnn.models import predict_logits
from jaxcnn.ops import cpu
from jaxcnn.ops.sharding import vary_over
from jaxcnn.ops.sizes import as_integer
from jaxcnn.train.loss import Loss, cross_entropy
from jaxcnn.train.metrics import Metrics
from jaxcnn.train.state import TrainState


def train_step(
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    weights: jax.Array | None = None,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    loss: Loss = cross_entropy,
    ema_decay: float = 0.0,
    gradient_accumulation_steps: int = 1,
    seed: int = 0,
    axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
    """Take one optimizer step on the mean loss of a batch.

    Meant to be compiled: bind the keyword arguments with `functools.partial` and wrap the result in
    `jax.jit` (or `jax.pmap`, with `axis_name`), as in the example. Donate the state, whose memory
    the new state can then reuse.

    With `gradient_accumulation_steps` the gradients of the parts (micro-batches) add up to those of
    the batch, for one step of the optimizer. Of k parts, each takes every k-th example, so their
    sizes differ by one at most. The step is that of the whole batch up to rounding, but for
    BatchNorm and dropout: BatchNorm normalizes each part by its own statistics and moves its
    running averages once for each part, as in PyTorch, and each part has a dropout mask of its own.

    Several devices (`axis_name`) together take the step of one device on the whole batch, up to
    rounding, if the batch is divided in order, the padding last. With parts, each device's examples
    are a multiple of them.

    Args:
        state: before the step.
        images: floating point [N, H, W, C], as `jaxcnn.data.preprocess` returns them; N at least 1.
        labels: integers [N], from 0 to the number of logits less 1, or floating point [N, K], a
            probability for each class. Shapes and dtypes are checked, values cannot be while
            compiled: an integer out of range makes the loss NaN.
        weights: [N], 1 for an example and 0 for padding, whose image is any finite one; None if
            there is no padding. Padding counts neither in the loss nor in BatchNorm's statistics;
            each part needs an example, or BatchNorm's are NaN.
        model: maps images to logits; built with the same `axis_name`.
        optimizer: the one that the state was created with.
        loss: maps logits [N, K] and labels to the loss of each example [N].
        ema_decay: of the moving average in `state.ema`, if there is one; see `update_ema`.
        gradient_accumulation_steps: parts that the batch is computed in, one after the other, so
            that the memory of one part is enough; see above.
        seed: of dropout, whose masks depend on (seed, step).
        axis_name: mapped axis that the batch is split over; gradients and metrics are summed over
            it. None on one device.

    Returns:
        The state after the step and this batch's metrics (those of all devices), computed before
        the update.

    Raises:
        ValueError: if images or labels are of another dtype, there are no images, or there is not
            one label and one weight for each; if the model would average its batch statistics over
            other axes; or if there are more parts than images.

    >>> from functools import partial
    >>> from jaxcnn.models import LeNet
    >>> from jaxcnn.train.state import create_train_state
    >>> model, optimizer = LeNet(), optax.sgd(0.1)
    >>> state = create_train_state(model, optimizer, (28, 28, 1))
    >>> step = jax.jit(partial(train_step, model=model, optimizer=optimizer), donate_argnums=0)
    >>> state, metrics = step(state, jnp.ones((4, 28, 28, 1)), jnp.arange(4))
    >>> int(state.step), int(metrics.count)
    (1, 4)
    """
    _check_batch(images, labels, weights, may_be_probabilities=True)
    if images.shape[0] == 0:
        raise ValueError("train_step takes at least one image, got none: there is no mean loss")
    num_parts = as_integer(gradient_accumulation_steps, "gradient_accumulation_steps")
    if num_parts != 1 and not 1 <= num_parts <= images.shape[0]:
        raise ValueError(
            f"gradient_accumulation_steps is {num_parts}; it must be 1 to {images.shape[0]}, the "
            "number of images"
        )
    if state.batch_stats and getattr(model, "axis_name", axis_name) != axis_name:
        raise ValueError(
            f"train_step has axis_name={axis_name!r} and the model {model.axis_name!r}; give both "
            "the same, over which BatchNorm averages its statistics"
        )
    params = vary_over(state.params, axis_name)
    keys = _dropout_keys(seed, state.step, axis_name)
    count = images.shape[0] if weights is None else weights.sum()
    compute = partial(
        _compute_gradients,
        params,
        model=model,
        loss=loss,
        count=count if axis_name is None else lax.psum(count, axis_name),
    )
    if num_parts == 1:
        grads, batch_stats, metrics = compute(state.batch_stats, images, labels, weights, keys)
    else:
        zeros = vary_over(jax.tree.map(jnp.zeros_like, params), axis_name)
        grads, batch_stats, metrics = _accumulate(
            compute, (zeros, state.batch_stats), (images, labels, weights), keys, num_parts
        )
    if axis_name is not None:
        grads, metrics = lax.psum((grads, metrics), axis_name)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    state = TrainState(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
        ema=state.ema,
    )
    return update_ema(state, ema_decay), metrics


def _dropout_keys(seed: int, step: jax.Array, axis_name: str | None) -> dict[str, jax.Array]:
    """Return the keys of dropout: each device's own and, over several, one that they share."""
    keys = {"dropout": derive_key(seed, Purpose.DROPOUT, step, axis_name)}
    if axis_name is not None:
        keys[DROPOUT_OF_BATCH] = derive_key(seed, Purpose.DROPOUT, step)
    return keys


def _compute_gradients(
    params: Any,
    batch_stats: Any,
    images: jax.Array,
    labels: jax.Array,
    weights: jax.Array | None,
    keys: dict[str, jax.Array],
    *,
    model: nn.Module,
    loss: Loss,
    count: int | jax.Array,
) -> tuple[Any, Any, Metrics]:
    """Return the gradients of a loss, the running averages after the batch, and its metrics.

    Args:
        params: of the model.
        batch_stats: before the batch.
        images: of the batch, or of a part of it.
        labels: likewise.
        weights: likewise; None if all are examples.
        keys: of dropout.
        model: maps images to logits.
        loss: see `train_step`; it is summed, and divided by `count`.
        count: examples of the whole batch, on all devices.
    """

    def loss_fn(params: Any) -> tuple[jax.Array, Any]:
        with weigh_examples(weights):
            logits, updates = model.apply(
                {"params": params, "batch_stats": batch_stats},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs=keys,
            )
        losses = loss(logits, labels)
        if weights is not None:
            counted = jnp.where(weights == 0, 0, losses * weights.astype(losses.dtype))
        else:
            counted = losses
        mean = counted.sum() / jnp.asarray(count, losses.dtype)
        return mean, (losses, logits, updates.get("batch_stats", {}))

    grads, (losses, logits, batch_stats) = jax.grad(loss_fn, has_aux=True)(params)
    classes = labels if labels.ndim == 1 else labels.argmax(axis=-1)
    weights = jnp.ones_like(losses) if weights is None else weights
    return grads, batch_stats, Metrics.from_batch(losses, logits, classes, weights)


def _accumulate(
    compute: Callable[..., tuple[Any, Any, Metrics]],
    init: tuple[Any, Any],
    batch: tuple[jax.Array, jax.Array, jax.Array | None],
    keys: dict[str, jax.Array],
    num_parts: int,
) -> tuple[Any, Any, Metrics]:
    """Return what `compute` returns for a batch, computed part by part.

    Each part changes the running averages that the part before it left.

    Args:
        compute: from (batch_stats, images, labels, weights, keys) to gradients, running averages
            and metrics.
        init: zeros like the gradients, and the running averages before the batch.
        batch: images, labels and weights.
        keys: of dropout; each part has some of its own.
        num_parts: at most as many as examples.
    """
    images, labels, weights = batch
    if missing := -len(images) % num_parts:
        images, labels = (jnp.concatenate([x, x[:missing]]) for x in (images, labels))
        weights = jnp.ones(len(labels) - missing) if weights is None else weights
        weights = jnp.concatenate([weights, jnp.zeros(missing, weights.dtype)])

    def add(carry: tuple[Any, Any], part: Any) -> tuple[tuple[Any, Any], Metrics]:
        total, batch_stats = carry
        grads, batch_stats, metrics = compute(batch_stats, *part)
        return (jax.tree.map(operator.add, total, grads), batch_stats), metrics

    parts = jax.tree.map(partial(_divide, num_parts=num_parts), (images, labels, weights))
    keys_of_parts = {name: jax.random.split(key, num_parts) for name, key in keys.items()}
    carry, metrics = cpu.scan(add, init, (*parts, keys_of_parts))
    return *carry, jax.tree.map(lambda x: x.sum(axis=0), metrics)


def _divide(x: jax.Array, num_parts: int) -> jax.Array:
    """Return [num_parts, N / num_parts, ...] of [N, ...]; a part has examples from all over it.

    So a batch that `jit` divides over devices stays where it is: each computes some of every part.
    """
    return jnp.moveaxis(x.reshape(-1, num_parts, *x.shape[1:]), 1, 0)


def update_ema(state: TrainState, decay: float) -> TrainState:
    """Let the moving average of the weights follow them; a state without one stays as it is.

    BatchNorm's running averages are averaged likewise. Early in a run the decay is smaller: at most
    (1 + step) / (10 + step), so that where the run began is soon forgotten.

    Args:
        state: after an optimizer step.
        decay: share of the average that a step keeps.

    Source: Polyak and Juditsky, Acceleration of stochastic approximation by averaging, 1992; the
    smaller decay is that of TensorFlow's `ExponentialMovingAverage`.
    """
    if not state.ema:
        return state
    step = state.step.astype(jnp.float32)
    moves = 1 - jnp.minimum(decay, (1 + step) / (10 + step))

    def follow(average: jax.Array, x: jax.Array) -> jax.Array:
        return average + moves.astype(x.dtype) * (x - average)

    return state.replace(ema=jax.tree.map(follow, state.ema, state.current))


def eval_step(
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    weights: jax.Array | None = None,
    *,
    model: nn.Module,
    test_augmentation: str = "none",
    axis_name: str | None = None,
) -> Metrics:
    """Evaluate a batch, with BatchNorm's running averages and without dropout.

    If the state has a moving average of the weights, that is evaluated.

    Meant to be compiled, as `train_step` is; the state is not to be donated.

    Args:
        state: whose variables to use.
        images: floating point [N, H, W, C].
        labels: integers [N]; see `train_step`.
        weights: [N], 1 for an example and 0 for padding, whose image and label may be anything;
            None if there is no padding.
        model: maps images to logits.
        test_augmentation: see `predict_logits`.
        axis_name: mapped axis that the batch is split over; metrics are summed over it. None on one
            device.

    Returns:
        The batch's metrics (those of all devices).

    Raises:
        ValueError: if images or labels are of another dtype, or there is not one label and one
            weight for each image.

    >>> from functools import partial
    >>> from jaxcnn.models import LeNet
    >>> from jaxcnn.train.state import create_train_state
    >>> state = create_train_state(LeNet(), optax.sgd(0.1), (28, 28, 1))
    >>> step = jax.jit(partial(eval_step, model=LeNet()))
    >>> metrics = step(state, jnp.ones((4, 28, 28, 1)), jnp.arange(4), jnp.array([1.0, 1, 1, 0]))
    >>> int(metrics.count)
    3
    """
    _check_batch(images, labels, weights)
    logits = predict_logits(model, state.variables, images, test_augmentation)
    losses = cross_entropy(logits, labels)
    if weights is None:
        weights = jnp.ones_like(losses)
    metrics = Metrics.from_batch(losses, logits, labels, weights)
    return metrics if axis_name is None else lax.psum(metrics, axis_name)


def _check_batch(
    images: jax.Array,
    labels: jax.Array,
    weights: jax.Array | None,
    may_be_probabilities: bool = False,
) -> None:
    """Refuse what broadcasting and promotion would accept; while tracing, so at no cost."""
    for name, array in (("images", images), ("labels", labels)):
        if not hasattr(array, "dtype"):
            raise ValueError(f"{name} must be an array, got a {type(array).__name__}")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images must be floating point [N, H, W, C], got {images.dtype} {list(images.shape)}; "
            "jaxcnn.data.preprocess scales uint8 images to [0, 1]"
        )
    is_floating = jnp.issubdtype(labels.dtype, jnp.floating) and labels.ndim == 2
    are_right = jnp.issubdtype(labels.dtype, jnp.integer) and labels.shape == images.shape[:1]
    if may_be_probabilities and is_floating and labels.shape[0] == images.shape[0]:
        are_right = True
    if not are_right:
        raise ValueError(
            f"labels must be integers [{images.shape[0]}], one for each image, got {labels.dtype} "
            f"{list(labels.shape)}"
        )
    if weights is not None and jnp.shape(weights) != images.shape[:1]:
        raise ValueError(
            f"weights must be [{images.shape[0]}], one for each image, got "
            f"{list(jnp.shape(weights))}"
        )
