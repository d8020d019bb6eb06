"""Sizes of windows and of what they leave: the arithmetic that conv and pool share."""

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


def conv_output_size(input_size: int, kernel_size: int, padding: int = 0, stride: int = 1) -> int:
    """Return the number of places that a window takes along one axis.

        floor((input_size + 2 * padding - kernel_size) / stride) + 1

    Args:
        input_size: pixels along the axis.
        kernel_size: pixels that the kernel (or pooling window) covers.
        padding: pixels added on each of the two sides, as in PyTorch.
        stride: pixels from one place to the next.

    Raises:
        ValueError: if a size or the stride is below 1, the padding is negative, or the kernel is
            larger than the padded input.

    Source: d2l 7.3; its exercise with kernel (3, 5), padding (0, 1), stride (3, 4) on 8 x 8:

    >>> conv_output_size(8, 3, padding=0, stride=3), conv_output_size(8, 5, padding=1, stride=4)
    (2, 2)
    """
    if input_size < 1 or kernel_size < 1 or stride < 1 or padding < 0:
        raise ValueError(
            "sizes and strides must be at least 1 and padding at least 0, got "
            f"input_size={input_size}, kernel_size={kernel_size}, padding={padding}, "
            f"stride={stride}"
        )
    padded = input_size + 2 * padding
    if kernel_size > padded:
        raise ValueError(
            f"a window of {kernel_size} pixels does not fit an input of {input_size} pixels with "
            f"padding {padding} (padded: {padded}); use a larger input, a smaller window or more "
            "padding"
        )
    return (padded - kernel_size) // stride + 1
