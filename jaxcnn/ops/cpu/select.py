"""Which algorithm computes which pass of a convolution: tables, of which the first match counts.

All passes are without dilation or groups, and deterministic. `benchmarks/conv.py` has the figures
behind the tables, shape by shape; the thresholds are in `limits.py`.

Half precision is computed in float32 and rounded in the end. Where the processor has instructions
for bfloat16, oneDNN's convolutions and products take it as it is; the sums are float32's in any
case.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn.ops import xla
from jaxcnn.ops.cpu import banded, columns, gemm, limits, onednn, probe, winograd
from jaxcnn.ops.cpu.half import as_bits, from_bits
from jaxcnn.ops.cpu.limits import Limits
from jaxcnn.ops.cpu.products import product, then_sigmoid
from jaxcnn.ops.geometry import Geometry


class Work(NamedTuple):
    """What the tables ask of a pass.

    Attributes:
        batch: images.
        channels: of the images.
        features: of the output.
        geometry: of the convolution.
        is_empty: whether an operand has no numbers.
        is_half: whether the operands are in half precision.
        in_bfloat16: whether they are in bfloat16, and oneDNN takes them so.
    """

    batch: int
    channels: int
    features: int
    geometry: Geometry
    is_empty: bool
    is_half: bool = False
    in_bfloat16: bool = False

    @property
    def multiply_adds(self) -> int:
        """Of the whole batch."""
        (kh, kw), (height, width) = self.geometry.window, self.geometry.output
        return self.batch * height * width * kh * kw * self.channels * self.features

    @property
    def banded_work(self) -> int:
        """Of one image, if done by whole blocks of pixels."""
        return banded.work(self.channels, self.features, self.geometry)

    @property
    def is_product(self) -> bool:
        """Whether it is a fully connected layer's, in half precision."""
        return self.is_half and self.geometry.is_product

    def suits_winograd(self, limit: Limits) -> bool:
        """Whether the window is 3 x 3 at stride 1, with enough tiles, and digits are to spare."""
        window, strides = self.geometry.window, self.geometry.strides
        if window != (winograd.WINDOW, winograd.WINDOW) or strides != (1, 1) or self.in_bfloat16:
            return False
        return self.batch * winograd.counts(self.geometry.output)[1] >= limit.winograd_tiles

    def suits_columns(self, limit: Limits) -> bool:
        """Whether the images are tiny, the channels many, and the numbers bfloat16's."""
        column_bytes = self.batch * columns.column_bytes(self.channels, self.geometry)
        is_wide = self.channels * self.features >= limit.columns_work
        return self.in_bfloat16 and is_wide and column_bytes <= limit.column_bytes

    @property
    def row_bytes(self) -> int:
        """Bytes of the transformed rows of one image."""
        return winograd.row_bytes(self.geometry.output, self.channels, self.features)


class Rule(NamedTuple):
    """An algorithm, and the work that it is for."""

    algorithm: Callable[..., jax.Array]
    suits: Callable[[Work, Limits], bool]


def choose(table: Sequence[Rule], work: Work) -> Callable[..., jax.Array]:
    """Return the algorithm of the first rule of a table that suits the work."""
    return next(rule.algorithm for rule in table if rule.suits(work, limits.CURRENT))


def otherwise(work: Work, limit: Limits) -> bool:
    """Return True: the last rule of a table suits any work."""
    return True


def _work(
    pixels: jax.Array, other: jax.Array, channels: int, features: int, geometry: Geometry
) -> Work:
    """Return the work of a pass of these two operands, of which the first is images or g."""
    in_bfloat16 = pixels.dtype == jnp.bfloat16 and probe.bfloat16_available()
    is_empty, is_half = _is_empty(pixels, other), xla.is_half(pixels)
    return Work(len(pixels), channels, features, geometry, is_empty, is_half, in_bfloat16)


def _compute(
    table: Sequence[Rule], work: Work, a: jax.Array, b: jax.Array, **options: Any
) -> jax.Array:
    """Return a pass by the algorithm that its table chooses; half precision may not be rounded."""
    algorithm = choose(table, work)
    if work.is_half and not (work.in_bfloat16 and algorithm in TAKE_BFLOAT16):
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    return algorithm(a, b, work.geometry, **options)


def forward(
    images: jax.Array,
    kernel: jax.Array,
    geometry: Geometry,
    sigmoid_bias: jax.Array | None = None,
) -> jax.Array:
    """Return the convolution [N, H', W', O] of images [N, H, W, I] and kernel [kh, kw, I, O].

    If `sigmoid_bias` [O] is given, return sigmoid(the convolution + it) instead; with oneDNN this
    takes no extra pass over memory.
    """
    _, _, channels, features = kernel.shape
    work = _work(images, kernel, channels, features, geometry)
    if sigmoid_bias is not None and work.is_half:
        sigmoid_bias = sigmoid_bias.astype(jnp.float32)
    y = _compute(FORWARD, work, images, kernel, sigmoid_bias=sigmoid_bias)
    return y.astype(images.dtype)


