"""One step of training and of evaluation: pure functions of a state and a batch."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import lax

from jaxcnn.keys import Purpose, derive_key
from jaxcnn.ops.sharding import on_explicit_mesh, vary_over
from jaxcnn.train.metrics import Metrics
from jaxcnn.train.state import TrainState


def train_step(
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    seed: int = 0,
    axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
    """Take one optimizer step on the mean cross-entropy of a batch.

    Meant to be compiled: bind the keyword arguments with `functools.partial` and wrap the result in
    `jax.jit` (or `jax.pmap`, with `axis_name`), as in the example. Donate the state, whose memory
    the new state can then reuse.

    Args:
        state: before the step.
        images: floating point [N, H, W, C], as `jaxcnn.data.preprocess` returns them; N at least 1.
        labels: integers [N], from 0 to the number of logits less 1. Shapes and dtypes are checked,
            values cannot be while compiled: a label out of range makes the loss NaN.
        model: maps images to logits; built with the same `axis_name`.
        optimizer: the one that the state was created with.
        seed: of dropout, whose masks depend on (seed, step).
        axis_name: mapped axis that the batch is split over; gradients are averaged over it and
            metrics summed. None on one device.

    Returns:
        The state after the step and this batch's metrics (those of all devices), computed before
        the update.

    Raises:
        ValueError: if images or labels are of another dtype, there are no images, or there is not
            one label for each; or if the model would average its batch statistics over other axes.

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
    _check_batch(images, labels)
    if images.shape[0] == 0:
        raise ValueError("train_step takes at least one image, got none: there is no mean loss")
    if state.batch_stats and getattr(model, "axis_name", axis_name) != axis_name:
        raise ValueError(
            f"train_step has axis_name={axis_name!r} and the model {model.axis_name!r}; give both "
            "the same, over which BatchNorm averages its statistics"
        )
    key = derive_key(seed, Purpose.DROPOUT, state.step, axis_name)

    def loss_fn(params):
        logits, updates = model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        losses = _cross_entropy(logits, labels)
        return losses.mean(), (losses, logits, updates.get("batch_stats", {}))

    params = vary_over(state.params, axis_name)
    grads, (losses, logits, batch_stats) = jax.grad(loss_fn, has_aux=True)(params)
    metrics = Metrics.from_batch(losses, logits, labels, jnp.ones_like(losses))
    if axis_name is not None:
        grads = lax.pmean(grads, axis_name)
        metrics = lax.psum(metrics, axis_name)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    state = TrainState(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
    )
    return state, metrics


def eval_step(
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    weights: jax.Array | None = None,
    *,
    model: nn.Module,
    axis_name: str | None = None,
) -> Metrics:
    """Evaluate a batch, with BatchNorm's running averages and without dropout.

    Meant to be compiled, as `train_step` is; the state is not to be donated.

    Args:
        state: whose parameters and running averages to use.
        images: floating point [N, H, W, C].
        labels: integers [N]; see `train_step`.
        weights: [N], 1 for an example and 0 for padding, whose image and label may be anything;
            None if there is no padding.
        model: maps images to logits.
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
    _check_batch(images, labels)
    logits = model.apply(state.variables, images, train=False)
    losses = _cross_entropy(logits, labels)
    if weights is None:
        weights = jnp.ones_like(losses)
    metrics = Metrics.from_batch(losses, logits, labels, weights)
    return metrics if axis_name is None else lax.psum(metrics, axis_name)


def _check_batch(images: jax.Array, labels: jax.Array) -> None:
    """Refuse what broadcasting and promotion would accept; while tracing, so at no cost."""
    for name, array in (("images", images), ("labels", labels)):
        if not hasattr(array, "dtype"):
            raise ValueError(f"{name} must be an array, got a {type(array).__name__}")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images must be floating point [N, H, W, C], got {images.dtype} {list(images.shape)}; "
            "jaxcnn.data.preprocess scales uint8 images to [0, 1]"
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.shape != images.shape[:1]:
        raise ValueError(
            f"labels must be integers [{images.shape[0]}], one for each image, got {labels.dtype} "
            f"{list(labels.shape)}"
        )


def _cross_entropy(logits: Any, labels: jax.Array) -> jax.Array:
    """Return the cross-entropy of each example [N], computed in float32 at least.

    It is NaN where a label is no class. Optax sees to those beyond the last; a negative one it
    would count from the end, so that becomes one beyond the last.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if jnp.issubdtype(labels.dtype, jnp.signedinteger):
        labels = labels.astype(jnp.promote_types(labels.dtype, jnp.int32))  # holds any class
        labels = jnp.where(labels < 0, logits.shape[-1], labels)
    losses = optax.softmax_cross_entropy_with_integer_labels
    return on_explicit_mesh(losses, like=lambda logits, labels: logits.max(axis=-1))(logits, labels)
