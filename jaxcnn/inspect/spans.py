"""Which rows of an image, or which columns, the numbers of an array depend on.

Each operation on arrays has its counterpart here, which cuts, moves and joins tables of spans.
"""

import math
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np

_MAX_SIZE = 2**22  # of a table; of larger ones, as of 1,500 tokens by as many, nothing is told
_UP = np.array([1, -1])

Pattern = tuple[int, int]


class Spans(NamedTuple):
    """The spans of rows that hold all that the numbers of an array depend on; or of columns.

    Attributes:
        bounds: the first row and minus the last, for each number. Of the array's shape and then 2,
            but of length 1 along an axis that makes no difference. Infinite where a number depends
            on no pixel, NaN where that is not known.
        patterns: for some axes of the array a period and a jump. So many indices further along the
            axis, the spans lie so many rows further. This also holds beyond the array's edges, and
            so the padding of a layer counts as pixels.
    """

    bounds: np.ndarray
    patterns: dict[int, Pattern]

    @property
    def are_empty(self) -> bool:
        """Whether no number depends on the image."""
        return bool(np.all(self.bounds == np.inf))


def nothing(rank: int) -> Spans:
    """Return the spans of an array that does not depend on the image."""
    return Spans(np.full((1,) * rank + (2,), np.inf), {})


def unknown(rank: int) -> Spans:
    """Return the spans of an array of which it is not known what it depends on."""
    return Spans(np.full((1,) * rank + (2,), np.nan), {})


def of_images(length: int, axis: int, rank: int = 4) -> Spans:
    """Return the spans of the images themselves, along whose `axis` lie so many rows."""
    rows = np.arange(length, dtype=float)[:, None] * _UP
    return Spans(np.expand_dims(rows, tuple(k for k in range(rank) if k != axis)), {axis: (1, 1)})


def place(x: Spans, targets: Sequence[int], rank: int) -> Spans:
    """Return the spans of an array whose axes are moved: axis k becomes targets[k] of `rank`."""
    shape = [1] * rank
    for size, target in zip(x.bounds.shape, targets, strict=False):
        shape[target] = size
    bounds = x.bounds.transpose([*np.argsort(targets).astype(int), -1]).reshape(*shape, 2)
    return Spans(bounds, {targets[axis]: pattern for axis, pattern in x.patterns.items()})


def merge(x: Spans, axes: Sequence[int]) -> Spans:
    """Return the spans of sums (or maxima, ...) over axes, which are left out of the result."""
    rest = [axis for axis in range(x.bounds.ndim - 1) if axis not in axes]
    patterns = {rest.index(axis): pattern for axis, pattern in x.patterns.items() if axis in rest}
    return Spans(x.bounds.min(tuple(axes)), patterns)


def slide(
    x: Spans,
    axis: int,
    count: int,
    start: int = 0,
    stride: int = 1,
    window: int = 1,
    dilation: int = 1,
    holes: int = 1,
) -> Spans:
    """Return the spans of windows along an axis; a slice, padding and a reversal are such, too.

    Window i covers the indices start + stride * i + dilation * a for a in [0, window).

    Args:
        x: spans of the array.
        axis: along which the windows move.
        count: of windows.
        start: index of the first window's first element, negative in the padding.
        stride: indices from one window to the next.
        window: elements.
        dilation: indices from one element to the next.
        holes: indices from one number of the array to the next, zeros between them.
    """
    length = x.bounds.shape[axis]
    if length == 1 and axis not in x.patterns:
        return x
    index = start + stride * np.arange(count)[:, None] + dilation * np.arange(window)
    is_hole = index % holes != 0
    index //= holes
    patterns, shift = dict(x.patterns), np.zeros_like(index)
    if axis in patterns:
        period, jump = patterns.pop(axis)
        turns, index = np.divmod(index, period)
        shift = jump * turns
        shared = math.gcd(period * holes, stride)
        if count >= period * holes // shared:
            patterns[axis] = period * holes // shared, jump * stride // shared
    else:
        is_hole |= (index < 0) | (index >= length)
        index = np.clip(index, 0, length - 1)
    moves = np.where(is_hole[..., None], np.inf, shift[..., None] * _UP)
    between = (1,) * (x.bounds.ndim - axis - 2)
    bounds = np.take(x.bounds, index, axis) + moves.reshape(*index.shape, *between, 2)
    return Spans(bounds.min(axis + 1), patterns)


