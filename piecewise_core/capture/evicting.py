"""Keep graph memory within its budget."""

from __future__ import annotations

from typing import Protocol

from piecewise_core.capture.captured import CapturedPlan, Owner

__all__ = ["make_room"]


class Memory(Protocol):
    """What is asked of a GraphMemory."""

    @property
    def retired(self) -> bool: ...
    def bytes(self) -> int: ...
    def plans(self) -> list[tuple[Owner | None, CapturedPlan]]: ...
    def retire(self, plan: CapturedPlan) -> None: ...
    def freed(self) -> None: ...
    def begin_over(self) -> None: ...


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
