"""Convolution of a batch of images, channels last, as the layers use it."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn.ops import cpu, xla
from jaxcnn.ops.activations import resolve_activation
from jaxcnn.ops.geometry import Geometry
from jaxcnn.ops.sizes import IntOrPair, as_integer, as_pair, conv_output_size


def conv2d(
    images: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    strides: IntOrPair = 1,
    padding: IntOrPair | str = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
    activation: xla.Activation | None = None,
    precision: lax.PrecisionLike = None,
    implementation: str | None = None,
) -> jax.Array:
    """Convolve a batch of images, the deep-learning way (cross-correlation, no flip).

        y[n, i, j, o] = activation(bias[o]
            + sum over a, b, c of x[n, s i + d a - p, s j + d b - p, c] k[a, b, c, o])

    Args:
        images: [N, H, W, I].
        kernel: [kh, kw, I / groups, O], of the same dtype.
        bias: [O], of the same dtype; None for none.
        strides: s, one number or (vertical, horizontal).
        padding: p, zeros added on each side, as in PyTorch: `padding=1` adds a row above and a row
            below also at stride 2, where XLA's 'SAME' adds one below only. Also 'valid' (none) and,
            at stride 1, 'same' (the output is as large as the images; of an odd number of zeros,
            the last goes below and on the right).
        dilation: d, pixels from one element of the kernel to the next.
        groups: into which channels and features are divided: each group of features sees its own
            group of channels.
        activation: of each number of the output; None for none. Given here rather than applied
            afterwards, it may be computed in the same pass over memory.
        precision: of the products on GPU and TPU; see `jax.lax.Precision`.
        implementation: 'auto' for the fastest on the platform, 'xla' for XLA's own operations; None
            for what `JAXCNN_IMPLEMENTATION` in the environment says, 'auto' unless set. XLA's
            `cost_analysis` knows the work of its own operations only: count with 'xla', or with
            `jaxcnn.inspect.layer_summary`.

    Returns:
        [N, H', W', O] with H' = conv_output_size(H, kh, p, s, d), in the dtype of the input.

    Raises:
        ValueError: if a rank, the channels, the groups or the bias do not match, the kernel does
            not fit, or the padding or implementation is unknown.
        TypeError: if images, kernel and bias are of different dtypes.

    Source: d2l 7.2 to 7.4; semantics of PyTorch's `Conv2d`.

    >>> conv2d(jnp.ones((4, 8, 8, 3)), jnp.ones((3, 3, 3, 6)), strides=2, padding=1).shape
    (4, 4, 4, 6)
    >>> sigmoid = jax.nn.sigmoid
    >>> conv2d(jnp.ones((4, 8, 8, 3)), jnp.zeros((3, 3, 3, 6)), activation=sigmoid)[0, 0, 0, 0]
    Array(0.5, dtype=float32)
    """
    groups = as_integer(groups, "groups")
    _check(images, kernel, bias, groups)
    strides, dilation = as_pair(strides, "strides"), as_pair(dilation, "dilation")
    images, padding = _resolve_padding(images, kernel, strides, padding, dilation)
    (_, height, width, _), (kh, kw, _, _) = images.shape, kernel.shape
    geometry = Geometry((height, width), (kh, kw), strides, padding, dilation, groups, precision)
    operands = [images, kernel] + ([] if bias is None else [bias])
    activation = resolve_activation(activation, implementation)
    if _takes_engine(implementation, geometry, operands):
        return cpu.conv2d(images, kernel, bias, activation, geometry)
    return xla.finish(xla.forward(images, kernel, geometry), bias, activation)


def _takes_engine(
    implementation: str | None, geometry: Geometry, operands: list[jax.Array]
) -> bool:
    """Return whether the engine for CPUs is wanted and has better than XLA's own convolution."""
    if cpu.choose_implementation(implementation) == "xla":
        return False
    is_plain = geometry.dilation == (1, 1) and geometry.groups == 1
    dtype = operands[0].dtype
    return is_plain and dtype in cpu.DTYPES and all(x.dtype == dtype for x in operands)


def _check(images: jax.Array, kernel: jax.Array, bias: jax.Array | None, groups: int) -> None:
    """Raise a ValueError that names the shapes unless the operands fit each other."""
    if images.ndim != 4 or kernel.ndim != 4 or groups < 1:
        matches = False
    else:
        matches = images.shape[3] == groups * kernel.shape[2] and kernel.shape[3] % groups == 0
    if not matches:
        raise ValueError(
            "conv2d takes images [N, H, W, I] and a kernel [kh, kw, I / groups, O] with I and O "
            f"multiples of groups, got images {images.shape}, kernel {kernel.shape} and "
            f"groups {groups}"
        )
    if bias is not None and bias.shape != kernel.shape[3:]:
        raise ValueError(
            f"conv2d takes a bias [O] for a kernel [kh, kw, I / groups, O], got bias {bias.shape} "
            f"and kernel {kernel.shape}"
        )
    if bias is not None and not bias.dtype == kernel.dtype == images.dtype:
        raise TypeError(
            "conv2d takes images, kernel and bias of one dtype, got "
            f"{images.dtype}, {kernel.dtype} and {bias.dtype}"
        )


def _resolve_padding(
    images: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, int],
    padding: IntOrPair | str,
    dilation: tuple[int, int],
) -> tuple[jax.Array, tuple[int, int]]:
    """Return the images, padded already where that must be, and the padding that is left."""
    if isinstance(padding, str):
        images, padding = _named_padding(images, kernel, strides, padding, dilation)
    padding = as_pair(padding, "padding")
    for axis in (0, 1):  # refuse here what XLA would turn into an empty output
        conv_output_size(
            images.shape[axis + 1], kernel.shape[axis], padding[axis], strides[axis], dilation[axis]
        )
    if any(k == 2 and s > 1 and p for k, s, p in zip(kernel.shape, strides, padding, strict=False)):
        # On CPU, XLA's simplifier (jaxlib 0.10.2) aborts the process on the gradient of some such
        # convolutions, of 6 x 3 pixels with a 2 x 2 kernel, stride 2 and padding (1, 0) for one.
        # Padding the images apart keeps it from the rewrite that fails.
        return _pad(images, *((p, p) for p in padding)), (0, 0)
    return images, padding


def _named_padding(
    images: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, int],
    name: str,
    dilation: tuple[int, int],
) -> tuple[jax.Array, tuple[int, int]]:
    if name not in ("same", "valid"):
        raise ValueError(f"padding must be numbers, 'same' or 'valid', got {name!r}")
    if name == "valid":
        return images, (0, 0)
    if strides != (1, 1):
        raise ValueError(f"padding='same' takes stride 1, got strides {strides}; give numbers")
    rows, columns = (d * (k - 1) for d, k in zip(dilation, kernel.shape, strict=False))
    if rows % 2 or columns % 2:
        images = _pad(images, (0, rows % 2), (0, columns % 2))
    return images, (rows // 2, columns // 2)


def _pad(images: jax.Array, rows: tuple[int, int], columns: tuple[int, int]) -> jax.Array:
    return jnp.pad(images, ((0, 0), rows, columns, (0, 0)))
