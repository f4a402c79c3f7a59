"""What the runs of a capture leave in Python: whether that lets the capture stand."""

from __future__ import annotations

from collections.abc import Collection

from piecewise_core.capture.plans import CapturedPlans
from piecewise_core.ranges import Sizes
from piecewise_core.runtime.treestate import TreeState

__all__ = ["LeftBehind"]


class LeftBehind:
    """``plans``: what is captured, and why other sizes are not."""

    def __init__(self, plans: CapturedPlans) -> None:
        self._plans = plans
        self._changing: set[Sizes] = set()
        self._warmed: dict[Sizes, str] = {}

    def told(self) -> list[str]:
        """The sizes without graphs, and why."""
        left = {sizes: why for sizes, why in self._warmed.items() if sizes not in self._plans}
        return [f"{sizes}: {why}" for sizes, why in (left | self._plans.dropped).items()]

    def seal(self) -> None:
        """What warm-up left to later calls runs as written from now on."""
        for sizes, why in self._warmed.items():
            if sizes not in self._plans:
                self._plans.dropped.setdefault(sizes, why)

    def why(
        self, state: TreeState, sizes: Sizes, given: Collection[int] | None, *, again: bool
    ) -> str | None:
        """Why a capture goes; None where it stands. ``again``: this call gave one up before.

        ``given``: None at a call, whose capture goes the first time that its runs changed anything:
        what they left may be the graphs' memory. In warm-up the memory of what the runs were given,
        which was nobody's: graphs find there what each call gives.
        """
        if given is None:
            if (sizes in self._changing and not again) or not state.check():
                return None
            self._changing.add(sizes)
            return "the function changed Python state; its next call is captured"
        kept = state.holding(given) if state.check() else None
        if kept is None:
            return None
        self._warmed[sizes] = f"the function keeps its input, as {kept}; its next calls capture it"
        return self._warmed[sizes]
