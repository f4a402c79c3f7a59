"""Plans of memory that went away and may come again.

A generation has a cache of its own, which it lets go of at its end; the allocator gives that memory
to the next one's. Graphs know addresses only, so they serve it as well, without another capture.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from piecewise_core.capture.captured import CapturedPlan

__all__ = ["MOST_RESTING", "Resting", "addresses"]

MOST_RESTING = 2
"""Sets of addresses: a cache that lives until the next one is made alternates between two."""

Addresses = tuple[int, ...]


class Resting:
    """Plans that serve nothing now, by where what they read lay; the last few sets of addresses."""

    def __init__(self) -> None:
        self._plans: dict[Addresses, list[CapturedPlan]] = {}

    def __len__(self) -> int:
        return len(self._plans)

    def add(self, plans: Iterable[CapturedPlan]) -> list[CapturedPlan]:
        """Keep ``plans``; returns those that are too many now."""
        for plan in plans:
            self._plans.setdefault(plan.at, []).append(plan)
        left: list[CapturedPlan] = []
        while len(self._plans) > MOST_RESTING:
            left += self._plans.pop(next(iter(self._plans)))
        return left

    def take(self, at: Addresses) -> list[CapturedPlan]:
        """Those that serve what lies at ``at``; they rest no more."""
        return self._plans.pop(at, [])

    def clear(self) -> list[CapturedPlan]:
        """Keep none; returns them."""
        left = [plan for plans in self._plans.values() for plan in plans]
        self._plans.clear()
        return left


def addresses(tensors: Sequence[torch.Tensor]) -> Addresses:
    """Where tensors lie."""
    return tuple([t.data_ptr() for t in tensors])
