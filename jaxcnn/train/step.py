"""One step of training and of evaluation: pure functions of a state and a batch."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import lax

from jaxcnn.keys import Purpose, derive_key
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
        images: floating point [N, H, W, C].
        labels: int [N].
        model: maps images to logits; built with the same `axis_name`.
        optimizer: the one that the state was created with.
        seed: of dropout, whose masks depend on (seed, step).
        axis_name: mapped axis that the batch is split over; gradients are averaged over it and
            metrics summed. None on one device.

    Returns:
        The state after the step and this batch's metrics (those of all devices), computed before
        the update.

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

    grads, (losses, logits, batch_stats) = jax.grad(loss_fn, has_aux=True)(state.params)
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
    weights: jax.Array,
    *,
    model: nn.Module,
    axis_name: str | None = None,
) -> Metrics:
    """Evaluate a batch, with BatchNorm's running averages and without dropout.

    Meant to be compiled, as `train_step` is; the state is not to be donated.

    Args:
        state: whose parameters and running averages to use.
        images: floating point [N, H, W, C].
        labels: int [N].
        weights: floating point [N], 1 for an example and 0 for padding.
        model: maps images to logits.
        axis_name: mapped axis that the batch is split over; metrics are summed over it. None on one
            device.

    Returns:
        The batch's metrics (those of all devices).

    >>> from functools import partial
    >>> from jaxcnn.models import LeNet
    >>> from jaxcnn.train.state import create_train_state
    >>> state = create_train_state(LeNet(), optax.sgd(0.1), (28, 28, 1))
    >>> step = jax.jit(partial(eval_step, model=LeNet()))
    >>> metrics = step(state, jnp.ones((4, 28, 28, 1)), jnp.arange(4), jnp.array([1.0, 1, 1, 0]))
    >>> int(metrics.count)
    3
    """
    logits = model.apply(state.variables, images, train=False)
    losses = _cross_entropy(logits, labels)
    metrics = Metrics.from_batch(losses, logits, labels, weights)
    return metrics if axis_name is None else lax.psum(metrics, axis_name)


def _cross_entropy(logits: Any, labels: jax.Array) -> jax.Array:
    """Return the cross-entropy of each example [N], computed in float32 at least."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
