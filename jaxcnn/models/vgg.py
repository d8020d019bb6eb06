"""VGG: blocks of 3 x 3 convolutions, each block halving the image.

Sources: d2l 8.2; Simonyan and Zisserman, Very deep convolutional networks for large-scale image
recognition, 2014.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
from flax import linen as nn

from jaxcnn.layers import (
    Conv,
    Dense,
    Dropout,
    Recomputed,
    at_least_float32,
    flatten,
    image_by_image,
    max_pool,
    relu,
)


class VGGBlock(nn.Module):
    """3 x 3 convolutions with ReLU, then 2 x 2 max pooling: [N, H, W, I] to [N, H/2, W/2, O].

    Attributes:
        num_convs: how many convolutions.
        out_channels: O, of each of them.
        dtype: of the computation.
        implementation: 'auto', 'xla' or None, as for `jaxcnn.ops.conv2d`.

    Raises:
        ValueError: if the input is smaller than 2 x 2.

    Source: d2l 8.2.1.

    >>> block = VGGBlock(num_convs=2, out_channels=16)
    >>> block.init_with_output(jax.random.key(0), jax.numpy.ones((1, 8, 8, 3)))[0].shape
    (1, 4, 4, 16)
    """

    num_convs: int
    out_channels: int
    dtype: Any = None
    implementation: str | None = None

    @image_by_image
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the block's feature maps."""
        conv = partial(
            Conv,
            self.out_channels,
            kernel_size=3,
            padding=1,
            activation=relu,
            dtype=self.dtype,
            implementation=self.implementation,
        )
        convs = [conv(name=f"conv{i}") for i in range(1, self.num_convs + 1)]
        pool = partial(max_pool, window=2, implementation=self.implementation)
        return nn.Sequential([*convs, pool])(x)


class VGG(nn.Module):
    """Blocks, then two hidden layers with dropout; images to logits.

    Maps [N, H, W, C] to [N, num_classes]. Each block halves H and W (rounding down), so
    five blocks need at least 32 x 32 pixels.

    Attributes:
        arch: (convolutions, channels) of each block.
        num_classes: number of logits; 0 for the features before them.
        hidden_features: units of each of the two hidden layers.
        dropout_rate: share of hidden units dropped in training.
        dtype: of the computation; parameters are float32, logits at least that.
        axis_name: mapped axis whose devices share the batch, for the masks of dropout.
        implementation: 'auto', 'xla' or None, as for `jaxcnn.ops.conv2d`.
        recompute: whether to keep only each block's input for the backward pass, and compute the
            rest again: less memory for more time.

    Raises:
        ValueError: if the images are too small for the number of blocks.

    Source: d2l 8.2.2.

    >>> model = VGG(arch=((1, 4), (1, 8)), hidden_features=16)
    >>> variables = jax.eval_shape(model.init, jax.random.key(0), jax.numpy.zeros((1, 8, 8, 1)))
    >>> [variables["params"][f"dense{i}"]["kernel"].shape for i in (1, 2, 3)]
    [(32, 16), (16, 16), (16, 10)]
    """

    arch: Sequence[tuple[int, int]]
    num_classes: int = 10
    hidden_features: int = 4096
    dropout_rate: float = 0.5
    dtype: Any = None
    axis_name: str | None = None
    implementation: str | None = None
    recompute: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Return the logits of images x; with `train`, dropout draws from the 'dropout' key."""
        block = partial(VGGBlock, dtype=self.dtype, implementation=self.implementation)
        dense = partial(Dense, dtype=self.dtype, implementation=self.implementation)
        blocks = [
            block(num_convs, out_channels, name=f"block{i}")
            for i, (num_convs, out_channels) in enumerate(self.arch, start=1)
        ]
        dropout = partial(Dropout, self.dropout_rate, not train, self.axis_name)
        layers: list[Callable] = [
            *(map(Recomputed, blocks) if self.recompute else blocks),
            flatten,
            dense(self.hidden_features, activation=relu, name="dense1"),
            dropout(),
            dense(self.hidden_features, activation=relu, name="dense2"),
            dropout(),
        ]
        if self.num_classes:
            layers.append(dense(self.num_classes, name="dense3"))
        return at_least_float32(nn.Sequential(layers)(x))


VGG11 = partial(VGG, arch=((1, 64), (1, 128), (2, 256), (2, 512), (2, 512)))
VGGNarrow = partial(VGG, arch=((1, 16), (1, 32), (2, 64), (2, 128), (2, 128)))  # d2l trains it
