"""The thresholds that decide which algorithm computes a convolution, as one value."""

import math
from typing import NamedTuple


class Limits(NamedTuple):
    """Thresholds, found by measurement on two Zen 4 and two Zen 5 cores (`benchmarks/conv.py`).

    Those for bfloat16 and for kernel gradients are from two cores of a Xeon with AMX.

    Attributes:
        small_work: multiply-adds; below, without oneDNN, XLA's own kernel gradient is faster.
        banded_work: multiply-adds an image; below, as in LeNet, one banded product is fastest.
        lanes: numbers that fill a vector register.
        spread: numbers that a block of g may hold in a banded images gradient.
        shifted_channels: channels and features; below, laying out both operands costs more than the
            larger product gains.
        run_work: channels times features for kernel gradients by runs in bfloat16; with more, the
            multiplications of no use cost more time than it saves to lay out fewer numbers.
        winograd_channels: channels and features for kernel gradients; below, Winograd's sums cost
            more than the products they save.
        winograd_tiles: tiles in a batch; below, likewise.
        winograd_conv: channels times features for convolutions by tiles, which compete with
            oneDNN's own.
        winograd_rows: the same for convolutions by tiles of rows.
        winograd_row_bytes: bytes of the transformed rows of one image; more does not fit a core's
            cache.
        columns_work: channels times features for convolutions of tiny images in bfloat16, as one
            product; fewer, and oneDNN's own convolution is faster.
        column_bytes: of what is laid side by side for it; more, likewise.
        window: pixels; beyond, rearranged images would take much memory.
        chunk_bytes: of rearranged images: enough for a fast product, small enough for the caches.
        large_chunk_bytes: the same where the product of a chunk is large too, or an image is small.
        product_chunk_bytes: the same where a chunk is one product.
        remat_bytes: of feature maps that are computed at a time and again for the gradient.
        remat_channels: of images whose maps are cheap enough to compute again.
    """

    small_work: float = 50_000_000
    banded_work: float = 1_000_000
    lanes: float = 16
    spread: float = 96
    shifted_channels: float = 32
    run_work: float = 64 * 128
    winograd_channels: float = 32
    winograd_tiles: float = 64
    winograd_conv: float = 128 * 128
    winograd_rows: float = 64 * 64
    winograd_row_bytes: float = 1 << 20
    columns_work: float = 256 * 512
    column_bytes: float = 16 << 20
    window: float = 64
    chunk_bytes: int = 4 << 20
    large_chunk_bytes: int = 8 << 20
    product_chunk_bytes: int = 16 << 20
    remat_bytes: int = 8 << 20
    remat_channels: int = 4


NEVER = math.inf  # for a lower bound that nothing reaches
CURRENT = Limits()  # read at each use, so that a test may replace it
