"""The table that maps sizes to targets."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence

from piecewise_core.errors import ConfigError
from piecewise_core.ranges import Box, Range
from piecewise_core.targets import Target

__all__ = ["TargetTable"]

_TABLE_CELLS = 1 << 18
"""Largest dense look-up table, in cells (8 bytes each); larger bounds use bisection."""


class TargetTable:
    """Maps sizes to the index of their target; a look-up costs the same for 1 target and 1,000.

    ``targets``: earlier ones win where boxes overlap, so exact sizes precede ranges. Sizes that
    no target holds map to ``miss`` (-1).

    ``find(*sizes)`` is the look-up: a plain function of one int per dim.
    """

    miss = -1

    def __init__(self, bounds: Box, targets: Sequence[Target]) -> None:
        self.bounds = bounds
        self.targets = tuple(targets)
        clipped = [(i, t.box.intersect(bounds)) for i, t in enumerate(self.targets)]
        boxes = [(i, box) for i, box in clipped if box is not None]
        grids = [_Grid(r, [box.ranges[i] for _, box in boxes]) for i, r in enumerate(bounds.ranges)]
        self._breaks = [grid.breaks for grid in grids]
        shape = [grid.count for grid in grids]
        if math.prod(shape) > _TABLE_CELLS:
            raise ConfigError(
                f"{len(self.targets)} ranges and sizes over {len(shape)} dims make "
                f"{math.prod(shape)} cells; list fewer sizes or endpoints"
            )
        self._strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
        self._dense = [g.dense(s) for g, s in zip(grids, self._strides, strict=True)]
        cells = self._fill(shape, grids, boxes)
        if all(grid.is_exact for grid in grids):
            found = [next((index for index, _ in held), self.miss) for held in cells]
            self.find: Callable[..., int] = self._build(found)
        else:
            self.find = _among(self._build(list(range(len(cells)))), cells, self.miss)

    def _fill(
        self,
        shape: Sequence[int],
        grids: Sequence[_Grid],
        boxes: Sequence[tuple[int, Box]],
    ) -> list[tuple[tuple[int, Box], ...]]:
        """The targets of every cell of the grid that the targets' ends make, the winner first."""
        cells: list[tuple[tuple[int, Box], ...]] = [()] * math.prod(shape)
        exact = all(grid.is_exact for grid in grids)
        for index, box in reversed(boxes):
            spans = [grid.places(r) for grid, r in zip(grids, box.ranges, strict=True)]
            for place in itertools.product(*spans):
                at = sum(p * s for p, s in zip(place, self._strides, strict=True))
                cells[at] = ((index, box), *(() if exact else cells[at]))
        return cells

    def _build(self, cells: list[int]) -> Callable[..., int]:
        """One dense table when the bounds are small, else one bisection per dim."""
        miss = self.miss
        if not self._breaks:
            (only,) = cells
            return lambda: only
        dense = self._dense
        if len(dense) == 1:
            return _find_one(self.bounds.ranges[0], self._breaks[0], dense[0], cells, miss)
        return _find_many(self.bounds.ranges, self._breaks, self._strides, dense, cells, miss)


class _Grid:
    """The sizes of one dim, told apart as far as targets tell them apart.

    ``breaks``: the first size of each run of sizes that are alike, where all that the targets hold
    are runs. Else sizes that lie in the same targets are one place, wherever they lie.
    ``is_exact``: whether targets hold all sizes of a place or none; not where they have gaps in
    bounds too large to list.
    """

    def __init__(self, bounds: Range, ranges: Sequence[Range]) -> None:
        self._bounds = bounds
        starts = {bounds.start}
        for r in ranges:
            starts.update((r.start, r.end + 1))
        self.breaks = sorted(s for s in starts if bounds.start <= s <= bounds.end)
        self.count = len(self.breaks)
        self._places: dict[Range, list[int]] | None = None
        self.is_exact = all(r.is_whole for r in ranges)
        if not self.is_exact and bounds.end - bounds.start < _TABLE_CELLS:
            self.is_exact = True
            self._sort(list(dict.fromkeys(ranges)))

    def _sort(self, ranges: Sequence[Range]) -> None:
        """Give each size the place of its kind: in which of ``ranges`` it lies."""
        start = self._bounds.start
        kinds = [0] * (self._bounds.end - start + 1)
        for bit, r in enumerate(ranges):
            for size in r:
                kinds[size - start] |= 1 << bit
        place_of: dict[int, int] = {}
        self._table = [place_of.setdefault(kind, len(place_of)) for kind in kinds]
        self.count = len(place_of)
        self._places = {
            r: [place for kind, place in place_of.items() if kind >> bit & 1]
            for bit, r in enumerate(ranges)
        }

    def places(self, r: Range) -> Iterable[int]:
        """The places of the sizes in ``r``, one of the targets' ranges."""
        if self._places is not None:
            return self._places[r]
        return range(bisect_right(self.breaks, r.start) - 1, bisect_right(self.breaks, r.end))

    def dense(self, stride: int) -> list[int] | None:
        """``table[size - start]`` = the cell offset of ``size``, or None when it would be large."""
        if self._places is not None:
            return [place * stride for place in self._table]
        if self._bounds.end - self._bounds.start >= _TABLE_CELLS:
            return None
        ends = [*self.breaks[1:], self._bounds.end + 1]
        return [
            place * stride
            for place, (lo, hi) in enumerate(zip(self.breaks, ends, strict=True))
            for _ in range(lo, hi)
        ]


def _among(
    cell: Callable[..., int], cells: Sequence[Sequence[tuple[int, Box]]], miss: int
) -> Callable[..., int]:
    """Of the targets of a cell, the first one that holds the sizes."""

    def find(*sizes: int) -> int:
        place = cell(*sizes)
        held = cells[place] if place != miss else ()
        return next((index for index, box in held if sizes in box), miss)

    return find


def _find_one(
    bounds: Range, breaks: Sequence[int], dense: list[int] | None, cells: list[int], miss: int
) -> Callable[[int], int]:
    lo, hi = bounds.start, bounds.end
    if dense is None:

        def bisected(size: int) -> int:
            return cells[bisect_right(breaks, size) - 1] if lo <= size <= hi else miss

        return bisected
    table = [cells[offset] for offset in dense]

    def indexed(size: int) -> int:
        return table[size - lo] if lo <= size <= hi else miss

    return indexed


def _find_many(
    bounds: Sequence[Range],
    breaks: Sequence[Sequence[int]],
    strides: Sequence[int],
    dense: Sequence[list[int] | None],
    cells: list[int],
    miss: int,
) -> Callable[..., int]:
    dims = [
        (r.start, r.end, b, s, d) for r, b, s, d in zip(bounds, breaks, strides, dense, strict=True)
    ]

    def find(*sizes: int) -> int:
        at = 0
        for size, (lo, hi, starts, stride, table) in zip(sizes, dims, strict=True):
            if not lo <= size <= hi:
                return miss
            at += (
                table[size - lo] if table is not None else (bisect_right(starts, size) - 1) * stride
            )
        return cells[at]

    return find
