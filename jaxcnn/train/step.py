"""One step of training and of evaluation: pure functions of a state and a batch."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import lax

from jaxcnn.keys import Purpose, derive_key
from jaxcnn.ops.sharding import vary_over
from jaxcnn.train.loss import Loss, cross_entropy
from jaxcnn.train.metrics import Metrics
from jaxcnn.train.state import TrainState


def train_step(
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    loss: Loss = cross_entropy,
    ema_decay: float = 0.0,
    seed: int = 0,
    axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
    """Take one optimizer step on the mean loss of a batch.

    Meant to be compiled: bind the keyword arguments with `functools.partial` and wrap the result in
    `jax.jit` (or `jax.pmap`, with `axis_name`), as in the example. Donate the state, whose memory
    the new state can then reuse.

    Args:
        state: before the step.
        images: floating point [N, H, W, C], as `jaxcnn.data.preprocess` returns them; N at least 1.
        labels: integers [N], from 0 to the number of logits less 1, or floating point [N, K], a
            probability for each class. Shapes and dtypes are checked, values cannot be while
            compiled: an integer out of range makes the loss NaN.
        model: maps images to logits; built with the same `axis_name`.
        optimizer: the one that the state was created with.
        loss: maps logits [N, K] and labels to the loss of each example [N].
        ema_decay: of the moving average in `state.ema`, if there is one; see `update_ema`.
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
    _check_batch(images, labels, may_be_probabilities=True)
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
        losses = loss(logits, labels)
        return losses.mean(), (losses, logits, updates.get("batch_stats", {}))

    params = vary_over(state.params, axis_name)
    grads, (losses, logits, batch_stats) = jax.grad(loss_fn, has_aux=True)(params)
    classes = labels if labels.ndim == 1 else labels.argmax(axis=-1)
    metrics = Metrics.from_batch(losses, logits, classes, jnp.ones_like(losses))
    if axis_name is not None:
        grads = lax.pmean(grads, axis_name)
        metrics = lax.psum(metrics, axis_name)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    state = TrainState(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
        ema=state.ema,
    )
    return update_ema(state, ema_decay), metrics


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
    _check_batch(images, labels)
    logits = predict_logits(model, state.variables, images, test_augmentation)
    losses = cross_entropy(logits, labels)
    if weights is None:
        weights = jnp.ones_like(losses)
    metrics = Metrics.from_batch(losses, logits, labels, weights)
    return metrics if axis_name is None else lax.psum(metrics, axis_name)


def predict_logits(
    model: nn.Module, variables: Any, images: jax.Array, test_augmentation: str = "none"
) -> jax.Array:
    """Return the logits of images, without training anything.

    Args:
        model: maps images to logits.
        variables: of the model.
        images: floating point [N, H, W, C].
        test_augmentation: 'none', or 'flip' for the mean of each image's logits and its mirror's.

    Returns:
        Floating point [N, K].
    """
    apply: Callable[[jax.Array], Any] = partial(model.apply, variables, train=False)
    if test_augmentation == "none":
        return apply(images)
    return (apply(images) + apply(images[:, :, ::-1])) / 2


def _check_batch(images: jax.Array, labels: jax.Array, may_be_probabilities: bool = False) -> None:
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
    if may_be_probabilities and is_floating and labels.shape[0] == images.shape[0]:
        return
    if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.shape != images.shape[:1]:
        raise ValueError(
            f"labels must be integers [{images.shape[0]}], one for each image, got {labels.dtype} "
            f"{list(labels.shape)}"
        )
