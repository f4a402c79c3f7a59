"""Traces at other sizes than the usual: where the model raises, or to tell what fixes a size."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from piecewise_core.errors import PiecewiseError, TraceFailed
from piecewise_core.frontend.coverage import fixes
from piecewise_core.graph.trace import Traced, hints
from piecewise_core.ranges import Box, Range, Sizes

__all__ = ["Trace", "as_numbers", "beside_objects", "check_others"]

Trace = Callable[[Box, Sizes], Traced]
"""Traces one form of calls for a box, at some of its sizes."""


def check_others(trace: Trace, cell: Box, box: Box, hint: Sizes) -> None:
    """Raise TraceFailed where all sizes but the traced one raise: something fixes it."""
    if not fixes(box, cell):
        return
    try:
        trace(cell, _others(cell, hint))
    except TraceFailed as error:
        if type(error) is TraceFailed:  # others are of paths that another region may take
            raise


def as_numbers(trace: Trace, cell: Box, sizes: Sizes, error: TraceFailed) -> Traced:
    """The trace of ``sizes`` alone, where Dynamo cannot follow what is done with a symbol.

    ``error``: what it said. Raises TraceFailed where others fail by themselves too: something else
    has to vary then.
    """
    found, other = trace(Box.single(sizes), sizes), _others(cell, sizes)
    if other == sizes:
        raise TraceFailed("there is no other size to tell by")
    trace(Box.single(other), other)
    why = f"each size is traced by itself, as a number: {str(error).partition(chr(10))[0]}"
    return replace(found, cuts=(why,))


def beside_objects(trace: Trace, cell: Box, hint: Sizes, sizes: Sizes) -> Traced:
    """The trace of ``cell`` with a dim as it was called: an object's tensors fix it.

    Raises TraceFailed.
    """
    for place, size in enumerate(sizes):
        at = (*hint[:place], size, *hint[place + 1 :])
        with suppress(PiecewiseError):
            return trace(cell.replaced(place, Range(size, size)), at)
    return trace(Box.single(sizes), sizes)


def _others(cell: Box, sizes: Sizes) -> Sizes:
    """Sizes of ``cell``, each another one than in ``sizes`` where there is another."""
    pairs = zip(cell.ranges, hints(cell), sizes, strict=True)
    return tuple(r.nearest(a + 1) if a == b else a for r, a, b in pairs)
