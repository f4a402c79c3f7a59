"""Sizes 0 and 1: in a region with larger ones only where the model does the same there.

Dynamo's sizes are symbols that it takes for ordinary ones. ``if rows > 0`` is answered during the
trace, and so is whatever an operator asks of a size being 0 or 1, and neither leaves a guard. So
what the trace says is compared with what the model does there: each operation is run at those
sizes, on tensors without data; where Python itself may have decided, the model is traced at them.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from piecewise_core.config import Config
from piecewise_core.errors import PiecewiseError, TraceFailed
from piecewise_core.graph import questions
from piecewise_core.graph.concrete import NotRun, disagreement
from piecewise_core.graph.countingtrace import trace_counting
from piecewise_core.graph.derived import small_derived
from piecewise_core.graph.origins import Bind
from piecewise_core.graph.paths import same_path
from piecewise_core.graph.structure import Structure
from piecewise_core.graph.trace import Traced, hints
from piecewise_core.ranges import Box, Range, Sizes

__all__ = ["trace_region"]

logger = logging.getLogger(__name__)

_MOST_TRACED = 2
"""Dims that may be empty in one trace's check: each doubles the traces that it takes."""

_MOST_TOGETHER = 3
"""Dims that are small together in any way; more are in pairs, and all at once."""

Trace = Callable[[Box], Traced]


def trace_region(
    fn: Callable[..., Any],
    structure: Structure,
    config: Config,
    cell: Box,
    bind: Bind,
    hint: Sizes | None = None,
) -> Traced:
    """Trace ``fn`` for sizes in ``cell`` as ``trace`` does, small sizes only where they fit.

    The result's box leaves out size 0 of a dim, or sizes 0 and 1, where the model does something
    else there, and sizes at which another size, computed from them, is 0 or 1 and matters.
    """
    inner = Box(tuple(_from_size(r, min(r.end, 1)) for r in cell.ranges))
    traced = trace_counting(fn, structure, config, inner, bind, hint=hint)

    def again(box: Box) -> Traced:
        return trace_counting(fn, structure, config, box, bind, assume=False)

    if _misreads(traced, again):
        if config.regions != "auto":
            raise TraceFailed(_MISREAD)
        at = hint or hints(inner)
        alone = Box(tuple(Range(size, size) for size in at))
        return trace_region(fn, structure, config, alone, bind, at)
    traced = _without_ones(traced, again)
    traced = _with_zeros(traced, cell, again)
    if config.regions != "auto":
        return traced  # no region could have the sizes that were left out
    box, at = traced.box, hint or hints(inner)
    for place, misfits in _derived_misfits(traced, again):
        if at[place] in misfits:
            alone = box.replaced(place, Range(at[place], at[place]))
            return trace_region(fn, structure, config, alone, bind, at)
        box = box.replaced(place, box.ranges[place].without(misfits) or box.ranges[place])
    return replace(traced, box=box)


_MISREAD = (
    "the model rounds a size to digits, as round(size, -1) does, which torch traces as the size "
    "itself, or compares its __class__ with int. Write it with whole numbers, (size + 5) // 10 * "
    '10, and isinstance; or leave Config(regions="auto"): then each size is traced by itself'
)


