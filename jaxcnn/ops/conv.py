"""Cross-correlation in the book's layouts, and the batched convolution that the layers use."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxcnn.ops import primitives
from jaxcnn.ops.geometry import Geometry, xla_forward, xla_forward_sigmoid
from jaxcnn.ops.implementation import choose_implementation
from jaxcnn.ops.sizes import IntOrPair, as_pair, conv_output_size


def conv2d(
    images: jax.Array,
    kernel: jax.Array,
    strides: IntOrPair = 1,
    padding: IntOrPair = 0,
    precision: lax.PrecisionLike = None,
    implementation: str | None = None,
) -> jax.Array:
    """Convolve a batch of images, the deep-learning way (cross-correlation, no flip).

        y[n, i, j, o] = sum over a, b, c of x[n, s i + a - p, s j + b - p, c] k[a, b, c, o]

    Args:
        images: [N, H, W, I].
        kernel: [kh, kw, I, O], of the same dtype.
        strides: s, one number or (vertical, horizontal).
        padding: p, zeros added on each side, as in PyTorch: `padding=1` adds a row above and a row
            below also at stride 2, where XLA's 'SAME' adds one below only.
        precision: of the products on GPU and TPU; see `jax.lax.Precision`.
        implementation: 'auto' for what is fastest on the platform, 'xla' for XLA's own convolution;
            None for what `JAXCNN_IMPLEMENTATION` in the environment says, 'auto' unless set.

    Returns:
        [N, H', W', O] with H' = conv_output_size(H, kh, p, s), in the dtype of the input.

    Raises:
        ValueError: if a rank or the channels do not match, the kernel does not fit, or the
            implementation is unknown.

    >>> conv2d(jnp.ones((4, 8, 8, 3)), jnp.ones((3, 3, 3, 6)), strides=2, padding=1).shape
    (4, 4, 4, 6)
    """
    images, geometry = _place(images, kernel, strides, padding, precision)
    if _is_fast(implementation, images, kernel):
        return primitives.conv(images, kernel, geometry)
    return xla_forward(images, kernel, geometry)


def conv2d_sigmoid(
    images: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    strides: IntOrPair = 1,
    padding: IntOrPair = 0,
    precision: lax.PrecisionLike = None,
    implementation: str | None = None,
) -> jax.Array:
    """Return sigmoid(`conv2d` + bias), which on CPU takes one pass over memory instead of two.

    Args:
        images: [N, H, W, I].
        kernel: [kh, kw, I, O], of the same dtype.
        bias: [O], of the same dtype.
        strides: as for `conv2d`.
        padding: as for `conv2d`.
        precision: as for `conv2d`.
        implementation: as for `conv2d`.

    Returns:
        [N, H', W', O], as `conv2d`.

    Raises:
        ValueError: as `conv2d`, and if the bias is not [O].

    >>> conv2d_sigmoid(jnp.ones((4, 8, 8, 3)), jnp.zeros((3, 3, 3, 6)), jnp.zeros(6))[0, 0, 0, 0]
    Array(0.5, dtype=float32)
    """
    images, geometry = _place(images, kernel, strides, padding, precision)
    if bias.shape != kernel.shape[3:]:
        raise ValueError(
            f"conv2d_sigmoid takes a bias [O] for a kernel [kh, kw, I, O], got bias {bias.shape} "
            f"and kernel {kernel.shape}"
        )
    if _is_fast(implementation, images, kernel, bias):
        return primitives.conv_sigmoid(images, kernel, bias, geometry)
    return xla_forward_sigmoid(images, kernel, bias, geometry)


def _place(
    images: jax.Array,
    kernel: jax.Array,
    strides: IntOrPair,
    padding: IntOrPair,
    precision: lax.PrecisionLike,
) -> tuple[jax.Array, Geometry]:
    """Return the images and where the kernel goes on them, once all is found to fit."""
    if images.ndim != 4 or kernel.ndim != 4 or images.shape[3] != kernel.shape[2]:
        raise ValueError(
            "conv2d takes images [N, H, W, I] and a kernel [kh, kw, I, O] with the same number of "
            f"input channels I, got images {images.shape} and kernel {kernel.shape}"
        )
    strides, padding = as_pair(strides), as_pair(padding)
    for axis in (0, 1):  # refuse here what XLA would turn into an empty output
        conv_output_size(images.shape[axis + 1], kernel.shape[axis], padding[axis], strides[axis])
    if any(k == 2 and s > 1 and p for k, s, p in zip(kernel.shape, strides, padding, strict=False)):
        # On CPU, XLA's simplifier (jaxlib 0.10.2) aborts the process on the gradient of some such
        # convolutions, of 6 x 3 pixels with a 2 x 2 kernel, stride 2 and padding (1, 0) for one.
        # Padding the images apart keeps it from the rewrite that fails.
        images = jnp.pad(images, ((0, 0), *((p, p) for p in padding), (0, 0)))
        padding = (0, 0)
    (_, height, width, _), (kh, kw, _, _) = images.shape, kernel.shape
    return images, Geometry((height, width), (kh, kw), strides, padding, precision)


def _is_fast(implementation: str | None, *operands: jax.Array) -> bool:
    """Return whether the fast algorithms are wanted, and know the operands' dtype."""
    wanted = choose_implementation(implementation) != "xla"
    return wanted and all(x.dtype == jnp.float32 for x in operands)


