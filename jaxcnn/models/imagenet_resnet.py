"""Residual networks for ImageNet, with the paper's blocks.

| part | ResNet34     | ResNet50           | output (224 x 224 input)            |
|------|--------------|--------------------|-------------------------------------|
| b1   | 7 x 7 conv, stride 2; BatchNorm, ReLU; 3 x 3 max | 56 x 56 x 64         |
| b2   | 3 basic blocks | 3 bottlenecks    | 56 x 56 x 64, with bottlenecks 256  |
| b3   | 4            | 4                  | 28 x 28 x 128, 512                  |
| b4   | 6            | 6                  | 14 x 14 x 256, 1024                 |
| b5   | 3            | 3                  | 7 x 7 x 512, 2048                   |
| last | mean over the image, dense        | num_classes                         |

Source: He et al., Deep residual learning for image recognition, 2016, table 1. The convolutions
have no biases, for BatchNorm follows each of them, that of a shortcut too. A bottleneck has its
stride in the 3 x 3 convolution, as in torchvision (the paper: in the first 1 x 1), so that
torchvision's weights fit; see `jaxcnn.interop.from_torchvision`. Weights start as those of the
other models do, Xavier uniform, where the paper draws them as He et al. (2015) do.
"""

from functools import partial
from typing import Any

import jax
from flax import linen as nn

from jaxcnn.layers import BatchNorm, Conv, relu
from jaxcnn.models.resnet import ResNet, add_shortcut


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions added to their input: [N, H, W, I] to [N, H', W', O].

    d2l's `Residual` without the biases, and with BatchNorm behind the 1 x 1 convolution.

    Attributes:
        num_channels: O; must equal I unless `use_1x1conv`.
        use_1x1conv: bring the input to O channels and the same stride by a 1 x 1 convolution.
        strides: of the first convolution (and the 1 x 1 one).
        dtype: of the computation; BatchNorm's statistics are float32.
        axis_name: mapped axis over which BatchNorm is synchronised.
        implementation: 'auto', 'xla' or None, as for `jaxcnn.ops.conv2d`.

    Raises:
        ValueError: if the input cannot be added because its shape changes.

    Source: He et al., 2016, figure 5, left.

    >>> block = BasicBlock(6, use_1x1conv=True, strides=2)
    >>> images = jax.ShapeDtypeStruct((4, 6, 6, 3), "float32")
    >>> jax.eval_shape(block.init_with_output, jax.random.key(0), images)[0].shape
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
            Conv,
            self.num_channels,
            use_bias=False,
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
        y = conv(kernel_size=3, strides=self.strides, padding=1, name="conv1")(x)
        y = relu(norm(name="bn1")(y), self.implementation)
        y = conv(kernel_size=3, padding=1, name="conv2")(y)
        y = norm(name="bn2")(y)
        if self.use_1x1conv:
            x = norm(name="bn3")(conv(kernel_size=1, strides=self.strides, name="conv3")(x))
        return add_shortcut(y, x, self.implementation)


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions added to their input: [N, H, W, I] to [N, H', W', O].

    Attributes:
        num_channels: O; must equal I unless `use_1x1conv`.
        groups: of the 3 x 3 convolution's channels.
        bot_mul: channels of the 3 x 3 convolution, as a share of O.
        use_1x1conv: bring the input to O channels and the same stride by a 1 x 1 convolution.
        strides: of the 3 x 3 convolution (and the last 1 x 1 one).
        use_bias: whether the convolutions have biases.
        dtype: of the computation; BatchNorm's statistics are float32.
        axis_name: mapped axis over which BatchNorm is synchronised.
        implementation: 'auto', 'xla' or None, as for `jaxcnn.ops.conv2d`.

    Raises:
        ValueError: if the input cannot be added because its shape changes, or the channels are no
            multiple of the groups.

    Source: He et al., 2016, figure 5, right.

    >>> block = Bottleneck(8, use_1x1conv=True, strides=2)
    >>> images = jax.ShapeDtypeStruct((4, 6, 6, 3), "float32")
    >>> jax.eval_shape(block.init_with_output, jax.random.key(0), images)[0].shape
    (4, 3, 3, 8)
    """

    num_channels: int
    groups: int = 1
    bot_mul: float = 0.25
    use_1x1conv: bool = False
    strides: int = 1
    use_bias: bool = False
    dtype: Any = None
    axis_name: str | None = None
    implementation: str | None = None

    @property
    def bot_channels(self) -> int:
        """Channels of the 3 x 3 convolution."""
        return round(self.num_channels * self.bot_mul)

    @property
    def num_groups(self) -> int:
        """Groups of the 3 x 3 convolution."""
        return self.groups

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Return the feature maps; with `train`, BatchNorm normalizes by the batch's statistics."""
        conv = partial(
            Conv, use_bias=self.use_bias, dtype=self.dtype, implementation=self.implementation
        )
        norm = partial(
            BatchNorm,
            use_running_average=not train,
            dtype=self.dtype,
            axis_name=self.axis_name,
            implementation=self.implementation,
        )
        middle = partial(
            conv, self.bot_channels, 3, self.strides, padding=1, groups=self.num_groups
        )
        y = conv(self.bot_channels, 1, name="conv1")(x)
        y = relu(norm(name="bn1")(y), self.implementation)
        y = middle(name="conv2")(y)
        y = relu(norm(name="bn2")(y), self.implementation)
        y = conv(self.num_channels, 1, name="conv3")(y)
        y = norm(name="bn3")(y)
        if self.use_1x1conv:
            x = norm(name="bn4")(conv(self.num_channels, 1, self.strides, name="conv4")(x))
        return add_shortcut(y, x, self.implementation)


ResNet34 = partial(
    ResNet,
    arch=((3, 64), (4, 128), (6, 256), (3, 512)),
    block=BasicBlock,
    stem_bias=False,
)
ResNet50 = partial(
    ResNet,
    arch=((3, 256), (4, 512), (6, 1024), (3, 2048)),
    block=Bottleneck,
    stem_channels=64,
    stem_bias=False,
)
