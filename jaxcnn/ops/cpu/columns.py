"""The convolution of tiny images as one matrix product.

In bfloat16, oneDNN's convolution of 3 x 3 pixels with 512 channels, the last of ResNet18's, runs at
a third of the rate of its other convolutions. The pixels that each output meets, laid side by side,
are a matrix: [N H' W', kh kw I] times the kernel, [kh kw I, O]. For the images' gradient, the
product of g and the transposed kernel is added up at each pixel over the outputs that met it.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn.ops.cpu.gemm import side_by_side
from jaxcnn.ops.cpu.half import as_bits, from_bits
from jaxcnn.ops.cpu.products import product, then_sigmoid
from jaxcnn.ops.geometry import Geometry


def column_bytes(channels: int, geometry: Geometry) -> int:
    """Return the bytes of what is laid side by side for one image, in bfloat16."""
    (kh, kw), (height, width) = geometry.window, geometry.output
    return 2 * height * width * kh * kw * channels


def forward(
    images: jax.Array,
    kernel: jax.Array,
    geometry: Geometry,
    sigmoid_bias: jax.Array | None = None,
) -> jax.Array:
    """Return the convolution [N, H', W', O] in float32; see `select.forward`.

    Args:
        images: [N, H, W, I] in bfloat16.
        kernel: [kh, kw, I, O] in bfloat16.
        geometry: of the convolution.
        sigmoid_bias: [O] in float32; if given, return sigmoid(the convolution + it).
    """
    (kh, kw), (s, t), (height, width) = geometry.window, geometry.strides, geometry.output
    features = kernel.shape[3]
    x = as_bits(side_by_side(images, geometry.padding, kw, t, width))
    rows = [x[:, a : a + s * (height - 1) + 1 : s] for a in range(kh)]
    columns = from_bits(jnp.concatenate(rows, axis=3), images.dtype)
    by_pixel = columns.reshape(-1, columns.shape[3])
    y = product(by_pixel, kernel.reshape(-1, features), dtype=jnp.float32)
    return then_sigmoid(y.reshape(len(images), height, width, features), sigmoid_bias)


def images_gradient(g: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Return the gradient with respect to the images, [N, H, W, I], in float32.

    Args:
        g: [N, H', W', O] in bfloat16.
        kernel: [kh, kw, I, O] in bfloat16.
        geometry: of the convolution.
    """
    kh, kw, channels, features = kernel.shape
    by_pixel, by_tap = g.reshape(-1, features), kernel.reshape(-1, features)
    given = product(by_pixel, by_tap, transpose_b=True, dtype=jnp.float32)
    given = given.reshape(*g.shape[:3], kh, kw, channels)
    total = jnp.zeros((len(g), *geometry.image, channels), jnp.float32)
    for a in range(kh):
        for b in range(kw):
            total += lax.pad(given[:, :, :, a, b], jnp.float32(0), _place(a, b, geometry))
    return total


def _place(a: int, b: int, geometry: Geometry) -> list[tuple[int, int, int]]:
    """Return how to pad what the kernel's pixel (a, b) met, so that it lies in the images."""
    places = [(0, 0, 0)]
    for axis, tap in enumerate((a, b)):
        stride, first = geometry.strides[axis], tap - geometry.padding[axis]
        met = stride * (geometry.output[axis] - 1) + 1
        places.append((first, geometry.image[axis] - met - first, stride - 1))
    return [*places, (0, 0, 0)]
