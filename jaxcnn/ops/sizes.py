"""Output sizes: the arithmetic that convolution and pooling share."""

import operator
from typing import Any

IntOrPair = int | tuple[int, int]


def as_pair(value: IntOrPair, name: str) -> tuple[int, int]:
    """Return (height, width) from one number for both or a pair.

    Args:
        value: integers of NumPy count as integers, and lists as pairs.
        name: of the argument, for the error.

    Raises:
        ValueError: if `value` is neither an integer nor two integers.

    >>> as_pair(3, "window"), as_pair((5, 3), "window")
    ((3, 3), (5, 3))
    """
    try:
        one = _as_integer(value)
        return one, one
    except TypeError:
        pass
    try:
        height, width = (_as_integer(length) for length in value)  # type: ignore[union-attr]
    except (TypeError, ValueError):
        raise ValueError(
            f"{name} must be an integer or a (height, width) pair of integers, got {value!r}"
        ) from None
    return height, width


def as_integer(value: int, name: str) -> int:
    """Return an int from one, or from an integer of NumPy.

    Raises:
        ValueError: if `value` is not an integer; the message gives `name`, the argument's.

    >>> as_integer(3, "groups")
    3
    """
    try:
        return _as_integer(value)
    except TypeError:
        raise ValueError(f"{name} must be an integer, got {value!r}") from None


def _as_integer(value: Any) -> int:
    """Return an int; raise a TypeError for anything else, such as True or 2.0."""
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)


def conv_output_size(
    input_size: int, kernel_size: int, padding: int = 0, stride: int = 1, dilation: int = 1
) -> int:
    """Return the number of positions that a window takes along one axis.

        floor((input_size + 2 * padding - dilation * (kernel_size - 1) - 1) / stride) + 1

    Args:
        input_size: pixels along the axis.
        kernel_size: elements of the kernel (or pooling window) along the axis.
        padding: pixels added on each of the two sides, as in PyTorch.
        stride: pixels from one position to the next.
        dilation: pixels from one element of the kernel to the next.

    Raises:
        ValueError: if a size, the stride or the dilation is below 1, the padding is negative, or
            the kernel is larger than the padded input.

    Source: d2l 7.3; its exercise with kernel (3, 5), padding (0, 1), stride (3, 4) on 8 x 8:

    >>> conv_output_size(8, 3, padding=0, stride=3), conv_output_size(8, 5, padding=1, stride=4)
    (2, 2)
    """
    if min(input_size, kernel_size, stride, dilation) < 1 or padding < 0:
        raise ValueError(
            "sizes, strides and dilation must be at least 1 and padding at least 0, got "
            f"input_size={input_size}, kernel_size={kernel_size}, padding={padding}, "
            f"stride={stride}, dilation={dilation}"
        )
    padded, reach = input_size + 2 * padding, dilation * (kernel_size - 1) + 1
    if reach > padded:
        raise ValueError(
            f"a window of {reach} pixels does not fit an input of {input_size} pixels with "
            f"padding {padding} (padded: {padded}); use a larger input, a smaller window or more "
            "padding"
        )
    return (padded - reach) // stride + 1


def pool_output_size(
    input_size: int,
    window: int,
    padding: int = 0,
    stride: int = 1,
    dilation: int = 1,
    ceil_mode: bool = False,
) -> int:
    """Return the number of pooling windows along one axis: as `conv_output_size`, or one more.

    Args:
        input_size: pixels along the axis.
        window: elements of the window along the axis.
        padding: pixels added on each of the two sides.
        stride: pixels from one window to the next.
        dilation: pixels from one element of the window to the next.
        ceil_mode: whether to add a last window that reaches beyond the padding, if pixels remain
            and it starts inside the input or the padding before it.

    Raises:
        ValueError: as `conv_output_size`.

    Source: PyTorch's `MaxPool2d` and `AvgPool2d`.

    >>> pool_output_size(6, 3, stride=2), pool_output_size(6, 3, stride=2, ceil_mode=True)
    (2, 3)
    """
    count = conv_output_size(input_size, window, padding, stride, dilation)
    remain = (input_size + 2 * padding - dilation * (window - 1) - 1) % stride
    starts_inside = count * stride < input_size + padding
    return count + 1 if ceil_mode and remain and starts_inside else count
