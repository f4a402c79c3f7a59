"""Whether the forks of a size's graph run on two streams: as asked, or as was measured."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from piecewise_core.capture.captured import CapturedPlan
from piecewise_core.capture.graphmemory import GraphMemory
from piecewise_core.capture.preserved import Preserved
from piecewise_core.capture.source import Source
from piecewise_core.capture.timing import medians
from piecewise_core.errors import CaptureFailed
from piecewise_core.ranges import Sizes

__all__ = ["GAINS", "GraphStreams"]

logger = logging.getLogger(__name__)

GAINS = 0.97
"""Of the time on one stream, the most that a replay on two may take to be kept."""

_ROUNDS = 21

_Take = Callable[..., CapturedPlan]


class GraphStreams:
    """Captures the sizes of one form of calls. ``said``: what there is to say of each.

    ``mode``: as Config.graph_streams. Without a driver's ``wait_stream`` there is one stream.
    """

    def __init__(self, memory: GraphMemory, mode: str) -> None:
        self._memory = memory
        self._mode = mode if memory.platform.wait_stream is not None else "one"
        self.said: dict[Sizes, str] = {}

    def side(self, whole: bool) -> Any:
        """The other stream of graphs that are made now, ``whole`` or not; None for none."""
        if not whole or self._mode == "one":
            return None
        timed = self._mode == "two" or self._memory.platform.elapsed is not None
        return self._memory.side() if timed else None

    def capture(
        self,
        take: _Take,
        source: Source,
        sizes: Sizes,
        whole: bool,
        again: Callable[[], Source] | None,
    ) -> CapturedPlan:
        """The plan of one size. Raises what its capture raises.

        ``take(source=, side=)``: captures it. ``again``: makes the source anew, its inputs staged;
        None where other ranks capture too: each would find another answer. With "auto" both
        captures are there for a while. What cannot be captured on two streams is on one.
        """
        side = self.side(whole)
        if side is None:
            return take(source=source)
        before, why = self._before(source, alone=again is not None)
        if why:
            self.said[sizes] = f"one stream, as {why}"
            return take(source=replace(source, rehearsed=None))
        try:
            two = take(source=source, side=side)
        except CaptureFailed as error:
            if again is None:
                raise
            logger.warning("sizes %s are captured on one stream, as two failed: %s", sizes, error)
            one = take(source=replace(again(), rehearsed=None, like=source.like))
            self.said[sizes] = f"one stream, as two failed: {error}"
            return one
        forks = f"{two.forks} fork{'s' * (two.forks > 1)}"
        if not two.forks:
            self.said[sizes] = "one stream, as nothing in it is independent of enough else"
        if before is None or not two.forks:
            self.said.setdefault(sizes, f"two streams, {forks}")
            return two
        before.put_back()
        kept, why = self._faster(two, take, source, before)
        self.said[sizes] = f"{'two streams' if kept is two else 'one stream'} for {forks}: {why}"
        logger.info("sizes %s: %s", sizes, self.said[sizes])
        return kept

    def _before(self, source: Source, *, alone: bool) -> tuple[Preserved | None, str]:
        """With "auto": what measuring must put back; or why nothing is measured."""
        if self._mode == "two":
            return None, ""
        if not alone:
            return None, "nothing is measured with other ranks"
        rng = self._memory.platform.rng
        # Inputs too, though the next call puts its own there: an index that runs move on must not
        # come to lie beyond a table.
        written = (*source.written, *(source.inputs if source.owned else ()))
        try:
            return Preserved(written, () if rng is None else (rng(),), draws=True), ""
        except torch.OutOfMemoryError:
            return None, "there is no memory to measure"

    def _faster(
        self, two: CapturedPlan, take: _Take, source: Source, before: Preserved
    ) -> tuple[CapturedPlan, str]:
        """``two``, or a capture on one stream; and why. The other one is gone."""
        try:
            one = take(source=replace(source, rehearsed=None))
        except CaptureFailed as error:
            return two, f"one could not be captured beside it: {error}"
        before.put_back()
        replays = one.replay, two.replay
        platform, put_back = self._memory.platform, before.put_back
        usual, parted = medians(platform, replays, put_back, rounds=_ROUNDS)
        kept = two if parted <= GAINS * usual else one
        self._memory.reset(one if kept is two else two)
        return kept, f"{parted * 1e6:.1f} us on two, {usual * 1e6:.1f} us on one"
