"""What a convolution's operands leave open, and its three passes as XLA has them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn.ops.sizes import conv_output_size


class Geometry(NamedTuple):
    """What the shapes of two operands leave open; pairs are (vertical, horizontal).

    Attributes:
        image: (H, W) of the images, without padding.
        window: (kh, kw) of the kernel.
        strides: pixels from one place of the window to the next.
        padding: zeros on each side of the image.
        precision: of the products on GPU and TPU.
    """

    image: tuple[int, int]
    window: tuple[int, int]
    strides: tuple[int, int]
    padding: tuple[int, int]
    precision: lax.PrecisionLike = None

    @property
    def output(self) -> tuple[int, int]:
        """(H', W') of the convolution."""
        sizes = zip(self.image, self.window, self.padding, self.strides, strict=True)
        height, width = (conv_output_size(*size) for size in sizes)
        return height, width


def xla_forward(images: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Return the convolution [N, H', W', O] as XLA has it.

    Args:
        images: [N, H, W, I].
        kernel: [kh, kw, I, O], of the same dtype.
        geometry: of the convolution.
    """
    return lax.conv_general_dilated(
        images,
        kernel,
        window_strides=geometry.strides,
        padding=[(p, p) for p in geometry.padding],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=geometry.precision,
    )


def xla_forward_sigmoid(
    images: jax.Array, kernel: jax.Array, bias: jax.Array, geometry: Geometry
) -> jax.Array:
    """Return sigmoid(`xla_forward` + bias [O])."""
    return then_sigmoid(xla_forward(images, kernel, geometry), bias)


def then_sigmoid(y: jax.Array, bias: jax.Array | None) -> jax.Array:
    """Return sigmoid(y + bias) of y [..., O] and bias [O], or y itself where there is no bias."""
    return y if bias is None else jax.nn.sigmoid(y + jnp.broadcast_to(bias, y.shape))


def xla_images_gradient(g: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Return the gradient by the images [N, H, W, I] of <forward, g>, as XLA has it."""
    images = jax.ShapeDtypeStruct((g.shape[0], *geometry.image, kernel.shape[2]), g.dtype)
    return jax.linear_transpose(lambda x: xla_forward(x, kernel, geometry), images)(g)[0]


def xla_kernel_gradient(images: jax.Array, g: jax.Array, geometry: Geometry) -> jax.Array:
    """Return the gradient by the kernel [kh, kw, I, O] of <forward, g>, as XLA has it."""
    kernel = jax.ShapeDtypeStruct((*geometry.window, images.shape[3], g.shape[3]), g.dtype)
    return jax.linear_transpose(lambda k: xla_forward(images, k, geometry), kernel)(g)[0]
