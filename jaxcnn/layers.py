"""Linen modules around `jaxcnn.ops`: the notebook's from-scratch layer and the models' layer."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxcnn.ops import avg_pool, conv2d, corr2d, max_pool
from jaxcnn.ops.sizes import IntOrPair, as_pair

__all__ = ["Conv", "Conv2D", "Dense", "avg_pool", "max_pool"]

# The notebook's `init_cnn`: Xavier uniform weights in every dense layer too.
Dense = partial(nn.Dense, kernel_init=nn.initializers.xavier_uniform())


class Conv2D(nn.Module):
    """The notebook's from-scratch layer: one kernel, one bias, one image.

    Maps [H, W] to [H - kh + 1, W - kw + 1]. Parameters: `kernel` [kh, kw], uniform in [0, 1), and
    `bias` [1], zero. Source: notebook 7.2.2.

    Attributes:
        kernel_size: (kh, kw) in pixels, or one number for both.

    >>> layer = Conv2D(kernel_size=(1, 2))
    >>> layer.init_with_output(jax.random.key(0), jnp.ones((6, 8)))[0].shape
    (6, 7)
    """

    kernel_size: IntOrPair

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Cross-correlate x [H, W] with the kernel and add the bias."""
        kernel = self.param("kernel", nn.initializers.uniform(1.0), as_pair(self.kernel_size))
        bias = self.param("bias", nn.initializers.zeros, (1,))
        return corr2d(x, kernel) + bias[0]


class Conv(nn.Module):
    """Convolution over a batch of images, with PyTorch's explicit padding.

    Maps [N, H, W, I] to [N, H', W', features]; see `jaxcnn.ops.conv2d` for sizes and errors.
    Parameters: `kernel` [kh, kw, I, features], Xavier uniform, and `bias` [features], zero.
    Source: notebook 7.3, 7.4 and 7.6 (`nn.Conv2d` with `init_cnn`).

    Attributes:
        features: output channels.
        kernel_size: pixels, one number or (height, width).
        strides: pixels from one output to the next.
        padding: zeros added on each side.
        use_bias: whether to add a bias per output channel.
        dtype: of the computation and the output (the dtype of the input unless given); the
            parameters stay in float32.

    >>> layer = Conv(features=6, kernel_size=5, padding=2)
    >>> layer.init_with_output(jax.random.key(0), jnp.ones((1, 28, 28, 1)))[0].shape
    (1, 28, 28, 6)
    """

    features: int
    kernel_size: IntOrPair
    strides: IntOrPair = 1
    padding: IntOrPair = 0
    use_bias: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Convolve images [N, H, W, I] to [N, H', W', features]."""
        shape = (*as_pair(self.kernel_size), images.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.xavier_uniform(), shape)
        bias = None
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
        images, kernel, bias = nn.dtypes.promote_dtype(images, kernel, bias, dtype=self.dtype)
        y = conv2d(images, kernel, self.strides, self.padding)
        return y if bias is None else y + jnp.broadcast_to(bias, y.shape)
