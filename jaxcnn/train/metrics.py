"""Loss and accuracy, kept as sums so that any partition of the examples gives the same means.

To add a metric, add its sum as a field of `Metrics`, compute the sum in `from_batch` and its mean
in `means`. The logs, the progress display, the curves of TensorBoard and the checkpoints follow.
"""

import dataclasses
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import DTypeLike


class Metrics(struct.PyTreeNode):
    """Sums over examples; scalars, or arrays with one entry per step.

    Attributes:
        loss_sum: cross-entropy in nats.
        correct: examples whose largest logit is the label's.
        count: examples.
    """

    loss_sum: Any = 0.0
    correct: Any = 0.0
    count: Any = 0.0

    @classmethod
    def zeros(cls, shape: tuple[int, ...] = (), dtype: DTypeLike = jnp.float32) -> "Metrics":
        """Return the sums over no examples, as arrays.

        Args:
            shape: of each sum; () for scalars, (steps,) for one entry per step.
            dtype: that of the losses.

        >>> Metrics.zeros().count
        Array(0., dtype=float32)
        """
        return cls(*(jnp.zeros(shape, dtype) for _ in dataclasses.fields(cls)))

    @classmethod
    def from_batch(
        cls, losses: jax.Array, logits: Any, labels: jax.Array, weights: jax.Array
    ) -> "Metrics":
        """Sum over a batch.

        Args:
            losses: floating point [N], the cross-entropy of each example.
            logits: floating point [N, num_classes].
            labels: integers [N].
            weights: [N], 1 for an example and 0 for padding, whose loss may be anything.

        Returns:
            Scalars of the losses' dtype.

        Raises:
            ValueError: if the lengths differ.
        """
        shapes = [losses.shape, logits.shape[:-1], labels.shape, weights.shape]
        if len(set(shapes)) > 1 or len(losses.shape) != 1:
            raise ValueError(
                "metrics take losses [N], logits [N, K], labels [N] and weights [N], got "
                f"{list(losses.shape)}, {list(logits.shape)}, {list(labels.shape)} and "
                f"{list(weights.shape)}"
            )
        weights = weights.astype(losses.dtype)
        losses = jnp.where(weights == 0, 0, losses)
        hits = (jnp.argmax(logits, axis=-1) == labels).astype(losses.dtype)
        return cls(
            loss_sum=(losses * weights).sum(),
            correct=(hits * weights).sum(),
            count=weights.sum(),
        )

    def __add__(self, other: "Metrics") -> "Metrics":
        return jax.tree.map(operator.add, self, other)

    def loss(self) -> float:
        """Return the mean loss per example, in nats; of scalar sums."""
        return float(self.loss_sum / self.count)

    def accuracy(self) -> float:
        """Return the fraction of examples classified correctly; of scalar sums."""
        return float(self.correct / self.count)

    def means(self) -> dict[str, float]:
        """Return every metric's mean per example by its name; of scalar sums.

        >>> Metrics(loss_sum=6.0, correct=1.0, count=4.0).means()
        {'loss': 1.5, 'accuracy': 0.25}
        """
        return {"loss": self.loss(), "accuracy": self.accuracy()}

    def total(self) -> "Metrics":
        """Wait for the device and return the sums over all entries, as Python floats.

        >>> Metrics(jnp.ones(3), jnp.zeros(3), jnp.full(3, 4.0)).total()
        Metrics(loss_sum=3.0, correct=0.0, count=12.0)
        """
        return jax.tree.map(lambda x: float(np.sum(x, dtype=np.float64)), jax.device_get(self))

    def per_step(self) -> list["Metrics"]:
        """Wait for the device and return one total for each entry that holds examples.

        >>> [m.loss() for m in Metrics(jnp.ones(2), jnp.zeros(2), jnp.array([4.0, 0.0])).per_step()]
        [0.25]
        """
        entries = zip(*jax.tree.leaves(jax.device_get(self)), strict=True)
        totals = [type(self)(*map(float, entry)) for entry in entries]
        return [total for total in totals if total.count > 0]