def _misreads(traced: Traced, again: Trace) -> bool:
    """Whether the model asked a size what torch's symbols answer as no number does.

    Read in torch 2.11.0 and 2.13.0: ``SymInt.__round__`` leaves out how many digits. Where code
    may ask so, the model is traced at sizes that are no round numbers.
    """
    spans = traced.box.ranges
    if questions.MISREAD not in traced.words or all(span.start == span.end for span in spans):
        return False
    at = hints(traced.box)
    tried = (
        {i: span.nearest(at[i] // 10 * 10 + digit) for i, span in enumerate(spans)}
        for digit in (3, 7)
    )
    return not all(_same_when_traced(traced, fixed, again) for fixed in tried)


def _without_ones(traced: Traced, again: Trace) -> Traced:
    """``traced`` without size 1 of the dims where it is an exception."""
    while True:
        ones = [i for i, r in enumerate(traced.box.ranges) if r.start == 1 < r.end]
        misfits = (s for s in _subsets(ones) if not _fits(traced, dict.fromkeys(s, 1), again))
        wrong = next(misfits, None)
        if wrong is None:
            return traced
        traced = replace(traced, box=_from(traced.box, wrong[:1], 2))


def _with_zeros(traced: Traced, cell: Box, again: Trace) -> Traced:
    """``traced`` with size 0 of the dims where it is no exception."""
    pairs = enumerate(zip(cell.ranges, traced.box.ranges, strict=True))
    zeros = [
        i for i, (wanted, found) in pairs if wanted.start == 0 and found.start == 1 < found.end
    ]
    ones = [i for i, r in enumerate(traced.box.ranges) if r.start == 1 < r.end]
    if not zeros or len(zeros) > _MOST_TRACED:
        return traced
    for empty in _subsets(zeros):
        fixed = dict.fromkeys(empty, 0)
        for small in ((), *_subsets([i for i in ones if i not in empty])):
            if _disagrees(traced, {**fixed, **dict.fromkeys(small, 1)}):
                return traced
        if not _same_when_traced(traced, fixed, again):
            return traced
    return replace(traced, box=_from(traced.box, zeros, 0))


def _derived_misfits(traced: Traced, again: Trace) -> Iterator[tuple[int, Range]]:
    """Place of a dim, and its sizes at which a derived size is 0 or 1 and that is an exception."""
    for place in range(len(traced.box.ranges)):
        for alike in small_derived(traced, place):
            if not _fits(traced, {place: alike.start}, again):
                yield place, alike


def _fits(traced: Traced, fixed: Mapping[int, int], again: Trace) -> bool:
    """Whether ``traced`` is what the model does with the dims in ``fixed`` at those sizes."""
    found = _disagrees(traced, fixed)
    if found or (found is False and not traced.asks_layout):
        return not found
    return _same_when_traced(traced, fixed, again)


def _disagrees(traced: Traced, fixed: Mapping[int, int]) -> bool | None:
    """Whether an operation does something else there; None where that cannot be seen."""
    sizes = tuple(fixed.get(i, size) for i, size in enumerate(hints(traced.box)))
    try:
        why = disagreement(traced, sizes)
    except NotRun as error:
        logger.debug("sizes %s are traced to see what the model does there: %s", sizes, error)
        return None
    if why is not None:
        logger.info("sizes %s are traced by themselves: %s", sizes, why)
    return why is not None


def _same_when_traced(traced: Traced, fixed: Mapping[int, int], again: Trace) -> bool:
    ranges = enumerate(traced.box.ranges)
    box = Box(tuple(Range(fixed[i], fixed[i]) if i in fixed else r for i, r in ranges))
    try:
        other = again(box)
    except PiecewiseError:
        return False
    if traced.counted or other.counted:  # which may have been asked something else there
        return False
    return other.box == box and same_path(traced, other, fixed)


def _from(box: Box, places: Sequence[int], start: int) -> Box:
    ranges = enumerate(box.ranges)
    return Box(tuple(_from_size(r, start) if i in places else r for i, r in ranges))


def _from_size(span: Range, start: int) -> Range:
    """``span`` from ``start`` on; with 0, where it is that."""
    if start == 0:
        return Range.of([0, *span]) or span if not span.is_whole else Range(0, span.end)
    return span.clip(start, span.end) or span


def _subsets(places: Sequence[int]) -> Iterator[tuple[int, ...]]:
    counts = range(1, len(places) + 1)
    if len(places) > _MOST_TOGETHER:
        counts = (1, 2, len(places))  # type: ignore[assignment]
    for count in counts:
        yield from itertools.combinations(places, count)
