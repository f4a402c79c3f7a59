"""The bounds as cells: what regions hold, what is left to trace."""

from __future__ import annotations

import itertools

from piecewise_core.config import Config
from piecewise_core.ranges import Box, Range, Sizes, cut

__all__ = ["cell_of", "out_of_range", "uncovered"]


def out_of_range(config: Config, sizes: Sizes) -> str:
    """The message for sizes that no region may hold."""
    wrong = [
        f'size {size} of dim "{dim.name}" is outside [{dim.min}, {dim.max}]'
        for dim, size in zip(config.dims, sizes, strict=True)
        if not dim.min <= size <= dim.max
    ]
    return (
        f'{"; ".join(wrong)}; widen Dim(min, max), or set out_of_range="general" (compiled '
        'without upper bound) or "eager"'
    )


def cell_of(known: list[Box], bounds: Box, sizes: Sizes) -> Box:
    """The cell of the grid made by the known boxes' ends that holds ``sizes``."""
    found = []
    for place, (span, size) in enumerate(zip(bounds.ranges, sizes, strict=True)):
        ends = {e for b in known for e in (b.ranges[place].start - 1, b.ranges[place].end)}
        cell = next((r for r in cut(span, ends) if size in r), span)
        # 0 and 1 behave differently from each other wherever one of them differs at all.
        found.append(Range(size, size) if known and size <= 1 and cell.end <= 1 else cell)
    return Box(tuple(found))


def uncovered(known: list[Box], bounds: Box) -> Sizes | None:
    """Some sizes in ``bounds`` that no known box holds, the largest first; None when all are."""
    starts = []
    for place, span in enumerate(bounds.ranges):
        ends = {e for b in known for e in (b.ranges[place].start - 1, b.ranges[place].end)}
        starts.append([r.end for r in reversed(cut(span, ends))])
        if known and 0 in span and 1 in span:
            starts[-1].append(0)
    for sizes in itertools.product(*starts):
        if not any(sizes in box for box in known):
            return sizes
    return None
