"""The kernel gradient as matrix products of g and shifted images.

dk[a, b] = sum over n, i, j of x[n, s i + a - p, t j + b - q] g[n, i, j]^T

XLA's own is a convolution whose kernel is as large as the image: on two Zen 5 cores it runs at a
fifth to a half of the rate of the same work as matrix products.
"""

from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn.ops.cpu import limits
from jaxcnn.ops.cpu.chunks import sum_over_chunks
from jaxcnn.ops.cpu.half import as_bits, from_bits
from jaxcnn.ops.cpu.products import product, transposed_product
from jaxcnn.ops.geometry import Geometry
from jaxcnn.ops.xla import is_half


def by_pixel(images: jax.Array, g: jax.Array, geometry: Geometry) -> jax.Array:
    """Return the kernel gradient for images of one channel, by one product for each image.

    One value for each pixel of the window, side by side, would leave most of a vector register
    empty, so the pixels run along it: [kh kw, pixels] times [pixels, O].
    """
    (kh, kw), (_, height, width, features) = geometry.window, g.shape
    image_bytes = 4 * kh * kw * height * width
    chunk_bytes = limits.CURRENT.chunk_bytes
    total = sum_over_chunks(_products_by_pixel, images, g, geometry, image_bytes, chunk_bytes)
    return total.reshape(kh, kw, 1, features)


def _products_by_pixel(images: jax.Array, g: jax.Array, geometry: Geometry) -> jax.Array:
    (kh, kw), (s, t), (p, q) = geometry.window, geometry.strides, geometry.padding
    batch, height, width, features = g.shape
    x = jnp.pad(images[..., 0], ((0, 0), (p, p), (q, q)))
    rows, columns = s * (height - 1) + 1, t * (width - 1) + 1
    shifted = [x[:, a : a + rows : s, b : b + columns : t] for a in range(kh) for b in range(kw)]
    by_pixel = jnp.stack(shifted, axis=1).reshape(batch, kh * kw, height * width)
    return product(by_pixel, g.reshape(batch, height * width, features)).sum(axis=0)


def shifted(images: jax.Array, g: jax.Array, geometry: Geometry) -> jax.Array:
    """Return the kernel gradient at vertical stride 1, by one product of shifted images and g.

    dk[a, b] = sum over n, h, j of x[n, h, t j + b - q] g[n, h + p - a, j]^T

    The kw columns of images that meet a column of g are laid side by side, and so are the kh rows
    of g that meet a row of images: [kw I, pixels] times [pixels, kh O].
    """
    (kh, kw), channels = geometry.window, images.shape[3]
    (_, _, width, features) = g.shape
    numbers = geometry.image[0] * width * (kw * channels + kh * features)
    image_bytes = images.dtype.itemsize * numbers
    chunk_bytes = limits.CURRENT.product_chunk_bytes
    total = sum_over_chunks(_product_of_shifted, images, g, geometry, image_bytes, chunk_bytes)
    return total.reshape(kw, channels, kh, features).transpose(2, 0, 1, 3)


def _product_of_shifted(images: jax.Array, g: jax.Array, geometry: Geometry) -> jax.Array:
    (kh, kw), (_, t), (p, q) = geometry.window, geometry.strides, geometry.padding
    (_, rows, _, channels), (_, height, width, features) = images.shape, g.shape
    x = side_by_side(images, (0, q), kw, t, width)
    bits = as_bits(g)
    zero = jnp.zeros((), bits.dtype)
    shifts = (a - p for a in range(kh))
    moved = [
        lax.pad(bits, zero, ((0, 0, 0), (shift, rows - height - shift, 0), (0, 0, 0), (0, 0, 0)))
        for shift in shifts
    ]
    by_pixel = from_bits(jnp.concatenate(moved, axis=3), g.dtype).reshape(-1, kh * features)
    return transposed_product(x.reshape(-1, kw * channels), by_pixel)


