"""LeNet-5 and its modern form.

| layer   | LeNet                  | modern       | output (28 x 28 input) |
|---------|------------------------|--------------|------------------------|
| conv1   | 5 x 5, padding 2       |              | 28 x 28 x 6            |
|         | sigmoid, average pool 2| ReLU, max    | 14 x 14 x 6            |
| conv2   | 5 x 5                  |              | 10 x 10 x 16           |
|         | sigmoid, average pool 2| ReLU, max    | 5 x 5 x 16             |
| dense1  | sigmoid                | ReLU         | 120                    |
| dense2  | sigmoid                | ReLU         | 84                     |
| dense3  |                        |              | num_classes            |

Sources: d2l 7.6; LeCun et al., Gradient-based learning applied to document recognition, 1998.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from flax import linen as nn

from jaxcnn.layers import (
    CanPickle,
    Conv,
    Dense,
    at_least_float32,
    avg_pool,
    flatten,
    max_pool,
    relu,
)


class LeNet(CanPickle):
    """LeNet-5 with sigmoids and average pooling; images [N, H, W, C] to logits [N, num_classes].

    Attributes:
        num_classes: number of logits; 0 for the 84 features before them.
        activation: after each layer but the last.
        pool: called as `pool(images, window=2, implementation=...)`.
        dtype: of the computation; parameters are float32, logits at least that.
        axis_name: unused (there is no BatchNorm); every model has it.
        implementation: 'auto', 'xla' or None, as for `jaxcnn.ops.conv2d`.

    Raises:
        ValueError: if the images are smaller than 12 x 12.

    >>> model = LeNet()
    >>> variables = model.init(jax.random.key(0), jax.numpy.zeros((1, 28, 28, 1)))
    >>> sum(p.size for p in jax.tree.leaves(variables))
    61706
    """

    num_classes: int = 10
    activation: Callable[[jax.Array], jax.Array] = nn.sigmoid
    pool: Callable[..., jax.Array] = avg_pool
    dtype: Any = None
    axis_name: str | None = None
    implementation: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Return the logits of images x; `train` changes nothing here."""
        conv = partial(
            Conv,
            activation=self.activation,
            dtype=self.dtype,
            implementation=self.implementation,
        )
        dense = partial(
            Dense,
            activation=self.activation,
            dtype=self.dtype,
            implementation=self.implementation,
        )
        pool = partial(self.pool, window=2, implementation=self.implementation)
        layers: list[Callable] = [
            conv(6, kernel_size=5, padding=2, name="conv1"),
            pool,
            conv(16, kernel_size=5, name="conv2"),
            pool,
            flatten,
            dense(120, name="dense1"),
            dense(84, name="dense2"),
        ]
        if self.num_classes:
            layers.append(dense(self.num_classes, activation=None, name="dense3"))
        return at_least_float32(nn.Sequential(layers)(x))


LeNetModern = partial(LeNet, activation=relu, pool=max_pool)  # d2l 7.6, exercise
