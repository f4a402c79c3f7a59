"""Graphs that all ranks have, or none."""

from __future__ import annotations

from piecewise_core.capture.plans import CapturedPlans
from piecewise_core.ranges import Sizes

__all__ = ["alike", "level"]


def alike(plans: CapturedPlans, sizes: list[Sizes]) -> list[Sizes]:
    """Those of ``sizes`` that all ranks are about to capture; the others are dropped."""
    lacks = plans.ranks.common("the sizes to capture", sizes)
    for each in sizes:
        rank = lacks(each)
        if rank is not None:
            plans.drop(each, f"rank {rank} captures no graphs of them")
    return [each for each in sizes if each not in plans.dropped]


def level(plans: CapturedPlans) -> None:
    """Give up what other ranks have no graphs of, for want of memory perhaps."""
    lacks = plans.ranks.common("what is captured", plans.captured)
    for sizes in plans.captured:
        rank = lacks(sizes)
        if rank is not None:
            plans.evict(sizes, f"rank {rank} has no graphs of sizes {sizes}")
    plans.evicted.clear()