def corr2d(x: ArrayLike, k: ArrayLike) -> jax.Array:
    """Cross-correlate one image with one kernel.

        y[i, j] = sum over a, b of x[i + a, j + b] k[a, b]

    Args:
        x: [H, W].
        k: [kh, kw].

    Returns:
        [H - kh + 1, W - kw + 1].

    Raises:
        ValueError: if a rank is not 2 or the kernel is larger than the image.

    Source: d2l 7.2.1.

    >>> corr2d(jnp.arange(9.0).reshape(3, 3), jnp.arange(4.0).reshape(2, 2))
    Array([[19., 25.],
           [37., 43.]], dtype=float32)
    """
    x, k = jnp.asarray(x), jnp.asarray(k)
    _check("corr2d", x, "[H, W]", k, "[kh, kw]")
    return corr2d_multi_in_out(x[None], k[None, None])[0]


def corr2d_multi_in(x: ArrayLike, k: ArrayLike) -> jax.Array:
    """Cross-correlate each input channel with its kernel and add the results.

    Args:
        x: [C, H, W].
        k: [C, kh, kw].

    Returns:
        [H - kh + 1, W - kw + 1].

    Raises:
        ValueError: if a rank is not 3, the channels differ or the kernel is larger than the image.

    Source: d2l 7.4.1.

    >>> x = jnp.arange(9.0).reshape(1, 3, 3)
    >>> k = jnp.arange(4.0).reshape(1, 2, 2)
    >>> corr2d_multi_in(jnp.concatenate([x, x + 1]), jnp.concatenate([k, k + 1]))
    Array([[ 56.,  72.],
           [104., 120.]], dtype=float32)
    """
    x, k = jnp.asarray(x), jnp.asarray(k)
    _check("corr2d_multi_in", x, "[C, H, W]", k, "[C, kh, kw]", channels=(0, 0))
    return corr2d_multi_in_out(x, k[None])[0]


def corr2d_multi_in_out(x: ArrayLike, k: ArrayLike) -> jax.Array:
    """Cross-correlate an image of several channels with one kernel per output channel.

    Args:
        x: [I, H, W].
        k: [O, I, kh, kw].

    Returns:
        [O, H - kh + 1, W - kw + 1], in the dtype that x and k promote to. Products are taken at
        the highest precision of the platform, so that the book's numbers hold on TPU as well.

    Raises:
        ValueError: if a rank or the channels do not match, or the kernel is larger than the image.

    Source: d2l 7.4.2.

    >>> corr2d_multi_in_out(jnp.ones((2, 3, 3)), jnp.ones((3, 2, 2, 2))).shape
    (3, 2, 2)
    """
    x, k = jnp.asarray(x), jnp.asarray(k)
    _check("corr2d_multi_in_out", x, "[I, H, W]", k, "[O, I, kh, kw]", channels=(0, 1))
    dtype = jnp.promote_types(x.dtype, k.dtype)
    image = x.astype(dtype).transpose(1, 2, 0)[None]  # CHW -> NHWC
    kernel = k.astype(dtype).transpose(2, 3, 1, 0)  # OIHW -> HWIO
    return conv2d(image, kernel, precision=lax.Precision.HIGHEST)[0].transpose(2, 0, 1)


def corr2d_multi_in_out_1x1(x: ArrayLike, k: ArrayLike) -> jax.Array:
    """Cross-correlate with 1 x 1 kernels: one matrix product over the channels of each pixel.

    Args:
        x: [I, H, W].
        k: [O, I, 1, 1].

    Returns:
        [O, H, W], equal to `corr2d_multi_in_out(x, k)` up to rounding.

    Raises:
        ValueError: if a rank or the channels do not match, or the kernel is not 1 x 1.

    Source: d2l 7.4.3.

    >>> corr2d_multi_in_out_1x1(jnp.ones((3, 3, 3)), jnp.ones((2, 3, 1, 1))).shape
    (2, 3, 3)
    """
    x, k = jnp.asarray(x), jnp.asarray(k)
    _check("corr2d_multi_in_out_1x1", x, "[I, H, W]", k, "[O, I, 1, 1]", channels=(0, 1))
    if k.shape[2:] != (1, 1):
        raise ValueError(f"corr2d_multi_in_out_1x1 takes a kernel [O, I, 1, 1], got {k.shape}")
    dtype = jnp.promote_types(x.dtype, k.dtype)
    channels, height, width = x.shape
    pixels = x.astype(dtype).reshape(channels, height * width)
    matrix = k.astype(dtype).reshape(k.shape[:2])
    product = jnp.matmul(matrix, pixels, precision=lax.Precision.HIGHEST)
    return product.reshape(-1, height, width)


def _check(
    name: str,
    x: jax.Array,
    x_layout: str,
    k: jax.Array,
    k_layout: str,
    channels: tuple[int, int] | None = None,
) -> None:
    """Raise a ValueError that names both shapes unless they fit the layouts and each other."""
    rank_ok = x.ndim == x_layout.count(",") + 1 and k.ndim == k_layout.count(",") + 1
    if not rank_ok or (channels and x.shape[channels[0]] != k.shape[channels[1]]):
        raise ValueError(
            f"{name} takes x {x_layout} and k {k_layout} with matching channels, got x {x.shape} "
            f"and k {k.shape}"
        )
    if k.shape[-2] > x.shape[-2] or k.shape[-1] > x.shape[-1]:
        raise ValueError(
            f"{name}: the kernel is larger than the image, got x {x.shape} and k {k.shape}"
        )
