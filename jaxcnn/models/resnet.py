"""Residual networks.

| part | ResNet18                                         | output (96 x 96 input) |
|------|--------------------------------------------------|------------------------|
| b1   | 7 x 7 conv, stride 2; BatchNorm, ReLU; 3 x 3 max | 24 x 24 x 64           |
| b2   | 2 residual blocks                                | 24 x 24 x 64           |
| b3   | 2 residual blocks, the first at stride 2         | 12 x 12 x 128          |
| b4   | 2 residual blocks, the first at stride 2         | 6 x 6 x 256            |
| b5   | 2 residual blocks, the first at stride 2         | 3 x 3 x 512            |
| last | mean over the image, dense                       | num_classes            |

Sources: d2l 8.6; He et al., Deep residual learning for image recognition, 2016. As in
d2l, the convolutions keep their biases although BatchNorm follows.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
from flax import linen as nn

from jaxcnn.layers import (
    BatchNorm,
    Conv,
    Dense,
    Recomputed,
    at_least_float32,
    global_avg_pool,
    max_pool,
    relu,
)


class Residual(nn.Module):
    """Two 3 x 3 convolutions with BatchNorm, added to their input: [N, H, W, I] to [N, H', W', O].

    Attributes:
        num_channels: O; must equal I unless `use_1x1conv`.
        use_1x1conv: bring the input to O channels and the same stride by a 1 x 1 convolution.
        strides: of the first convolution (and the 1 x 1 one).
        dtype: of the computation; BatchNorm's statistics are float32.
        axis_name: mapped axis over which BatchNorm is synchronised.
        implementation: 'auto', 'xla' or None, as for `jaxcnn.ops.conv2d`.

    Raises:
        ValueError: if the input cannot be added because its shape changes.

    Source: d2l 8.6.2.

    >>> block = Residual(6, use_1x1conv=True, strides=2)
    >>> block.init_with_output(jax.random.key(0), jax.numpy.ones((4, 6, 6, 3)))[0].shape
    (4, 3, 3, 6)
    """

    num_channels: int
    use_1x1conv: bool = False
    strides: int = 1
    dtype: Any = None
    axis_name: str | None = None
    implementation: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Return the feature maps; with `train`, BatchNorm normalizes by the batch's statistics."""
        conv = partial(
            Conv, self.num_channels, dtype=self.dtype, implementation=self.implementation
        )
        norm = partial(
            BatchNorm,
            use_running_average=not train,
            dtype=self.dtype,
            axis_name=self.axis_name,
            implementation=self.implementation,
        )
        y = conv(3, strides=self.strides, padding=1, name="conv1")(x)
        y = relu(norm(name="bn1")(y), self.implementation)
        y = conv(3, padding=1, name="conv2")(y)
        y = norm(name="bn2")(y)
        if self.use_1x1conv:
            x = conv(1, strides=self.strides, name="conv3")(x)
        return add_shortcut(y, x, self.implementation)


def add_shortcut(y: jax.Array, x: jax.Array, implementation: str | None = None) -> jax.Array:
    """End a residual block: return relu(y + x), all of one shape.

    Args:
        y: what the block's convolutions return.
        x: the block's input, or its projection.
        implementation: of the ReLU; 'auto', 'xla' or None.

    Raises:
        ValueError: if the shapes differ.

    >>> add_shortcut(jax.numpy.array([-3.0, 3.0]), jax.numpy.ones(2)).tolist()
    [0.0, 4.0]
    """
    if x.shape != y.shape:
        raise ValueError(
            f"a residual block cannot add its input {x.shape} to its output {y.shape}; use "
            "use_1x1conv=True where channels or strides change the shape"
        )
    return relu(y + x, implementation)


class ResNet(nn.Module):
    """Stem, stages of residual blocks, global mean, dense; images to logits.

    Maps [N, H, W, C] to [N, num_classes]. Every stage but the first halves H and W,
    rounding up.

    Attributes:
        arch: (residual blocks, channels) of each stage.
        block: called as `block(channels, use_1x1conv=..., strides=..., name=..., dtype=...,
            axis_name=..., implementation=...)`, such as `Residual`. It is told to use a 1 x 1
            convolution where the shape changes.
        num_classes: number of logits; 0 for the features before them, as many as the last stage
            has channels.
        dtype: of the computation; parameters and BatchNorm's statistics are float32, logits at
            least that.
        axis_name: mapped axis over which BatchNorm is synchronised; None under plain `jit`.
        implementation: 'auto', 'xla' or None, as for `jaxcnn.ops.conv2d`.
        stem_channels: of the first convolution; those of the first stage unless given.
        stem_bias: whether the first convolution has a bias.
        recompute: whether to keep only each block's input for the backward pass, and compute the
            rest again: less memory for more time.

    Source: d2l 8.6.3.

    >>> model = ResNet(arch=((1, 4), (1, 8)))
    >>> variables = jax.eval_shape(model.init, jax.random.key(0), jax.numpy.zeros((1, 32, 32, 1)))
    >>> sorted(variables["params"])
    ['b1_bn', 'b1_conv', 'b2_0', 'b3_0', 'last']
    """

    arch: Sequence[tuple[int, int]]
    block: Callable[..., nn.Module] = Residual
    num_classes: int = 10
    dtype: Any = None
    axis_name: str | None = None
    implementation: str | None = None
    stem_channels: int | None = None
    stem_bias: bool = True
    recompute: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Return the logits of images x; with `train`, BatchNorm normalizes by the batch's."""
        conv = partial(Conv, dtype=self.dtype, implementation=self.implementation)
        norm = partial(
            BatchNorm,
            use_running_average=not train,
            dtype=self.dtype,
            axis_name=self.axis_name,
            implementation=self.implementation,
        )
        block = partial(
            self.block,
            dtype=self.dtype,
            axis_name=self.axis_name,
            implementation=self.implementation,
        )
        dense = partial(Dense, dtype=self.dtype, implementation=self.implementation)
        before = self.stem_channels or self.arch[0][1]
        stem: list[Callable] = [
            conv(before, 7, strides=2, padding=3, use_bias=self.stem_bias, name="b1_conv"),
            norm(name="b1_bn"),
            partial(relu, implementation=self.implementation),
            partial(max_pool, window=3, strides=2, padding=1, implementation=self.implementation),
        ]
        x = nn.Sequential(stem, name="b1")(x)  # d2l's parts: they only group the layers
        for stage, (num_blocks, channels) in enumerate(self.arch, start=2):
            blocks: list[Callable] = []
            for i in range(num_blocks):
                strides = 2 if i == 0 and stage > 2 else 1
                changes = strides > 1 or channels != before
                name = f"b{stage}_{i}"
                residual = block(channels, use_1x1conv=changes, strides=strides, name=name)
                keep = Recomputed if self.recompute else partial
                blocks.append(keep(residual, train=train))
                before = channels
            x = nn.Sequential(blocks, name=f"b{stage}")(x)
        head: list[Callable] = [global_avg_pool]
        if self.num_classes:
            head.append(dense(self.num_classes, name="last"))
        return at_least_float32(nn.Sequential(head, name="head")(x))


ResNet18 = partial(ResNet, arch=((2, 64), (2, 128), (2, 256), (2, 512)))  # d2l 8.6.3
