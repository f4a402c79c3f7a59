"""Which sizes are captured where there is not room for all."""

from __future__ import annotations

import math
from collections.abc import Iterable

from piecewise_core.capture.evicting import spared
from piecewise_core.capture.graphmemory import GraphMemory
from piecewise_core.protocols import BudgetContext
from piecewise_core.ranges import Sizes

__all__ = ["fitting", "largest_first", "thinned"]


def largest_first(sizes: Iterable[Sizes]) -> list[Sizes]:
    """``sizes``, each once, in the order of capture: memory of the first serves the others."""
    return sorted(dict.fromkeys(sizes), key=lambda s: (math.prod(s), s), reverse=True)


def thinned(sizes: list[Sizes], room: int) -> list[Sizes]:
    """``room`` of ``sizes``, evenly spread, the first and last always among them."""
    if room >= len(sizes):
        return sizes
    if room <= 1:
        return sizes[:room]
    step = (len(sizes) - 1) / (room - 1)
    return [sizes[round(i * step)] for i in range(room)]


def fitting(sizes: list[Sizes], each: int, memory: GraphMemory) -> tuple[list[Sizes], str]:
    """Those of ``sizes``, of ``each`` graphs, for which the device has handles, and why no more.

    What rests in ``memory`` makes room for them.
    """
    context = BudgetContext(each, tuple(sizes), memory.graphs)
    allowed = memory.platform.resource_budget(context)
    if allowed is None or each * len(sizes) <= allowed:
        return sizes, ""
    if spared(memory):
        return fitting(sizes, each, memory)
    need = f"{len(sizes)} sizes of {each} need {each * len(sizes)}"
    room = max(allowed // max(each, 1), 0)
    return thinned(sizes, room), f"the device has room for {allowed} more graphs, and {need}"
