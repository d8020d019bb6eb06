"""Loss and accuracy, kept as sums so that any partition of the examples gives the same means."""

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

    loss_sum: Any
    correct: Any
    count: Any

    @classmethod
    def zeros(cls, shape: tuple[int, ...] = (), dtype: DTypeLike = jnp.float32) -> "Metrics":
        """Return metrics of no examples; of the dtype that the logits have.

        >>> Metrics.zeros().count
        Array(0., dtype=float32)
        """
        return cls(*(jnp.zeros(shape, dtype) for _ in range(3)))

    @classmethod
    def from_batch(
        cls, losses: jax.Array, logits: Any, labels: jax.Array, weights: jax.Array
    ) -> "Metrics":
        """Sum over a batch.

        Args:
            losses: [N] per example.
            logits: [N, num_classes].
            labels: int [N].
            weights: float [N], 1 for an example and 0 for padding.
        """
        weights = weights.astype(losses.dtype)
        hits = (jnp.argmax(logits, axis=-1) == labels).astype(losses.dtype)
        return cls((losses * weights).sum(), (hits * weights).sum(), weights.sum())

    def __add__(self, other: "Metrics") -> "Metrics":
        return jax.tree.map(operator.add, self, other)

    def total(self) -> "Metrics":
        """Wait for the device and return the sums over all entries, as Python floats.

        >>> Metrics(jnp.ones(3), jnp.zeros(3), jnp.full(3, 4.0)).total()
        Metrics(loss_sum=3.0, correct=0.0, count=12.0)
        """
        return jax.tree.map(lambda x: float(np.sum(x, dtype=np.float64)), jax.device_get(self))

    def loss(self) -> float:
        """Return the mean loss per example, of a total."""
        return float(self.loss_sum / self.count)

    def accuracy(self) -> float:
        """Return the share of examples classified correctly, of a total."""
        return float(self.correct / self.count)

    def per_step(self) -> list["Metrics"]:
        """Wait for the device and return one total per entry that holds examples.

        >>> [row.loss() for row in Metrics(jnp.ones(2), jnp.zeros(2), jnp.array([4.0, 0.0])).per_step()]
        [0.25]
        """
        entries = zip(*jax.tree.leaves(jax.device_get(self)), strict=True)
        return [Metrics(*map(float, entry)) for entry in entries if entry[2] > 0]
