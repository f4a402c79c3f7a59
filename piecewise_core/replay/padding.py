"""Calls of one size served by graphs of a larger one: asked for, proved, cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from piecewise_core.capture.captured import CapturedPlan
from piecewise_core.ranges import Sizes
from piecewise_core.ranks.ranks import Ranks
from piecewise_core.replay.agreement import Difference
from piecewise_core.replay.paddingcheck import PaddingCheck, leak
from piecewise_core.replay.replayable import Entry, PaddedCalls

__all__ = ["Padding", "beside"]


def beside(ranks: Ranks, captured: Sizes, otherwise: Entry, *, alone: bool = True) -> Entry:
    """``otherwise``, for calls that the graphs of ``captured`` do not serve just now.

    Not for padded ones if ``alone`` on this rank: other ranks' collectives have other sizes.
    """
    if ranks.meeting is None or not alone:
        return otherwise

    def entry(t: Any, b: Any, sizes: Sizes, args: Any, kwargs: Any) -> Any:
        if sizes != captured:
            ranks.meet(f"a call of sizes {sizes}, without the graphs of {captured}")
        return otherwise(t, b, sizes, args, kwargs)

    return entry


class Padding:
    """What stands before padded calls of one captured size until they are proved.

    ``left``: how many calls are still to be compared, whatever their sizes; while there are some,
    or ``calls.asks``, ``first`` tells what serves a call in place of ``replayed``, the entry that
    has this. ``buffers``: what the graphs of ``plan`` read. ``otherwise``: serves a call without
    graphs. ``apart``: copies a call's inputs where a replay would overwrite them. ``ranks``: those
    that replay alike.
    """

    def __init__(
        self,
        calls: PaddedCalls,
        plan: CapturedPlan,
        buffers: Sequence[torch.Tensor],
        otherwise: Entry,
        apart: Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]],
        ranks: Ranks,
    ) -> None:
        self.calls = calls
        self._plan = plan
        self._buffers = buffers
        self._otherwise = otherwise
        self._apart = apart
        self._ranks = ranks
        self.replayed: Entry = otherwise
        self.left = calls.checked
        self.cut = calls.cut

    def first(self, sizes: Sizes) -> Entry | None:
        """What serves a call of ``sizes`` in place of ``replayed``; None where that may."""
        if not self.calls.allows(sizes):
            return self._otherwise
        if not self.left and not self.calls.learns(sizes):
            return None

        def proved(t: Any, b: Any, own: Sizes, args: Any, kwargs: Any) -> Any:
            return self._proved(t, b, own, args, kwargs)

        return proved

    def _proved(self, t: Any, b: Any, sizes: Sizes, args: Any, kwargs: Any) -> Any:
        t = self._apart(t)
        alone = self.calls.alone(t, b, sizes, args, kwargs)
        self.left = max(self.left - 1, 0)
        if alone.comparable and self.calls.allows(sizes):
            plan = self._plan
            check = PaddingCheck(
                self._buffers,
                plan.prepare,
                plan.replay,
                lambda own: self.calls.cut(plan.outputs, own)[0],
                wild=alone.wild,
                alike=self._alike,
            )
            found = check(t, sizes, alone.outputs)
            if found is not None:
                self.left = 0
                line = self.calls.made_at(found.place)
                self.calls.refuse(sizes, leak(sizes, plan.sizes, found, line))
        if alone.serves:
            return alone.result
        left, self.left = self.left, 0  # this call asks no more on its way
        try:
            return self.replayed(t, b, sizes, args, kwargs)
        finally:
            self.left = left

    def _alike(self, found: Difference | None) -> Difference | None:
        """What padding changed on any rank: all stop to pad, or none."""
        how = self._ranks.heard("a padded call, compared", None if found is None else str(found))
        return found if found is not None or how is None else Difference(0, how)