def mix(x: Spans, axis: int, groups: int, features: int) -> Spans:
    """Return the spans of features that are each computed of one of the groups along an axis."""
    rank = x.bounds.ndim - 1
    if x.bounds.shape[axis] == 1 or groups == 1:
        return place(merge(x, [axis]), [k for k in range(rank) if k != axis], rank)
    bounds = np.moveaxis(x.bounds, axis, 0)
    bounds = bounds.reshape(groups, -1, *bounds.shape[1:]).min(1)
    bounds = np.moveaxis(np.repeat(bounds, features // groups, 0), 0, axis)
    return compress(bounds, {k: pattern for k, pattern in x.patterns.items() if k != axis})


def join(several: Sequence[Spans]) -> Spans:
    """Return the spans of what is computed, number by number, of several arrays of one rank."""
    some = [x for x in several if not x.are_empty] or several[:1]
    if math.prod(np.broadcast_shapes(*(x.bounds.shape for x in some))) > _MAX_SIZE:
        return unknown(some[0].bounds.ndim - 1)
    return compress(reduce(np.minimum, (x.bounds for x in some)), _common_patterns(some))


def concatenate(several: Sequence[Spans], lengths: Sequence[int], axis: int) -> Spans:
    """Return the spans of arrays joined along an axis, where they have these lengths."""
    shape = np.max([x.bounds.shape for x in several], axis=0).tolist()
    shape[axis] = sum(lengths)
    if math.prod(shape) > _MAX_SIZE:
        return unknown(len(shape) - 1)
    parts = [
        np.broadcast_to(x.bounds, (*shape[:axis], length, *shape[axis + 1 :]))
        for x, length in zip(several, lengths, strict=True)
    ]
    patterns = _common_patterns([x for x in several if not x.are_empty])
    patterns.pop(axis, None)
    return compress(np.concatenate(parts, axis), patterns)


def reshape(x: Spans, old: Sequence[int], new: Sequence[int]) -> Spans:
    """Return the spans of an array of shape `old` that is reshaped to `new`."""
    full: list[int] = []
    shape: list[int] = []
    kept: dict[int, int] = {}
    for before, after in _groups(old, new):
        sizes = x.bounds.shape[before]
        if old[before] == new[after]:  # an axis that stays as it is
            kept[before.start] = after.start
            full += sizes
            shape += sizes
        elif all(size == 1 for size in sizes):
            full += sizes
            shape += [1] * len(new[after])
        else:
            full += old[before]
            shape += new[after]
    if math.prod(full) > _MAX_SIZE:
        return unknown(len(new))
    patterns = {kept[axis]: pattern for axis, pattern in x.patterns.items() if axis in kept}
    return compress(np.broadcast_to(x.bounds, (*full, 2)).reshape(*shape, 2), patterns)


def compress(bounds: np.ndarray, patterns: dict[int, Pattern]) -> Spans:
    """Return the spans of these bounds, of length 1 along axes that make no difference."""
    patterns = dict(patterns)
    for axis in range(bounds.ndim - 1):
        one = bounds.take([0], axis)
        is_same = (bounds == one) | (np.isnan(bounds) & np.isnan(one))
        if bounds.shape[axis] > 1 and is_same.all():
            bounds = one
            patterns.pop(axis, None)
    return Spans(bounds, patterns)


def extent(rows: Spans, columns: Spans) -> tuple[int, int] | None:
    """Return the (rows, columns) that the numbers at one position depend on together.

    Along the last axis run channels; [N, features] is one position. Where there is no pattern, as
    beside circular padding, only the middle half of the positions counts.

    Returns:
        None if the positions differ, or are not known.
    """
    rank = rows.bounds.ndim - 1
    last = {rank - 1} - {*rows.patterns, *columns.patterns}
    along = [_axes(x) for x in (rows, columns)]
    if rank > 2 and any(axes and axes <= last for axes in along):
        return None  # the image's rows or columns lie along it: as positions or as features?
    positions = (along[0] | along[1]) - last if rank > 2 else {0} & set(range(rank))
    height, width = _size(rows, positions), _size(columns, positions)
    return None if height is None or width is None else (height, width)


def _size(x: Spans, positions: set[int]) -> int | None:
    """Return the size of the spans at each position, if it is one."""
    bounds = x.bounds.min(tuple(set(range(x.bounds.ndim - 1)) - positions), keepdims=True)
    for axis in positions - set(x.patterns):
        length = bounds.shape[axis]
        bounds = bounds.take(range(length // 4, length - length // 4), axis)
    sizes = 1 - bounds.sum(-1)
    is_one = np.isfinite(sizes).all() and np.ptp(sizes) == 0
    return int(sizes.flat[0]) if is_one else None


def _axes(x: Spans) -> set[int]:
    """Return the axes along which spans change."""
    axes = range(x.bounds.ndim - 1)
    return {axis for axis in axes if (x.bounds != x.bounds.take([0], axis)).any()}


def _common_patterns(some: Sequence[Spans]) -> dict[int, Pattern]:
    """Return the patterns that some arrays have in common."""
    common = {}
    for axis in set.intersection(*(set(x.patterns) for x in some)) if some else ():
        period = math.lcm(*(x.patterns[axis][0] for x in some))
        jumps = {x.patterns[axis][1] * period // x.patterns[axis][0] for x in some}
        if len(jumps) == 1 and period <= min(x.bounds.shape[axis] for x in some):
            common[axis] = period, jumps.pop()
    return common


def _groups(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """Yield the shortest runs of axes of two shapes whose sizes have the same product."""
    i = j = 0
    while i < len(old) or j < len(new):
        a, b = (*old, 0)[i], (*new, 0)[j]
        k, m = i + (b != 1 or a == 1), j + (a != 1 or b == 1)  # a 1 alone, unless both have one
        while (a := math.prod(old[i:k])) != (b := math.prod(new[j:m])):
            k, m = (k + 1, m) if a < b else (k, m + 1)
        yield slice(i, k), slice(j, m)
        i, j = k, m
