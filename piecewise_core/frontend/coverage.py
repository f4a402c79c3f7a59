"""The bounds as cells: what regions hold, what is left to trace."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence

from piecewise_core.config import Config, Dim
from piecewise_core.errors import OutOfRange
from piecewise_core.graph.trace import hints
from piecewise_core.ranges import LISTED, NO_BOUND, Box, Range, Sizes, cut

__all__ = [
    "cell_like",
    "cell_of",
    "fixes",
    "hint_in",
    "out_of_range",
    "unbounded",
    "uncovered",
]


def unbounded(dims: Sequence[Dim]) -> Box:
    """The bounds of ``dims`` without upper ends."""
    return Box(tuple(dim.sizes_to(NO_BOUND) for dim in dims))


def out_of_range(config: Config, sizes: Sizes, *, general: bool = True) -> OutOfRange:
    """The error for sizes that no region may hold.

    ``general``: whether there may be a graph without upper bound.
    """
    pairs = list(zip(config.dims, sizes, strict=True))
    wrong = [(dim, size) for dim, size in pairs if size % dim.multiple_of]
    if wrong:
        text = "; ".join(
            f'size {size} of dim "{dim.name}" is no multiple of {dim.multiple_of}; the next legal '
            f"size is {-(-size // dim.multiple_of) * dim.multiple_of}"
            for dim, size in wrong
        )
        text = f"{text}: pad to it, or change Dim.multiple_of"
    else:
        wrong = [(dim, size) for dim, size in pairs if not dim.min <= size <= dim.max]
        named = (
            f'size {size} of dim "{dim.name}" is outside [{dim.min}, {dim.max}]'
            for dim, size in wrong
        )
        compiled = '"general" (compiled without upper bound) or ' if general else ""
        text = "; ".join(named)
        text = f'{text}; widen Dim(min, max), or set out_of_range={compiled}"eager"'
    error = OutOfRange(text)
    error.sizes = tuple(sizes)
    for dim, size in wrong[:1]:
        error.dim, error.size, error.bounds = dim.name, size, (dim.min, dim.max)
    return error


def cell_like(known: list[Box], bounds: Box, sizes: Sizes) -> Box:
    """All sizes that lie in the known ranges just as ``sizes`` do: the model may do alike there.

    Of what is too much to be listed, the cell between the known boxes' ends.
    """
    found = []
    between = cell_of(known, bounds, sizes)
    for place, (span, size) in enumerate(zip(bounds.ranges, sizes, strict=True)):
        if known and size <= 1:
            found.append(between.ranges[place])
            continue
        like = span if span.end - span.start < LISTED else between.ranges[place]
        for r in dict.fromkeys(b.ranges[place] for b in known):
            left = like.intersect(r) if size in r else _without(like, r)
            like = like if left is None else left  # none is: ``size`` is left
        found.append(like)
    return Box(tuple(found))


def _without(span: Range, other: Range) -> Range | None:
    return span if span.intersect(other) is None else span.without(other)


def fixes(box: Box, cell: Box) -> bool:
    """Whether a region in ``cell`` has one size of a dim that has several there."""
    pairs = zip(box.ranges, cell.ranges, strict=True)
    return any(r.is_single_size() and not c.is_single_size() for r, c in pairs)


def hint_in(
    cell: Box, known: list[Box], bounds: Box, sizes: Sizes, fixed: Collection[int] = ()
) -> Sizes:
    """Sizes to trace ``cell`` with: those called, so that the trace holds for the call.

    The usual ones in place of 0 and 1, which are none to trace with, and, while nothing is known,
    of sizes that may be equal to others by accident: another dim's, or one of ``fixed``. The usual
    ones too in dims where the model takes one path only.
    """
    usual = hints(cell)
    found: list[int] = []
    for place, (span, size) in enumerate(zip(cell.ranges, sizes, strict=True)):
        cut = any(b.ranges[place] != bounds.ranges[place] for b in known)
        own = cut or not (known or size in fixed or sizes.count(size) > 1)
        wanted = size if own and size > 1 else usual[place]
        if cut and size <= 1:
            wanted = span.nearest(2)  # the likeliest to do as that size
        while not cut and wanted in found and wanted < span.end:
            wanted = span.nearest(wanted + 1)
        found.append(wanted)
    return tuple(found)


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
        parts = _parts(span, list(dict.fromkeys(b.ranges[place] for b in known)))
        starts.append(sorted({r.end for r in parts}, reverse=True))
        if known and 0 in span and 0 not in starts[-1]:
            starts[-1].append(0)
    for sizes in itertools.product(*starts):
        if not any(sizes in box for box in known):
            return sizes
    return None


def _parts(span: Range, known: list[Range]) -> list[Range]:
    """``span`` in parts each of which lies wholly in or out of each of ``known``."""
    if span.end - span.start >= LISTED:
        return list(cut(span, {e for r in known for e in (r.start - 1, r.end)}))
    parts = [span]
    for r in known:
        both = [(part.intersect(r), _without(part, r)) for part in parts]
        parts = [piece for pair in both for piece in pair if piece is not None]
    return parts
