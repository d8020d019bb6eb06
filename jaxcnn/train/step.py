"""One step of training and of evaluation: pure functions of a state and a batch."""

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
    """Take one step of gradient descent on the mean cross-entropy of a batch.

    Args:
        state: before the step.
        images: [N, H, W, C], floating point.
        labels: int [N].
        model: maps images to logits; built with the same `axis_name`.
        optimizer: the one that made the state.
        seed: dropout draws from (seed, step).
        axis_name: mapped axis over which the batch is shared; gradients are averaged over it.

    Returns:
        The state after the step, and the metrics of the batch before it (over all devices).

    >>> from jaxcnn.models import LeNet
    >>> from jaxcnn.train.state import create_train_state
    >>> model, optimizer = LeNet(), optax.sgd(0.1)
    >>> state = create_train_state(model, optimizer, (28, 28, 1))
    >>> images, labels = jnp.ones((4, 28, 28, 1)), jnp.arange(4)
    >>> state, metrics = train_step(state, images, labels, model=model, optimizer=optimizer)
    >>> int(state.step), int(metrics.count)
    (1, 4)
    """
    key = derive_key(seed, Purpose.DROPOUT, state.step)
    if axis_name is not None:
        key = jax.random.fold_in(key, lax.axis_index(axis_name))

    def loss_fn(params):
        logits, updates = model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
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
    """Return the metrics of a batch, with BatchNorm's running averages and without dropout.

    Args:
        state: whose parameters to evaluate.
        images: [N, H, W, C], floating point.
        labels: int [N].
        weights: float [N], 1 for an example and 0 for padding.
        model: maps images to logits.
        axis_name: mapped axis over which the batch is shared.
    """
    logits = model.apply(state.variables, images, train=False)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    metrics = Metrics.from_batch(losses, logits, labels, weights)
    return metrics if axis_name is None else lax.psum(metrics, axis_name)
