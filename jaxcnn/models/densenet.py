"""DenseNet: each convolution sees the outputs of all before it in its block.

| part       | DenseNet                                         | output (96 x 96 input) |
|------------|--------------------------------------------------|------------------------|
| b1         | 7 x 7 conv, stride 2; BatchNorm, ReLU; 3 x 3 max | 24 x 24 x 64           |
| dense_blk1 | 4 convolutions of 32 channels                    | 24 x 24 x 192          |
| tran_blk1  | 1 x 1 conv; 2 x 2 mean                           | 12 x 12 x 96           |
| dense_blk2 | 4 convolutions of 32 channels                    | 12 x 12 x 224          |
| tran_blk2  | 1 x 1 conv; 2 x 2 mean                           | 6 x 6 x 112            |
| dense_blk3 | 4 convolutions of 32 channels                    | 6 x 6 x 240            |
| tran_blk3  | 1 x 1 conv; 2 x 2 mean                           | 3 x 3 x 120            |
| dense_blk4 | 4 convolutions of 32 channels                    | 3 x 3 x 248            |
| last       | BatchNorm, ReLU; mean over the image, dense      | num_classes            |

BatchNorm and ReLU come before each convolution but the first. Sources: d2l 8.7; Huang et al.,
Densely connected convolutional networks, 2017, whose 1 x 1 bottlenecks d2l leaves out.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxcnn.layers import (
    BatchNorm,
    Conv,
    Dense,
    Recomputed,
    at_least_float32,
    avg_pool,
    global_avg_pool,
    max_pool,
    relu,
)


class DenseBlock(nn.Module):
    """3 x 3 convolutions, each of all before it: [N, H, W, I] to [N, H, W, I + num_convs O].

    Before each come BatchNorm and ReLU.

    Attributes:
        num_convs: how many convolutions.
        num_channels: O, of each of them: the growth rate.
        dtype: of the computation; BatchNorm's statistics are float32.
        axis_name: mapped axis over which BatchNorm is synchronised.
        implementation: 'auto', 'xla' or None, as for `jaxcnn.ops.conv2d`.

    Source: d2l 8.7.2.

    >>> block = DenseBlock(2, 10)
    >>> images = jax.ShapeDtypeStruct((4, 8, 8, 3), "float32")
    >>> jax.eval_shape(block.init_with_output, jax.random.key(0), images)[0].shape
    (4, 8, 8, 23)
    """

    num_convs: int
    num_channels: int
    dtype: Any = None
    axis_name: str | None = None
    implementation: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Return x and the feature maps; with `train`, BatchNorm normalizes by the batch's."""
        conv = partial(
            Conv,
            self.num_channels,
            kernel_size=3,
            padding=1,
            dtype=self.dtype,
            implementation=self.implementation,
        )
        norm = partial(
            BatchNorm,
            use_running_average=not train,
            dtype=self.dtype,
            axis_name=self.axis_name,
            implementation=self.implementation,
        )
        for i in range(1, self.num_convs + 1):
            y = relu(norm(name=f"bn{i}")(x), self.implementation)
            x = jnp.concatenate([x, conv(name=f"conv{i}")(y)], axis=-1)
        return x


class DenseNet(nn.Module):
    """Stem, dense blocks with transitions between them, mean, dense; images to logits.

    Maps [N, H, W, C] to [N, num_classes]. Each transition halves the channels, and H and W,
    rounding down.

    Attributes:
        num_channels: of the first convolution.
        growth_rate: channels that each further convolution adds.
        arch: convolutions of each dense block.
        num_classes: number of logits; 0 for the features before them.
        dtype: of the computation; parameters and BatchNorm's statistics are float32, logits at
            least that.
        axis_name: mapped axis over which BatchNorm is synchronised; None under plain `jit`.
        implementation: 'auto', 'xla' or None, as for `jaxcnn.ops.conv2d`.
        recompute: whether to keep only each block's input for the backward pass, and compute the
            rest again: less memory for more time.

    Raises:
        ValueError: if the images are too small for the number of blocks: with four, smaller than
            29 x 29.

    Source: d2l 8.7.4.

    >>> images = jax.ShapeDtypeStruct((1, 96, 96, 1), "float32")
    >>> variables = jax.eval_shape(DenseNet().init, jax.random.key(0), images)
    >>> sum(p.size for p in jax.tree.leaves(variables["params"]))
    758226
    """

    num_channels: int = 64
    growth_rate: int = 32
    arch: Sequence[int] = (4, 4, 4, 4)
    num_classes: int = 10
    dtype: Any = None
    axis_name: str | None = None
    implementation: str | None = None
    recompute: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Return the logits of images x; with `train`, BatchNorm normalizes by the batch's."""
        conv = partial(Conv, dtype=self.dtype, implementation=self.implementation)
        common: dict[str, Any] = {
            "dtype": self.dtype,
            "axis_name": self.axis_name,
            "implementation": self.implementation,
        }
        norm = partial(BatchNorm, use_running_average=not train, **common)
        activation = partial(relu, implementation=self.implementation)
        stem: list[Callable] = [
            conv(self.num_channels, 7, strides=2, padding=3, name="b1_conv"),
            norm(name="b1_bn"),
            activation,
            partial(max_pool, window=3, strides=2, padding=1, implementation=self.implementation),
        ]
        x = nn.Sequential(stem, name="b1")(x)  # d2l's parts: they only group the layers
        for i, num_convs in enumerate(self.arch, start=1):
            block = DenseBlock(num_convs, self.growth_rate, name=f"dense_blk{i}", **common)
            x = (Recomputed if self.recompute else partial)(block, train=train)(x)
            if i < len(self.arch):
                transition: list[Callable] = [
                    norm(name=f"tran_blk{i}_bn"),
                    activation,
                    conv(x.shape[-1] // 2, 1, name=f"tran_blk{i}_conv"),
                    partial(avg_pool, window=2, implementation=self.implementation),
                ]
                x = nn.Sequential(transition, name=f"tran_blk{i}")(x)
        head: list[Callable] = [norm(name="last_bn"), activation, global_avg_pool]
        if self.num_classes:
            dense = partial(Dense, dtype=self.dtype, implementation=self.implementation)
            head.append(dense(self.num_classes, name="last"))
        return at_least_float32(nn.Sequential(head, name="head")(x))
