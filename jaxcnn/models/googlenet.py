"""GoogLeNet: Inception blocks, which see the image at several sizes at once.

| part | GoogLeNet                                        | output (96 x 96 input) |
|------|--------------------------------------------------|------------------------|
| b1   | 7 x 7 conv, stride 2; 3 x 3 max, stride 2        | 24 x 24 x 64           |
| b2   | 1 x 1 conv; 3 x 3 conv; 3 x 3 max, stride 2      | 12 x 12 x 192          |
| b3   | 2 Inception blocks; 3 x 3 max, stride 2          | 6 x 6 x 480            |
| b4   | 5 Inception blocks; 3 x 3 max, stride 2          | 3 x 3 x 832            |
| b5   | 2 Inception blocks; mean over the image          | 1024                   |
| last | dense                                            | num_classes            |

A ReLU follows each convolution. Sources: d2l 8.4; Szegedy et al., Going deeper with convolutions,
2015, table 1, whose auxiliary classifiers and dropout d2l leaves out.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxcnn.layers import (
    Conv,
    Dense,
    Recomputed,
    at_least_float32,
    global_avg_pool,
    max_pool,
    relu,
)

Channels = tuple[int, tuple[int, int], tuple[int, int], int]  # c1 to c4 of an Inception block

STAGES: tuple[tuple[Channels, ...], ...] = (
    (
        (64, (96, 128), (16, 32), 32),
        (128, (128, 192), (32, 96), 64),
    ),
    (
        (192, (96, 208), (16, 48), 64),
        (160, (112, 224), (24, 64), 64),
        (128, (128, 256), (24, 64), 64),
        (112, (144, 288), (32, 64), 64),
        (256, (160, 320), (32, 128), 128),
    ),
    (
        (256, (160, 320), (32, 128), 128),
        (384, (192, 384), (48, 128), 128),
    ),
)


class Inception(nn.Module):
    """Four branches, concatenated: [N, H, W, I] to [N, H, W, c1 + c2[1] + c3[1] + c4].

    Attributes:
        c1: channels of the first branch, a 1 x 1 convolution.
        c2: of the 1 x 1 and the 3 x 3 convolution of the second.
        c3: of the 1 x 1 and the 5 x 5 convolution of the third.
        c4: of the 1 x 1 convolution behind the 3 x 3 max pooling of the fourth.
        dtype: of the computation.
        implementation: 'auto', 'xla' or None, as for `jaxcnn.ops.conv2d`.

    Source: d2l 8.4.1.

    >>> block = Inception(2, (1, 3), (1, 4), 5)
    >>> images = jax.ShapeDtypeStruct((1, 6, 6, 3), "float32")
    >>> jax.eval_shape(block.init_with_output, jax.random.key(0), images)[0].shape
    (1, 6, 6, 14)
    """

    c1: int
    c2: tuple[int, int]
    c3: tuple[int, int]
    c4: int
    dtype: Any = None
    implementation: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the feature maps of all branches."""
        conv = partial(Conv, activation=relu, dtype=self.dtype, implementation=self.implementation)
        pool = partial(max_pool, window=3, strides=1, padding=1, implementation=self.implementation)
        branches: list[list[Callable]] = [
            [conv(self.c1, 1, name="b1_1")],
            [conv(self.c2[0], 1, name="b2_1"), conv(self.c2[1], 3, padding=1, name="b2_2")],
            [conv(self.c3[0], 1, name="b3_1"), conv(self.c3[1], 5, padding=2, name="b3_2")],
            [pool, conv(self.c4, 1, name="b4_2")],
        ]
        return jnp.concatenate([nn.Sequential(branch)(x) for branch in branches], axis=-1)


class GoogLeNet(nn.Module):
    """Two convolutional stages, stages of Inception blocks, mean, dense; images to logits.

    Maps [N, H, W, C] to [N, num_classes]. The first stage quarters H and W, and each other but
    the last halves them, rounding up.

    Attributes:
        arch: the stages: (c1, c2, c3, c4) of each Inception block.
        num_classes: number of logits; 0 for the 1024 features before them.
        dtype: of the computation; parameters are float32, logits at least that.
        axis_name: unused (there is no BatchNorm); every model has it.
        implementation: 'auto', 'xla' or None, as for `jaxcnn.ops.conv2d`.
        recompute: whether to keep only each block's input for the backward pass, and compute the
            rest again: less memory for more time.

    Source: d2l 8.4.2 (`GoogleNet`).

    >>> images = jax.ShapeDtypeStruct((1, 96, 96, 1), "float32")
    >>> variables = jax.eval_shape(GoogLeNet().init, jax.random.key(0), images)
    >>> sum(p.size for p in jax.tree.leaves(variables))
    5977530
    """

    arch: Sequence[Sequence[Channels]] = STAGES
    num_classes: int = 10
    dtype: Any = None
    axis_name: str | None = None
    implementation: str | None = None
    recompute: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Return the logits of images x; `train` changes nothing here."""
        conv = partial(Conv, activation=relu, dtype=self.dtype, implementation=self.implementation)
        pool = partial(max_pool, window=3, strides=2, padding=1, implementation=self.implementation)
        inception = partial(Inception, dtype=self.dtype, implementation=self.implementation)
        parts: list[list[Callable]] = [
            [conv(64, 7, strides=2, padding=3, name="b1_conv"), pool],
            [conv(64, 1, name="b2_conv1"), conv(192, 3, padding=1, name="b2_conv2"), pool],
        ]
        ends: list[Callable] = [*[pool] * (len(self.arch) - 1), global_avg_pool]
        for stage, (blocks, end) in enumerate(zip(self.arch, ends, strict=True), start=3):
            named = [inception(*each, name=f"b{stage}_{i}") for i, each in enumerate(blocks)]
            parts.append([*(map(Recomputed, named) if self.recompute else named), end])
        for i, part in enumerate(parts, start=1):
            x = nn.Sequential(part, name=f"b{i}")(x)  # d2l's parts: they only group the layers
        if self.num_classes:
            dense = partial(Dense, dtype=self.dtype, implementation=self.implementation)
            x = dense(self.num_classes, name="last")(x)
        return at_least_float32(x)
