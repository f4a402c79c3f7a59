"""Sizes, ranges of sizes, boxes of ranges, and the table that maps sizes to targets.

Pure Python, no torch: this is what every other stage agrees on.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from piecewise_core.errors import ConfigError

__all__ = [
    "Box",
    "Range",
    "Sizes",
    "Target",
    "TargetTable",
    "capture_targets",
    "cut",
    "plan_targets",
]

Sizes = tuple[int, ...]
"""One size per dynamic dimension, in the order of the dims."""

TargetKind = Literal["replayed", "compiled_size", "compiled_range", "general", "eager"]

_TABLE_CELLS = 1 << 18
"""Largest dense look-up table, in cells (8 bytes each); larger bounds use bisection."""


@dataclass(frozen=True, order=True)
class Range:
    """Sizes from ``start`` to ``end``, in rows, both inclusive.

    Raises ConfigError when ``start > end``.
    """

    start: int
    end: int

    def __post_init__(self) -> None:
        if self.start > self.end:
            raise ConfigError(
                f"Range({self.start}, {self.end}): start lies above end; "
                "both ends are inclusive, so start <= end"
            )

    def __contains__(self, size: object) -> bool:
        return isinstance(size, int) and self.start <= size <= self.end

    def is_single_size(self) -> bool:
        """Whether the range holds exactly one size."""
        return self.start == self.end

    def __str__(self) -> str:
        return f"[{self.start}, {self.end}]"


@dataclass(frozen=True, order=True)
class Box:
    """One Range per dynamic dimension; holds a tuple of sizes when each lies in its Range."""

    ranges: tuple[Range, ...]

    @classmethod
    def single(cls, sizes: Iterable[int]) -> Box:
        """The box that holds exactly ``sizes``."""
        return cls(tuple(Range(size, size) for size in sizes))

    def __contains__(self, sizes: object) -> bool:
        return (
            isinstance(sizes, tuple)
            and len(sizes) == len(self.ranges)
            and all(size in r for size, r in zip(sizes, self.ranges, strict=True))
        )

    def is_single_size(self) -> bool:
        """Whether the box holds exactly one tuple of sizes."""
        return all(r.is_single_size() for r in self.ranges)

    def intersect(self, other: Box) -> Box | None:
        """The sizes that lie in both boxes, or None when there are none."""
        pairs = [
            (max(a.start, b.start), min(a.end, b.end))
            for a, b in zip(self.ranges, other.ranges, strict=True)
        ]
        return Box(tuple(Range(*p) for p in pairs)) if all(a <= b for a, b in pairs) else None

    def __str__(self) -> str:
        return " x ".join(str(r) for r in self.ranges) or "(no dynamic dims)"


@dataclass(frozen=True)
class Target:
    """What a call's sizes map to: how the call is counted, and the box that its plan serves.

    ``capture``: the sizes that are replayed, for targets of kind "replayed".
    """

    kind: TargetKind
    box: Box
    capture: Sizes | None = None

    def __str__(self) -> str:
        padded = self.capture is not None and not self.box.is_single_size()
        return f"{self.kind} {self.box}{f' padded to {self.capture}' if padded else ''}"


def cut(bounds: Range, endpoints: Iterable[int]) -> tuple[Range, ...]:
    """Partition ``bounds`` after each endpoint.

    ``cut(Range(1, 8192), [8, 32])`` is ``[1, 8] [9, 32] [33, 8192]``. An endpoint at or above
    the upper bound, or below the lower one, cuts nothing.
    """
    inner = sorted({e for e in endpoints if bounds.start <= e < bounds.end})
    starts = [bounds.start, *(e + 1 for e in inner)]
    return tuple(Range(s, e) for s, e in zip(starts, [*inner, bounds.end], strict=True))


def plan_targets(
    bounds: Box, endpoints: Sequence[Iterable[int]], sizes: Iterable[Sizes]
) -> tuple[Target, ...]:
    """Every target inside ``bounds``: the exact sizes first, then the grid of ranges.

    ``endpoints`` holds the inclusive range ends of each dim. A size outside ``bounds`` is left
    out (it belongs to another region); a range of one size that is also an exact size is that
    exact size.
    """
    exact = sorted({s for s in sizes if s in bounds})
    targets = [Target("compiled_size", Box.single(s)) for s in exact]
    grid = [cut(r, e) for r, e in zip(bounds.ranges, endpoints, strict=True)]
    singles = {t.box for t in targets}
    targets += [
        Target("compiled_range", box)
        for box in (Box(cell) for cell in itertools.product(*grid))
        if box not in singles
    ]
    return tuple(targets)


def capture_targets(
    bounds: Box, sizes: Iterable[Sizes], *, padded: Collection[int] = ()
) -> tuple[Target, ...]:
    """One target per capture size in ``bounds``.

    ``padded``: places of dims; each capture size also serves what is smaller in these and equal
    in all others. The smallest capture size that holds a call's sizes wins, since it comes first.
    """
    inside = sorted({s for s in sizes if s in bounds}, key=lambda s: (math.prod(s), s))
    exact = [Target("replayed", Box.single(s), s) for s in inside]
    if not padded:
        return tuple(exact)
    below = [Target("replayed", _below(bounds, s, padded), s) for s in inside]
    return (*exact, *below)


def _below(bounds: Box, sizes: Sizes, padded: Collection[int]) -> Box:
    return Box(
        tuple(
            Range(span.start if place in padded else size, size)
            for place, (span, size) in enumerate(zip(bounds.ranges, sizes, strict=True))
        )
    )


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
        self._breaks = [
            _breaks(r, [box.ranges[i] for _, box in boxes]) for i, r in enumerate(bounds.ranges)
        ]
        shape = [len(b) for b in self._breaks]
        if math.prod(shape) > _TABLE_CELLS:
            raise ConfigError(
                f"{len(self.targets)} ranges and sizes over {len(shape)} dims make "
                f"{math.prod(shape)} cells; list fewer sizes or endpoints"
            )
        self._strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
        self._cells = self._fill(shape, boxes)
        self.find: Callable[..., int] = self._build()

    def _fill(self, shape: Sequence[int], boxes: Sequence[tuple[int, Box]]) -> list[int]:
        """The winning target of every cell of the grid that the targets' ends make."""
        cells = [self.miss] * math.prod(shape)
        for index, box in reversed(boxes):
            spans = [
                range(bisect_right(b, r.start) - 1, bisect_right(b, r.end))
                for b, r in zip(self._breaks, box.ranges, strict=True)
            ]
            for place in itertools.product(*spans):
                at = sum(p * s for p, s in zip(place, self._strides, strict=True))
                cells[at] = index
        return cells

    def _build(self) -> Callable[..., int]:
        """One dense table when the bounds are small, else one bisection per dim."""
        cells, miss = self._cells, self.miss
        if not self._breaks:
            (only,) = cells
            return lambda: only
        dense = [
            _dense(r, b, s)
            for r, b, s in zip(self.bounds.ranges, self._breaks, self._strides, strict=True)
        ]
        if len(dense) == 1:
            return _find_one(self.bounds.ranges[0], self._breaks[0], dense[0], cells, miss)
        return _find_many(self.bounds.ranges, self._breaks, self._strides, dense, cells, miss)


def _breaks(bounds: Range, ranges: Iterable[Range]) -> list[int]:
    """Sizes at which the answer may change, in order, the lower bound first."""
    starts = {bounds.start}
    for r in ranges:
        starts.update((r.start, r.end + 1))
    return sorted(s for s in starts if s in bounds)


def _dense(bounds: Range, breaks: Sequence[int], stride: int) -> list[int] | None:
    """``table[size - start]`` = the cell offset of ``size``, or None when it would be large."""
    if bounds.end - bounds.start >= _TABLE_CELLS:
        return None
    ends = [*breaks[1:], bounds.end + 1]
    return [
        place * stride
        for place, (lo, hi) in enumerate(zip(breaks, ends, strict=True))
        for _ in range(lo, hi)
    ]


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
