"""Sizes, strides, padding and dilation of a convolution or a pooling, as one hashable value."""

from typing import NamedTuple

from jax import lax

from jaxcnn.ops.sizes import conv_output_size, pool_output_size

Pair = tuple[int, int]


class Geometry(NamedTuple):
    """How a kernel moves over images; pairs are (vertical, horizontal).

    Attributes:
        image: (H, W) of the images, without padding.
        window: (kh, kw) of the kernel.
        strides: pixels from one position of the kernel to the next.
        padding: zeros added on each side of the image.
        dilation: pixels from one element of the kernel to the next.
        groups: of channels; the features are divided among them.
        precision: of the products on GPU and TPU.
    """

    image: Pair
    window: Pair
    strides: Pair
    padding: Pair
    dilation: Pair = (1, 1)
    groups: int = 1
    precision: lax.PrecisionLike = None

    @property
    def output(self) -> Pair:
        """(H', W') of the convolution."""
        sizes = zip(self.image, self.window, self.padding, self.strides, self.dilation, strict=True)
        height, width = (conv_output_size(*size) for size in sizes)
        return height, width

    @property
    def is_product(self) -> bool:
        """Whether single pixels meet a kernel of one pixel, as in a fully connected layer."""
        return self.image == self.window == (1, 1) and self.padding == (0, 0) and self.groups == 1


class Windows(NamedTuple):
    """How a pooling window moves over images; pairs are (vertical, horizontal).

    Attributes:
        image: (H, W) of the images, without padding.
        size: (height, width) of the window.
        strides: pixels from one window to the next.
        padding: pixels added on each side of the image.
        dilation: pixels from one element of a window to the next.
        ceil_mode: whether a last window may reach beyond the padding.
    """

    image: Pair
    size: Pair
    strides: Pair
    padding: Pair
    dilation: Pair = (1, 1)
    ceil_mode: bool = False

    @property
    def output(self) -> Pair:
        """(H', W') of the pooling."""
        sizes = zip(self.image, self.size, self.padding, self.strides, self.dilation, strict=True)
        height, width = (pool_output_size(*size, ceil_mode=self.ceil_mode) for size in sizes)
        return height, width

    @property
    def pads(self) -> tuple[Pair, Pair]:
        """((above, below), (left, right)): the pixels that are added for all windows to fit."""
        rows, columns = (
            (padding, padding + max(0, (count - 1) * stride + reach - (length + 2 * padding)))
            for length, padding, stride, count, reach in zip(
                self.image, self.padding, self.strides, self.output, self.reach, strict=True
            )
        )
        return rows, columns

    @property
    def reach(self) -> Pair:
        """(height, width) of the area that a window spans, gaps included."""
        height, width = (d * (k - 1) + 1 for d, k in zip(self.dilation, self.size, strict=True))
        return height, width

    @property
    def tile_the_image(self) -> bool:
        """Whether the windows lie side by side, without gaps, padding or overlap."""
        return (
            self.size == self.strides
            and self.padding == (0, 0)
            and self.dilation == (1, 1)
            and self.pads == ((0, 0), (0, 0))
        )
