"""Keep graph memory within its budget."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection
from typing import Protocol, TypeVar

from piecewise_core.capture.captured import CapturedPlan, Owner
from piecewise_core.capture.resting import Resting
from piecewise_core.errors import CaptureFailed, OutOfGraphMemory

__all__ = ["make_room", "once_more", "spared"]

T = TypeVar("T")


class Memory(Protocol):
    """What is asked of a GraphMemory."""

    short: bool

    @property
    def resting(self) -> Collection[Resting]: ...
    @property
    def retired(self) -> bool: ...
    def bytes(self) -> int: ...
    def plans(self) -> list[tuple[Owner | None, CapturedPlan]]: ...
    def retire(self, *plans: CapturedPlan) -> None: ...
    def freed(self) -> None: ...
    def begin_over(self) -> None: ...
    def give_back(self) -> None: ...


def once_more(memory: Memory, attempt: Callable[[], T], *, last: bool) -> T:
    """``attempt()``, a capture; if it fails, again without what rests, where anything does.

    And without any garbage, when memory runs out for the first time. ``last``: nothing else is
    tried after it; else only a lack of memory is worth what rests.
    """
    try:
        return attempt()
    except CaptureFailed as error:
        out = isinstance(error, OutOfGraphMemory)
        first = out and not memory.short
        if not ((last or out) and spared(memory)) and not first:
            raise
    if first:
        memory.short = True
        gc.collect()
    memory.give_back()
    return attempt()


def spared(memory: Memory) -> bool:
    """Free what rests, for a capture; whether there was any."""
    plans = [plan for resting in memory.resting for plan in resting.clear()]
    memory.retire(*plans)
    memory.freed()
    return bool(plans)


def make_room(memory: Memory, newest: CapturedPlan | None, limit: int) -> None:
    """Evict the plans used longest ago; where that gives nothing back, the newest, then all.

    Sizes share the pool, so freeing a small one may give nothing back; and a pool may never
    shrink. What another thread may be reading is given back when it is done.
    """
    while (before := memory.bytes()) > limit and memory.plans():
        owner, plan = memory.plans()[0]
        _evict(memory, owner, plan, limit)
        if plan is newest or memory.bytes() >= before:
            break
    for owner, plan in sorted(memory.plans(), key=lambda each: each[1] is not newest):
        if memory.bytes() > limit and not memory.retired:
            _evict(memory, owner, plan, limit)
    if memory.bytes() > limit:
        memory.begin_over()


def _evict(memory: Memory, owner: Owner | None, plan: CapturedPlan, limit: int) -> None:
    if owner is None:
        memory.retire(plan)
        memory.freed()
        return
    owner.evict(
        plan.sizes,
        f"evicted: graph memory passed memory_limit={limit} bytes; raise it, or list fewer "
        "capture_sizes",
    )
