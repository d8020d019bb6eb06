"""Output sizes: the arithmetic that convolution and pooling share."""

IntOrPair = int | tuple[int, int]


def as_pair(value: IntOrPair) -> tuple[int, int]:
    """Return (height, width) from one number for both or a pair.

    Raises:
        ValueError: if `value` is a sequence of another length.

    >>> as_pair(3), as_pair((5, 3))
    ((3, 3), (5, 3))
    """
    if isinstance(value, int):
        return value, value
    if len(value) != 2:
        raise ValueError(f"expected one number or a (height, width) pair, got {value}")
    return value[0], value[1]


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
