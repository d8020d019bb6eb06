"""VGG: blocks of 3 x 3 convolutions, each block halving the image.

Sources: d2l 8.2; Simonyan and Zisserman, Very deep convolutional networks for large-scale
image recognition, 2014.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
from flax import linen as nn

from jaxcnn.layers import Conv, Dense, at_least_float32, flatten, max_pool, relu
from jaxcnn.ops.implementation import fast_in_loops
from jaxcnn.ops.memory import remat_in_chunks

# One (convolutions, channels) pair for each block.
VGG11 = ((1, 64), (1, 128), (2, 256), (2, 512), (2, 512))
VGG_NARROW = ((1, 16), (1, 32), (2, 64), (2, 128), (2, 128))  # d2l trains this one


class VGGBlock(nn.Module):
    """3 x 3 convolutions with ReLU, then 2 x 2 max pooling: [N, H, W, I] to [N, H/2, W/2, O].

    Attributes:
        num_convs: how many convolutions.
        out_channels: O, of each of them.
        dtype: of the computation.
        in_chunks: whether to go through the batch by chunks, on CPU and where that saves memory,
            with the gradient computing the block again; nothing within it can then be captured.

    >>> block = VGGBlock(num_convs=2, out_channels=16)
    >>> block.init_with_output(jax.random.key(0), jax.numpy.ones((1, 8, 8, 3)))[0].shape
    (1, 4, 4, 16)
    """

    num_convs: int
    out_channels: int
    dtype: Any = None
    in_chunks: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the block's feature maps."""
        if self.in_chunks and not self.is_initializing():
            whole = self.clone(parent=None, name=None, in_chunks=False)
            _, height, width, _ = x.shape
            image_bytes = height * width * self.out_channels * x.dtype.itemsize
            return remat_in_chunks(partial(whole.apply, self.variables), x, image_bytes)
        layers: list[Callable] = []
        for i in range(1, self.num_convs + 1):
            conv = Conv(self.out_channels, 3, padding=1, dtype=self.dtype, name=f"conv{i}")
            layers += [conv, relu]
        return nn.Sequential([*layers, partial(max_pool, window=2)])(x)


class VGG(nn.Module):
    """Blocks, then two hidden layers of 4096 units with dropout; images to logits.

    Maps [N, H, W, C] to [N, num_classes]. Each block halves H and W (rounding down), so
    five blocks need at least 32 x 32 pixels.

    Attributes:
        arch: (convolutions, channels) of each block, such as `VGG11`.
        num_classes: number of logits.
        dropout_rate: share of hidden units dropped in training.
        dtype: of the computation; parameters are float32, logits at least that.
        axis_name: unused (there is no BatchNorm); every model has it.

    Raises:
        ValueError: if the images are too small for the number of blocks.

    >>> model = VGG(arch=((1, 4), (1, 8)))
    >>> variables = jax.eval_shape(model.init, jax.random.key(0), jax.numpy.zeros((1, 8, 8, 1)))
    >>> list(variables["params"])
    ['block1', 'block2', 'dense1', 'dense2', 'dense3']
    """

    arch: Sequence[tuple[int, int]]
    num_classes: int = 10
    dropout_rate: float = 0.5
    dtype: Any = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Return the logits of images x; with `train`, dropout draws from the 'dropout' key."""
        # The first block's maps are the largest by far, and cheap: an image has few channels.
        watched = self.is_mutable_collection("intermediates")
        in_chunks = train and fast_in_loops(self.dtype or x.dtype) and not watched
        blocks = [
            VGGBlock(
                num_convs,
                out_channels,
                dtype=self.dtype,
                in_chunks=in_chunks and i == 1,
                name=f"block{i}",
            )
            for i, (num_convs, out_channels) in enumerate(self.arch, start=1)
        ]
        dense = partial(Dense, dtype=self.dtype)
        dropout = partial(nn.Dropout, self.dropout_rate, deterministic=not train)
        net = nn.Sequential(
            [
                *blocks,
                flatten,
                dense(4096, name="dense1"),
                relu,
                dropout(),
                dense(4096, name="dense2"),
                relu,
                dropout(),
                dense(self.num_classes, name="dense3"),
            ]
        )
        return at_least_float32(net(x))
