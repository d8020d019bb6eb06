"""The mean and standard deviation of a data set's pixels."""

import math
from typing import Any, NamedTuple

import numpy as np

_PIECE = 2**22  # pixels that are counted at once: NumPy counts in 8 bytes each


class ChannelStatistics(NamedTuple):
    """Of each channel, over all images.

    Attributes:
        mean: of the pixels, scaled to [0, 1].
        std: their standard deviation; 1 for a channel that is constant, which no number scales.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]


def channel_statistics(images: Any) -> ChannelStatistics:
    """Return the mean and standard deviation of each channel, of pixels scaled to [0, 1].

    Pixels are counted by value, a few images at a time, so that the sums are exact: the numbers are
    the same on every machine.

    Args:
        images: uint8 [N, H, W, C], not empty; an array, or what slices give arrays of.

    >>> images = np.zeros((2, 1, 1, 3), np.uint8)
    >>> images[1] = 0, 51, 255
    >>> images[0, ..., 1] = 51
    >>> channel_statistics(images)
    ChannelStatistics(mean=(0.0, 0.2, 0.5), std=(1.0, 1.0, 0.5))
    """
    count, *_, channels = images.shape
    at_once = max(1, _PIECE // math.prod(images.shape[1:]))
    counts = np.zeros((channels, 256), np.int64)
    for start in range(0, count, at_once):
        piece = np.asarray(images[start : start + at_once])
        for channel in range(channels):
            counts[channel] += np.bincount(piece[..., channel].ravel(), minlength=256)
    moments = [_moments(each) for each in counts]
    return ChannelStatistics(tuple(m for m, _ in moments), tuple(s or 1.0 for _, s in moments))


def _moments(counts: np.ndarray) -> tuple[float, float]:
    """Return the mean and the standard deviation of counted grey levels, in [0, 1]."""
    levels = np.arange(256)
    n, total, squares = (int((counts * levels**power).sum()) for power in range(3))
    return total / (255 * n), math.sqrt(n * squares - total**2) / (255 * n)
