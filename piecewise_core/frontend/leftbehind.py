"""What the runs of a capture leave in Python: whether that lets the capture stand."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from piecewise_core.capture.plans import CapturedPlans
from piecewise_core.frontend.refusals import refuse_advancing
from piecewise_core.graph.structure import is_plain
from piecewise_core.ranges import Sizes
from piecewise_core.runtime.classes import alike
from piecewise_core.runtime.treestate import TreeState

__all__ = ["LeftBehind"]


_TRIES = 3
"""Calls of one size that may set something, each another capture in vain."""


class LeftBehind:
    """``plans``: what is captured, and why other sizes are not."""

    def __init__(self, plans: CapturedPlans) -> None:
        self._plans = plans
        self._changing: dict[Sizes, int] = {}
        self._warmed: dict[Sizes, str] = {}
        self._set: set[Any] = set()
        self._between: dict[Any, tuple[str, Any]] = {}

    def told(self) -> list[str]:
        """The sizes without graphs, and why."""
        left = {sizes: why for sizes, why in self._warmed.items() if sizes not in self._plans}
        return [f"{sizes}: {why}" for sizes, why in (left | self._plans.dropped).items()]

    def seal(self) -> None:
        """What warm-up left to later calls runs as written from now on."""
        for sizes, why in self._warmed.items():
            if sizes not in self._plans:
                self._plans.dropped.setdefault(sizes, why)

    def before_run(self, state: TreeState) -> None:
        """One of the two runs of a capture begins. Raises CaptureFailed where it may not."""
        refuse_advancing(state)
        self._between = state.sets()

    def gives_up(
        self, state: TreeState, sizes: Sizes, derived: Collection[int] | None, *, again: bool
    ) -> bool:
        """Whether a capture goes; then its graphs did. ``again``: this call gave one up before.

        ``derived``: None at a call, whose capture goes the first time that its runs wrote
        anything, since what they left may be the graphs' memory, and for good where calls go on to
        set something. In warm-up the memory of what the runs were given and what they computed
        from it, which was nobody's: graphs find there what each call gives.
        """
        if not state.check():
            return False
        first, both = self._between, state.sets()
        if derived is not None:
            return self._warms_no_more(sizes, both, state.holding(derived))
        where = first | both  # the second run may have set it back
        tries = self._changing[sizes] = self._changing.get(sizes, 0) + (not again)
        if tries > 1 and not again and not where:
            return False
        if tries > _TRIES and where:
            place, _ = next(iter(where.values()))
            why = f"each call sets {place}, which a replay does not; such calls run as written"
            self._plans.evict(sizes, why)
        else:
            self._go(sizes, "the function changed Python state; its next call is captured")
        return True

    def _warms_no_more(
        self, sizes: Sizes, both: dict[Any, tuple[str, Any]], kept: str | None
    ) -> bool:
        """Tables and flags, which are made once, may stay: no numbers, nor what goes on to change.

        ``both``: what both runs set. ``kept``: where they keep what is nobody's, if anywhere.
        """
        first = self._between
        plain = {entry: at for entry, at in (first | both).items() if is_plain(at[1])}
        moving = [
            place
            for entry, (place, now) in plain.items()
            if entry in self._set
            or type(now) in (int, float, complex)
            or not (entry in first and entry in both and alike(first[entry][1], now))
        ]
        self._set |= plain.keys()
        if kept is not None:
            why = f"the function keeps its input, or what it computes from it, as {kept}"
        elif moving:
            why = f"the function sets {moving[0]}, which may be something else at each call"
        else:
            return False
        self._warmed[sizes] = f"{why}; its next calls capture it"
        self._go(sizes, self._warmed[sizes])
        return True

    def _go(self, sizes: Sizes, why: str) -> None:
        """Free the graphs; another call captures the size."""
        self._plans.evict(sizes, why)
        del self._plans.dropped[sizes]
