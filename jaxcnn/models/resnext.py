"""ResNeXt: residual blocks whose 3 x 3 convolutions have groups.

| part | ResNeXt50 (32 x 4d)                                | output (224 x 224 input) |
|------|----------------------------------------------------|--------------------------|
| b1   | 7 x 7 conv, stride 2; BatchNorm, ReLU; 3 x 3 max   | 56 x 56 x 64             |
| b2   | 3 blocks with 32 groups of 4 channels              | 56 x 56 x 256            |
| b3   | 4 blocks with 32 groups of 8, the first at stride 2| 28 x 28 x 512            |
| b4   | 6 blocks with 32 groups of 16                      | 14 x 14 x 1024           |
| b5   | 3 blocks with 32 groups of 32                      | 7 x 7 x 2048             |
| last | mean over the image, dense                         | num_classes              |

Sources: d2l 8.6.5; Xie et al., Aggregated residual transformations for deep neural networks, 2017,
table 1. The network is the paper's, without biases; the block of d2l, which trains no ResNeXt, has
them. Weights start Xavier uniform.
"""

from functools import partial

from jaxcnn.models.imagenet_resnet import Bottleneck
from jaxcnn.models.resnet import ResNet


class ResNeXtBottleneck(Bottleneck):
    """The paper's block: a `Bottleneck` twice as wide, in 32 groups.

    Source: Xie et al., 2017, figure 3 (c).

    >>> import jax
    >>> block = ResNeXtBottleneck(256)
    >>> images = jax.ShapeDtypeStruct((1, 56, 56, 256), "float32")
    >>> jax.eval_shape(block.init, jax.random.key(0), images)["params"]["conv2"]["kernel"].shape
    (3, 3, 4, 128)
    """

    groups: int = 32
    bot_mul: float = 0.5


class ResNeXtBlock(Bottleneck):
    """d2l's block: [N, H, W, I] to [N, H', W', num_channels]; its convolutions have biases.

    Attributes, where they differ from those of `Bottleneck`:
        groups: channels of each group. d2l's text calls it the number of groups, but its code
            divides: of `num_channels * bot_mul` channels, `groups` form a group.
        bot_mul: channels of the 3 x 3 convolution, as a multiple of `num_channels`.

    Source: d2l 8.6.5.

    >>> import jax
    >>> block = ResNeXtBlock(32, 16, 1)
    >>> images = jax.ShapeDtypeStruct((4, 96, 96, 32), "float32")
    >>> y, variables = jax.eval_shape(block.init_with_output, jax.random.key(0), images)
    >>> y.shape, variables["params"]["conv2"]["kernel"].shape
    ((4, 96, 96, 32), (3, 3, 16, 32))
    """

    groups: int = 16
    bot_mul: float = 1.0
    use_bias: bool = True

    @property
    def num_groups(self) -> int:
        """Groups of the 3 x 3 convolution."""
        if self.groups < 1 or self.bot_channels % self.groups:
            raise ValueError(
                f"{self.bot_channels} channels cannot be divided into groups of {self.groups}; "
                "give groups= a divisor"
            )
        return self.bot_channels // self.groups


ResNeXt50 = partial(
    ResNet,
    arch=((3, 256), (4, 512), (6, 1024), (3, 2048)),
    block=ResNeXtBottleneck,
    stem_channels=64,
    stem_bias=False,
)
