"""AlexNet.

| layer  |                                 | output (224 x 224 input) |
|--------|---------------------------------|--------------------------|
| conv1  | 11 x 11, stride 4, padding 1    | 54 x 54 x 96             |
|        | 3 x 3 max, stride 2             | 26 x 26 x 96             |
| conv2  | 5 x 5, padding 2                | 26 x 26 x 256            |
|        | 3 x 3 max, stride 2             | 12 x 12 x 256            |
| conv3  | 3 x 3, padding 1                | 12 x 12 x 384            |
| conv4  | 3 x 3, padding 1                | 12 x 12 x 384            |
| conv5  | 3 x 3, padding 1                | 12 x 12 x 256            |
|        | 3 x 3 max, stride 2             | 5 x 5 x 256              |
| dense1 | dropout                         | 4096                     |
| dense2 | dropout                         | 4096                     |
| dense3 |                                 | num_classes              |

A ReLU follows each layer but the last. Sources: d2l 8.1; Krizhevsky et al., ImageNet classification
with deep convolutional neural networks, 2012, whose groups and response normalization d2l leaves
out.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from flax import linen as nn

from jaxcnn.layers import Conv, Dense, Dropout, at_least_float32, flatten, max_pool, relu


class AlexNet(nn.Module):
    """Five convolutions and three dense layers; images [N, H, W, C] to logits [N, num_classes].

    Attributes:
        num_classes: number of logits; 0 for the 4096 features before them.
        dropout_rate: share of hidden units dropped in training.
        dtype: of the computation; parameters are float32, logits at least that.
        axis_name: mapped axis whose devices share the batch, for the masks of dropout.
        implementation: 'auto', 'xla' or None, as for `jaxcnn.ops.conv2d`.

    Raises:
        ValueError: if the images are smaller than 65 x 65.

    Source: d2l 8.1.2.

    >>> images = jax.ShapeDtypeStruct((1, 224, 224, 1), "float32")
    >>> variables = jax.eval_shape(AlexNet().init, jax.random.key(0), images)
    >>> sum(p.size for p in jax.tree.leaves(variables))
    46764746
    """

    num_classes: int = 10
    dropout_rate: float = 0.5
    dtype: Any = None
    axis_name: str | None = None
    implementation: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Return the logits of images x; with `train`, dropout draws from the 'dropout' key."""
        conv = partial(Conv, activation=relu, dtype=self.dtype, implementation=self.implementation)
        dense = partial(Dense, dtype=self.dtype, implementation=self.implementation)
        pool = partial(max_pool, window=3, strides=2, implementation=self.implementation)
        dropout = partial(Dropout, self.dropout_rate, not train, self.axis_name)
        layers: list[Callable] = [
            conv(96, 11, strides=4, padding=1, name="conv1"),
            pool,
            conv(256, 5, padding=2, name="conv2"),
            pool,
            conv(384, 3, padding=1, name="conv3"),
            conv(384, 3, padding=1, name="conv4"),
            conv(256, 3, padding=1, name="conv5"),
            pool,
            flatten,
            dense(4096, activation=relu, name="dense1"),
            dropout(),
            dense(4096, activation=relu, name="dense2"),
            dropout(),
        ]
        if self.num_classes:
            layers.append(dense(self.num_classes, name="dense3"))
        return at_least_float32(nn.Sequential(layers)(x))
