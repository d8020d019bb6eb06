"""Networks for small images, with few parameters or few operations.

| part   | SmallNetTiny                                | output (28 x 28 input) |
|--------|---------------------------------------------|------------------------|
| stem   | 3 x 3 conv; BatchNorm, ReLU                 | 28 x 28 x 16           |
| stage1 | 3 x 3 conv, 2 x 2 max; BatchNorm, ReLU      | 14 x 14 x 32           |
|        | 3 x 3 conv; BatchNorm, ReLU; added to these | 14 x 14 x 32           |
| stage2 | the same                                    | 7 x 7 x 64             |
| last   | maximum over the image; dense, halved       | num_classes            |

SmallNetFast has a stem of 5 x 5 and 2 x 2 max, and stages of 64 and 128 channels; SmallNetBest has
32 channels in the stem, and stages of 64, 128 and 256.

Source: Page, How to train your ResNet, 2018: its ResNet9 has such stages (with two convolutions in
the second line), the maximum over the image and smaller logits.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
from flax import linen as nn

from jaxcnn.layers import (
    BatchNorm,
    Conv,
    Dense,
    at_least_float32,
    global_max_pool,
    max_pool,
    relu,
)


class ConvBlock(nn.Module):
    """A convolution without bias, BatchNorm and ReLU: [N, H, W, I] to [N, H', W', O].

    Attributes:
        features: O.
        kernel_size: in pixels, odd; the convolution keeps H and W.
        pool: whether 2 x 2 max pooling follows the convolution: H' and W' are half of H and W,
            rounded down.
        dtype: of the computation; BatchNorm's statistics are float32.
        axis_name: mapped axis over which BatchNorm is synchronised.
        implementation: 'auto', 'xla' or None, as for `jaxcnn.ops.conv2d`.

    Raises:
        ValueError: if the kernel's size is even, or the image has no pixels left to pool.

    >>> block = ConvBlock(8, pool=True)
    >>> block.init_with_output(jax.random.key(0), jax.numpy.ones((1, 5, 6, 3)))[0].shape
    (1, 2, 3, 8)
    """

    features: int
    kernel_size: int = 3
    pool: bool = False
    dtype: Any = None
    axis_name: str | None = None
    implementation: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Return the feature maps; with `train`, BatchNorm normalizes by the batch's statistics."""
        if self.kernel_size % 2 == 0:
            raise ValueError(
                f"kernel_size is {self.kernel_size}; it must be odd, so that the convolution keeps "
                "the image's size"
            )
        x = Conv(
            self.features,
            self.kernel_size,
            padding=self.kernel_size // 2,
            use_bias=False,
            dtype=self.dtype,
            implementation=self.implementation,
            name="conv",
        )(x)
        if self.pool:  # BatchNorm and ReLU have a quarter to do
            x = max_pool(x, 2, implementation=self.implementation)
        x = BatchNorm(
            use_running_average=not train,
            dtype=self.dtype,
            axis_name=self.axis_name,
            implementation=self.implementation,
            name="bn",
        )(x)
        return relu(x, self.implementation)


class SmallNet(nn.Module):
    """Stem, stages of two convolutions, maximum over the image, dense; images to logits.

    Maps [N, H, W, C] to [N, num_classes]. Each stage halves H and W, rounding down.

    Attributes:
        arch: channels of each stage.
        stem_channels: of the first convolution.
        stem_kernel_size: likewise, in pixels; odd.
        stem_pool: whether 2 x 2 max pooling follows the first convolution, too.
        logit_scale: factor of the logits.
        num_classes: number of logits; 0 for the features before them, as many as the last stage
            has channels.
        dtype: of the computation; parameters and BatchNorm's statistics are float32, logits at
            least that.
        axis_name: mapped axis over which BatchNorm is synchronised; None under plain `jit`.
        implementation: 'auto', 'xla' or None, as for `jaxcnn.ops.conv2d`.

    Raises:
        ValueError: if the images are too small to be halved so often, or the stem's kernel is of an
            even size.

    >>> model = SmallNet(arch=(8, 16), stem_channels=4)
    >>> variables = jax.eval_shape(model.init, jax.random.key(0), jax.numpy.zeros((1, 28, 28, 1)))
    >>> sorted(variables["params"])
    ['last', 'stage1', 'stage1_residual', 'stage2', 'stage2_residual', 'stem']
    """

    arch: Sequence[int]
    stem_channels: int
    stem_kernel_size: int = 3
    stem_pool: bool = False
    logit_scale: float = 0.5
    num_classes: int = 10
    dtype: Any = None
    axis_name: str | None = None
    implementation: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Return the logits of images x; with `train`, BatchNorm normalizes by the batch."""
        block = partial(
            ConvBlock,
            dtype=self.dtype,
            axis_name=self.axis_name,
            implementation=self.implementation,
        )
        x = block(self.stem_channels, self.stem_kernel_size, self.stem_pool, name="stem")(x, train)
        for i, channels in enumerate(self.arch, start=1):
            x = block(channels, pool=True, name=f"stage{i}")(x, train)
            x = x + block(channels, name=f"stage{i}_residual")(x, train)
        x = global_max_pool(x)
        if not self.num_classes:
            return at_least_float32(x)
        last = Dense(
            self.num_classes, dtype=self.dtype, implementation=self.implementation, name="last"
        )
        return at_least_float32(last(x)) * self.logit_scale


SmallNetTiny = partial(SmallNet, arch=(32, 64), stem_channels=16)
SmallNetFast = partial(
    SmallNet, arch=(64, 128), stem_channels=32, stem_kernel_size=5, stem_pool=True
)
SmallNetBest = partial(SmallNet, arch=(64, 128, 256), stem_channels=32)
