"""The loss of each example, and how a config changes it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from jaxcnn.data import Dataset
from jaxcnn.ops.sharding import on_explicit_mesh

Loss = Callable[[jax.Array, jax.Array], jax.Array]  # (logits [N, K], labels) -> [N]


def cross_entropy(
    logits: Any,
    labels: jax.Array,
    *,
    label_smoothing: float = 0.0,
    class_weights: np.ndarray | None = None,
) -> jax.Array:
    """Return the cross-entropy of each example, in nats, computed in float32 at least.

    Args:
        logits: floating point [N, K].
        labels: integers [N], from 0 to K - 1; or floating point [N, K], a probability for each
            class, as `jaxcnn.data.MIXINGS` makes them.
        label_smoothing: share of each label that all classes divide equally.
        class_weights: [K], which multiply the share of each class; None for ones.

    Returns:
        [N]; NaN where an integer is no class.

    Raises:
        ValueError: if probabilities are of another shape than the logits.

    Source: d2l 4.1.2; Szegedy et al., Rethinking the Inception architecture, 2016, section 7.

    >>> cross_entropy(jnp.zeros((1, 4)), jnp.array([2])).round(3)
    Array([1.386], dtype=float32)
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    is_integer = jnp.issubdtype(labels.dtype, jnp.integer)
    if is_integer and not label_smoothing and class_weights is None:
        return _of_integers(logits, labels)
    num_classes = logits.shape[-1]
    if is_integer:
        is_class = (labels >= 0) & (labels < num_classes)
        targets = jax.nn.one_hot(labels, num_classes, dtype=logits.dtype)
        targets = jnp.where(is_class[:, None], targets, jnp.nan)
    elif labels.shape != logits.shape:
        raise ValueError(
            f"labels that are probabilities must have the shape of the logits, {list(logits.shape)}"
            f", got {labels.dtype} {list(labels.shape)}"
        )
    else:
        targets = labels.astype(logits.dtype)
    if label_smoothing:
        targets = optax.smooth_labels(targets, label_smoothing)
    if class_weights is not None:
        targets = targets * jnp.asarray(class_weights, logits.dtype)[None, :]
    return -(targets * jax.nn.log_softmax(logits)).sum(axis=-1)


def create_loss(config: ConfigDict, train: Dataset, num_logits: int) -> Loss:
    """Return the loss that `label_smoothing` and `class_weights` of a config ask for.

    Args:
        config: see `jaxcnn.get_default_config`.
        train: the training set, whose labels balance the weights.
        num_logits: K, at least as many as there are classes.
    """
    weights = None
    if config.class_weights == "balanced":
        weights = balance(train.labels, num_logits)
    return partial(cross_entropy, label_smoothing=config.label_smoothing, class_weights=weights)


def balance(labels: np.ndarray, num_logits: int) -> np.ndarray:
    """Return weights in inverse proportion to how often each class occurs.

    Their mean over the examples is 1; classes that do not occur have the weight 1.

    Source: King and Zeng, Logistic regression in rare events data, 2001.

    >>> balance(np.array([0, 0, 0, 1]), num_logits=3).round(2).tolist()
    [0.67, 2.0, 1.0]
    """
    counts = np.bincount(labels, minlength=num_logits)
    occurs = counts > 0
    return np.where(occurs, len(labels) / (occurs.sum() * counts.clip(min=1)), 1.0)


def _of_integers(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the plain cross-entropy; NaN where a label is no class.

    Optax sees to those beyond the last; a negative one it would count from the end, so that
    becomes one beyond the last.
    """
    if jnp.issubdtype(labels.dtype, jnp.signedinteger):
        labels = labels.astype(jnp.promote_types(labels.dtype, jnp.int32))  # holds any class
        labels = jnp.where(labels < 0, logits.shape[-1], labels)
    losses = optax.softmax_cross_entropy_with_integer_labels
    return on_explicit_mesh(losses, like=lambda logits, labels: logits.max(axis=-1))(logits, labels)
