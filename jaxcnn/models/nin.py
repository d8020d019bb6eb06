"""Network in network: convolutions with dense layers at each pixel, and a mean in place of a head.

| part   |                                     | output (224 x 224 input) |
|--------|-------------------------------------|--------------------------|
| block1 | 11 x 11, stride 4; 1 x 1; 1 x 1     | 54 x 54 x 96             |
|        | 3 x 3 max, stride 2                 | 26 x 26 x 96             |
| block2 | 5 x 5, padding 2; 1 x 1; 1 x 1      | 26 x 26 x 256            |
|        | 3 x 3 max, stride 2                 | 12 x 12 x 256            |
| block3 | 3 x 3, padding 1; 1 x 1; 1 x 1      | 12 x 12 x 384            |
|        | 3 x 3 max, stride 2; dropout        | 5 x 5 x 384              |
| last   | 3 x 3, padding 1; 1 x 1; 1 x 1      | 5 x 5 x num_classes      |
|        | mean over the image                 | num_classes              |

A ReLU follows each convolution, the last one too. Sources: d2l 8.3; Lin et al., Network in network,
2013.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
from flax import linen as nn

from jaxcnn.layers import (
    Conv,
    Dropout,
    Recomputed,
    at_least_float32,
    global_avg_pool,
    max_pool,
    relu,
)


class NiNBlock(nn.Module):
    """A convolution and two of 1 x 1, with ReLU: [N, H, W, I] to [N, H', W', O].

    Attributes:
        out_channels: O, of each of them.
        kernel_size: of the first, in pixels.
        strides: of the first.
        padding: of the first, zeros added on each side.
        dtype: of the computation.
        implementation: 'auto', 'xla' or None, as for `jaxcnn.ops.conv2d`.

    Raises:
        ValueError: if the kernel does not fit.

    Source: d2l 8.3.1 (`nin_block`).

    >>> block = NiNBlock(8, kernel_size=11, strides=4, padding=0)
    >>> images = jax.ShapeDtypeStruct((1, 31, 31, 3), "float32")
    >>> jax.eval_shape(block.init_with_output, jax.random.key(0), images)[0].shape
    (1, 6, 6, 8)
    """

    out_channels: int
    kernel_size: int
    strides: int
    padding: int
    dtype: Any = None
    implementation: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the block's feature maps."""
        conv = partial(
            Conv,
            self.out_channels,
            activation=relu,
            dtype=self.dtype,
            implementation=self.implementation,
        )
        first = partial(
            conv, kernel_size=self.kernel_size, strides=self.strides, padding=self.padding
        )
        layers = [
            first(name="conv1"),
            conv(kernel_size=1, name="conv2"),
            conv(kernel_size=1, name="conv3"),
        ]
        return nn.Sequential(layers)(x)


class NiN(nn.Module):
    """NiN blocks, each but the last with max pooling, then a mean; images to logits.

    Maps [N, H, W, C] to [N, num_classes].

    Attributes:
        arch: (channels, kernel size, strides, padding) of each block before the last.
        num_classes: channels of the last block, and number of logits; 0 for the mean of what it
            takes, 384 features.
        dropout_rate: share of the last block's inputs dropped in training.
        dtype: of the computation; parameters are float32, logits at least that.
        axis_name: mapped axis whose devices share the batch, for the masks of dropout.
        implementation: 'auto', 'xla' or None, as for `jaxcnn.ops.conv2d`.
        recompute: whether to keep only each block's input for the backward pass, and compute the
            rest again: less memory for more time.

    Raises:
        ValueError: if the images are smaller than 67 x 67.

    Source: d2l 8.3.2.

    >>> images = jax.ShapeDtypeStruct((1, 224, 224, 1), "float32")
    >>> variables = jax.eval_shape(NiN().init, jax.random.key(0), images)
    >>> list(variables["params"]), sum(p.size for p in jax.tree.leaves(variables))
    (['block1', 'block2', 'block3', 'last'], 1992166)
    """

    arch: Sequence[tuple[int, int, int, int]] = ((96, 11, 4, 0), (256, 5, 1, 2), (384, 3, 1, 1))
    num_classes: int = 10
    dropout_rate: float = 0.5
    dtype: Any = None
    axis_name: str | None = None
    implementation: str | None = None
    recompute: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Return the logits of images x; with `train`, dropout draws from the 'dropout' key."""
        block = partial(NiNBlock, dtype=self.dtype, implementation=self.implementation)
        pool = partial(max_pool, window=3, strides=2, implementation=self.implementation)
        layers: list[Callable] = []
        for i, (channels, kernel_size, strides, padding) in enumerate(self.arch, start=1):
            named = block(channels, kernel_size, strides, padding, name=f"block{i}")
            layers += [Recomputed(named) if self.recompute else named, pool]
        layers.append(Dropout(self.dropout_rate, not train, self.axis_name))
        if self.num_classes:
            layers.append(block(self.num_classes, 3, 1, 1, name="last"))
        layers.append(global_avg_pool)
        return at_least_float32(nn.Sequential(layers)(x))