def forward_bias(
    images: jax.Array, kernel: jax.Array, bias: jax.Array, geometry: Geometry
) -> jax.Array:
    """Return the convolution + bias [O]; see `forward`. By oneDNN in bfloat16, in one pass."""
    _, _, channels, features = kernel.shape
    work = _work(images, kernel, channels, features, geometry)
    if work.in_bfloat16 and choose(FORWARD, work) is _direct:
        (p, q) = geometry.padding
        padding = ((p, p), (q, q))
        return onednn.conv(images, kernel, geometry.strides, padding, bias=bias)
    y = _compute(FORWARD, work, images, kernel)
    return xla.add_bias(y, bias.astype(y.dtype)).astype(images.dtype)


def forward_sigmoid(
    images: jax.Array, kernel: jax.Array, bias: jax.Array, geometry: Geometry
) -> jax.Array:
    """Return sigmoid(the convolution + bias [O]); see `forward`."""
    return forward(images, kernel, geometry, sigmoid_bias=bias)


def images_gradient(g: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Return the gradient with respect to the images, [N, H, W, I], of <forward, g>.

    Each g [N, H', W', O] is spread by the kernel:

        dx[n, u, v] = sum of g[n, i, j] k[a, b]^T over all i, j, a, b
            with s i + a - p = u and t j + b - q = v
    """
    _, _, channels, features = kernel.shape
    work = _work(g, kernel, channels, features, geometry)
    return _compute(IMAGES_GRADIENT, work, g, kernel).astype(g.dtype)


def kernel_gradient(images: jax.Array, g: jax.Array, geometry: Geometry) -> jax.Array:
    """Return the gradient with respect to the kernel, [kh, kw, I, O], of <forward, g>.

    dk[a, b] = sum over n, i, j of x[n, s i + a - p, t j + b - q] g[n, i, j]^T
    """
    work = _work(images, g, images.shape[3], g.shape[3], geometry)
    return _compute(KERNEL_GRADIENT, work, images, g).astype(g.dtype)


def _is_empty(*arrays: jax.Array) -> bool:
    return 0 in (length for x in arrays for length in x.shape)


def _xla_forward(
    images: jax.Array,
    kernel: jax.Array,
    geometry: Geometry,
    sigmoid_bias: jax.Array | None = None,
) -> jax.Array:
    return then_sigmoid(xla.forward(images, kernel, geometry), sigmoid_bias)


def _direct(
    images: jax.Array,
    kernel: jax.Array,
    geometry: Geometry,
    sigmoid_bias: jax.Array | None = None,
) -> jax.Array:
    (p, q) = geometry.padding
    padding = ((p, p), (q, q))
    if sigmoid_bias is None or not xla.is_half(images):
        return _conv(images, kernel, geometry.strides, padding, sigmoid_bias=sigmoid_bias)
    y = _conv(images, kernel, geometry.strides, padding)
    return then_sigmoid(y.astype(jnp.float32), sigmoid_bias)


def _product(
    images: jax.Array,
    kernel: jax.Array,
    geometry: Geometry,
    sigmoid_bias: jax.Array | None = None,
) -> jax.Array:
    """Return the convolution of single pixels with a kernel of one."""
    _, _, channels, features = kernel.shape
    y = product(images.reshape(-1, channels), kernel[0, 0], sigmoid_bias=sigmoid_bias)
    return y.reshape(len(images), 1, 1, features)


def _product_gradient(g: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Return the images gradient of `_product`."""
    _, _, channels, features = kernel.shape
    dx = product(g.reshape(-1, features), kernel[0, 0], transpose_b=True)
    return dx.reshape(len(g), 1, 1, channels)


def _conv(
    images: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, int],
    padding: tuple[tuple[int, int], tuple[int, int]],
    transpose_kernel: bool = False,
    sigmoid_bias: jax.Array | None = None,
) -> jax.Array:
    """Convolve as `onednn.conv` does, by the fastest algorithm."""
    height, width = (n + sum(pad) for n, pad in zip(images.shape[1:3], padding, strict=True))
    kh, kw, channels, features = kernel.shape
    geometry = Geometry((height, width), (kh, kw), strides, (0, 0))
    is_half = xla.is_half(images)  # which oneDNN takes, if it comes here
    work = Work(len(images), channels, features, geometry, False, is_half, is_half)
    options: dict[str, Any] = {"transpose_kernel": transpose_kernel, "sigmoid_bias": sigmoid_bias}
    algorithm = choose(CONV, work)
    if algorithm is onednn.conv:
        options["strides"] = strides
    return algorithm(images, kernel, padding=padding, **options)


