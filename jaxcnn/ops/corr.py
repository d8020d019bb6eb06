"""The book's functions of a single image, channels first: cross-correlation and pooling."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxcnn.ops.conv import conv2d
from jaxcnn.ops.pool import avg_pool, max_pool
from jaxcnn.ops.sizes import IntOrPair


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


def pool2d(x: ArrayLike, pool_size: IntOrPair, mode: str = "max") -> jax.Array:
    """Pool one image at stride 1, without padding.

    Args:
        x: [H, W].
        pool_size: (ph, pw) in pixels, or one number for both.
        mode: 'max' or 'avg'.

    Returns:
        [H - ph + 1, W - pw + 1].

    Raises:
        ValueError: if the rank is not 2, the mode is unknown or the window does not fit.

    Source: d2l 7.5.1.

    >>> x = jnp.arange(9.0).reshape(3, 3)
    >>> pool2d(x, (2, 2))
    Array([[4., 5.],
           [7., 8.]], dtype=float32)
    >>> pool2d(x, (2, 2), 'avg')
    Array([[2., 3.],
           [5., 6.]], dtype=float32)
    """
    modes: dict[str, Callable[..., jax.Array]] = {"max": max_pool, "avg": avg_pool}
    if mode not in modes:
        raise ValueError(f"pool2d takes mode 'max' or 'avg', got {mode!r}")
    x = jnp.asarray(x)
    if x.ndim != 2:
        raise ValueError(f"pool2d takes x [H, W], got {x.shape}")
    return modes[mode](x[None, :, :, None], pool_size, strides=1)[0, :, :, 0]


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