def by_runs(images: jax.Array, g: jax.Array, geometry: Geometry) -> jax.Array:
    """Return the kernel gradient, by one product of windows of images and runs of pixels of g.

    A run of R pixels in a row of g meets a window of kh rows and T = kw + t (R - 1) columns. Of
    all windows and runs, the product [kh T I, runs] times [runs, R O] is

        d[a, u, r] = sum over n, i, j of x[n, s i + a - p, t R j + u - q] g[n, i, R j + r]^T

    and dk[a, b] is the sum of d[a, t r + b, r] over r. Only kw / T of the product is of use, but a
    window holds fewer numbers than R windows of single pixels, and copies them in longer pieces.
    """
    (kh, kw), (height, width) = geometry.window, geometry.output
    channels, features, t = images.shape[3], g.shape[3], geometry.strides[1]
    run = _run(images, features, geometry)
    columns = kw + t * (run - 1)
    numbers = kh * columns * channels * height * -(-width // run)
    total = sum_over_chunks(
        partial(_product_of_runs, run=run),
        images,
        g,
        geometry,
        image_bytes=images.dtype.itemsize * numbers,
        chunk_bytes=limits.CURRENT.product_chunk_bytes,
    )
    d = total.reshape(kh, columns, channels, run, features)
    return reduce(jnp.add, (d[:, t * r : t * r + kw, :, r] for r in range(run)))


def _run(images: jax.Array, features: int, geometry: Geometry) -> int:
    """Return how many pixels of g make a run."""
    limit, (_, kw), (_, t) = limits.CURRENT, geometry.window, geometry.strides
    work = images.shape[3] * features
    if kw <= t:  # the windows of two pixels have nothing in common
        return 1
    if is_half(images):
        longest = 4 if work <= limit.run_work / 2 else 2 if work <= limit.run_work else 1
    else:
        longest = 2 if t == 1 else 1
    return min(longest, geometry.output[1])


def _product_of_runs(images: jax.Array, g: jax.Array, geometry: Geometry, run: int) -> jax.Array:
    (kh, kw), (s, t), (p, q) = geometry.window, geometry.strides, geometry.padding
    _, height, width, channels = images.shape
    (rows, pixels), features = geometry.output, g.shape[3]
    runs, step, columns = -(-pixels // run), t * run, kw + t * (run - 1)
    x, by_pixel = as_bits(images), as_bits(g)
    zero = jnp.zeros((), x.dtype)

    # Columns in groups of `step`, from one run to the next: a window is one group or several, the
    # last perhaps in part.
    starts = range(0, columns, step)
    groups = runs + len(starts) - 1
    x = lax.pad(x, zero, ((0, 0, 0), (p, p, 0), (q, groups * step - q - width, 0), (0, 0, 0)))
    x = x.reshape(len(x), height + 2 * p, groups, step * channels)
    pieces = [
        x[:, a : a + s * (rows - 1) + 1 : s, i : i + runs, : min(step, columns - start) * channels]
        for a in range(kh)
        for i, start in enumerate(starts)
    ]
    windows = from_bits(jnp.concatenate(pieces, axis=3), images.dtype)
    by_pixel = jnp.pad(by_pixel, ((0, 0), (0, 0), (0, runs * run - pixels), (0, 0)))
    return transposed_product(
        windows.reshape(-1, kh * columns * channels),
        from_bits(by_pixel, g.dtype).reshape(-1, run * features),
    )


def side_by_side(
    images: jax.Array, padding: tuple[int, int], count: int, stride: int, width: int
) -> jax.Array:
    """Return [N, H + 2 p, width, count C]: the `count` pixels in a row that each output meets.

    Args:
        images: [N, H, W, C].
        padding: (p, q), zeros above and below, and on the left and right.
        count: pixels in a row of the kernel.
        stride: pixels from one output to the next.
        width: outputs in a row.
    """
    (p, q), bits = padding, as_bits(images)
    x = jnp.pad(bits, ((0, 0), (p, p), (q, q), (0, 0)))
    pixels = [x[:, :, b : b + stride * (width - 1) + 1 : stride] for b in range(count)]
    return from_bits(jnp.concatenate(pixels, axis=3), images.dtype)