def _by_kinds_of_pixel(g: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Return the images gradient as one convolution for each kind of pixel.

    At stride 1 all pixels are of one kind: g is convolved with the turned kernel. At stride s,
    every s-th row of dx meets every s-th row of the kernel only.
    """
    (height, width), (s, t) = geometry.image, geometry.strides
    kinds = [[_kind_of_pixel(g, kernel, geometry, (i, j)) for j in range(t)] for i in range(s)]
    if s == t == 1:
        return kinds[0][0]
    rows = [jnp.stack([as_bits(kind) for kind in row], axis=3) for row in kinds]
    dx = jnp.stack(rows, axis=2)  # [N, H / s, s, W / t, t, I]
    dx = dx.reshape(len(g), s * dx.shape[1], t * dx.shape[3], dx.shape[-1])
    return from_bits(dx[:, :height, :width], g.dtype)


def _kind_of_pixel(
    g: jax.Array, kernel: jax.Array, geometry: Geometry, start: tuple[int, int]
) -> jax.Array:
    """Return dx[:, start[0] :: s, start[1] :: t] of the images gradient dx.

    Where the strides do not divide the image, dx has some more rows and columns here.
    """
    sizes = [-(-n // s) for n, s in zip(geometry.image, geometry.strides, strict=True)]
    taps, padding = [], []
    for axis in (0, 1):
        s = geometry.strides[axis]
        # Row `start + s u` meets g's row `first + u - m` by the kernel's row `a + s m`.
        first, a = divmod(start[axis] + geometry.padding[axis], s)
        count = len(range(a, geometry.window[axis], s))
        low = count - 1 - first
        taps.append(slice(a, None, s))
        padding.append((low, sizes[axis] - g.shape[axis + 1] + count - 1 - low))
    turned = kernel[tuple(taps)][::-1, ::-1]
    if _is_empty(turned):  # no row of the kernel, or no column, meets these
        return jnp.zeros((len(g), *sizes, kernel.shape[2]), g.dtype)
    crop = [(min(low, 0), min(high, 0), 0) for low, high in padding]
    met = lax.pad(g, jnp.zeros((), g.dtype), [(0, 0, 0), *crop, (0, 0, 0)])
    if _is_empty(met):
        return jnp.zeros((len(g), *sizes, kernel.shape[2]), g.dtype)
    rows, columns = ((max(low, 0), max(high, 0)) for low, high in padding)
    return _conv(met, turned, (1, 1), (rows, columns), transpose_kernel=True)


FORWARD = (
    Rule(_xla_forward, lambda work, limit: work.is_empty),
    Rule(_product, lambda work, limit: work.is_product),
    Rule(
        banded.forward,
        lambda work, limit: work.channels == 1 and work.banded_work < limit.banded_work,
    ),
    Rule(_xla_forward, lambda work, limit: not probe.available()),
    Rule(columns.forward, Work.suits_columns),
    Rule(_direct, otherwise),
)

CONV = (  # within the forward pass and the images gradient
    Rule(
        winograd.by_tiles,
        lambda work, limit: (
            work.suits_winograd(limit) and work.channels * work.features >= limit.winograd_conv
        ),
    ),
    Rule(
        winograd.by_rows,
        lambda work, limit: (
            work.suits_winograd(limit)
            and work.channels * work.features >= limit.winograd_rows
            and work.row_bytes <= limit.winograd_row_bytes
        ),
    ),
    Rule(onednn.conv, otherwise),
)

IMAGES_GRADIENT = (
    Rule(xla.images_gradient, lambda work, limit: work.is_empty),
    Rule(_product_gradient, lambda work, limit: work.is_product),
    Rule(xla.images_gradient, lambda work, limit: not probe.available()),
    Rule(
        banded.images_gradient,
        lambda work, limit: work.channels < limit.lanes and work.banded_work < limit.banded_work,
    ),
    Rule(columns.images_gradient, Work.suits_columns),
    Rule(_by_kinds_of_pixel, otherwise),
)

KERNEL_GRADIENT = (
    Rule(
        xla.kernel_gradient,
        lambda work, limit: (
            work.is_empty
            or work.geometry.window[0] * work.geometry.window[1] > limit.window
            or (work.multiply_adds < limit.small_work and not probe.available())
        ),
    ),
    Rule(banded.kernel_gradient, lambda work, limit: work.banded_work < limit.banded_work),
    Rule(
        gemm.by_runs,
        lambda work, limit: work.in_bfloat16 and work.channels * work.features <= limit.run_work,
    ),
    Rule(gemm.by_pixel, lambda work, limit: work.channels == 1),
    Rule(
        winograd.kernel_gradient,
        lambda work, limit: (
            min(work.channels, work.features) >= limit.winograd_channels
            and work.suits_winograd(limit)
        ),
    ),
    Rule(
        gemm.shifted,
        lambda work, limit: (
            work.geometry.strides[0] == 1
            and min(work.channels, work.features) >= limit.shifted_channels
        ),
    ),
    Rule(gemm.by_runs, otherwise),
)

# The algorithms that take bfloat16 as it is, where oneDNN does.
TAKE_BFLOAT16 = (
    banded.forward,
    banded.images_gradient,
    banded.kernel_gradient,
    columns.forward,
    columns.images_gradient,
    _direct,
    _by_kinds_of_pixel,
    _product,
    _product_gradient,
    gemm.shifted,
    gemm.by_runs,
)
