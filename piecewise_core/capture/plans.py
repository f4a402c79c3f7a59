"""The captured plans of one form of calls: one plan per size."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from piecewise_core.capture.attempt import capture
from piecewise_core.capture.captured import CapturedPlan
from piecewise_core.capture.evicting import once_more
from piecewise_core.capture.graphmemory import GraphMemory
from piecewise_core.capture.graphstreams import GraphStreams
from piecewise_core.capture.resting import Resting
from piecewise_core.capture.source import Source, beside, source_of
from piecewise_core.capture.thinning import fitting
from piecewise_core.counters import Counters
from piecewise_core.errors import CaptureFailed, OutOfGraphMemory, SizeBranch
from piecewise_core.events import EventKind
from piecewise_core.ranges import Sizes
from piecewise_core.ranks.ranks import Ranks

__all__ = ["CapturedPlans"]

logger = logging.getLogger(__name__)

_Made = Callable[[], Source]

_NOT_NOW = (
    "sizes %s are captured at a later call: another thread may still be reading what it was given "
    "last, which a capture overwrites; set clone_outputs=True to be free of that"
)


class CapturedPlans:
    """Captures the sizes of one form of calls, keeps their plans, frees them.

    ``memory``: what their graphs lie in, with those of other forms. ``dropped``: sizes that have no
    plan, and why; they are served by compiled ranges. ``owed``: sizes that ``release`` freed or let
    be tried anew: capturing them again is no news. ``called``: sizes that were served without, to
    be captured at their next call if ``lazy``. ``whole``: whether one graph is tried first.
    ``counters``: of these plans; the memory's, by default. ``ranks``: the processes that capture
    and free alike. ``evicted``: sizes dropped on this one alone, as far as is known.
    ``graph_streams``: as of Config.
    """

    def __init__(
        self,
        memory: GraphMemory,
        mode: str = "piecewise",
        *,
        lazy: bool = False,
        counters: Counters | None = None,
        ranks: Ranks | None = None,
        graph_streams: str = "one",
    ) -> None:
        self.memory = memory
        self.streams = GraphStreams(memory, graph_streams)
        self.ranks = ranks or Ranks()
        self.evicted: set[Sizes] = set()
        self.counters = counters or memory.counters
        self.callers = memory.callers
        self._platform = memory.platform
        # Whether to capture the whole forward as one graph, in order of preference.
        self._ways = {"full": [True], "full_and_piecewise": [True, False]}.get(mode, [False])
        self.whole = self._ways[0]
        self._plans: dict[Sizes, CapturedPlan] = {}
        self._resting = Resting()
        memory.resting.add(self._resting)
        self.dropped: dict[Sizes, str] = {}
        self.owed: set[Sizes] = set()
        self._warned, self._lazy = False, lazy
        self.called: set[Sizes] = set()

    def __contains__(self, sizes: object) -> bool:
        return sizes in self._plans

    def __len__(self) -> int:
        return len(self._plans)

    def __bool__(self) -> bool:
        return bool(self._plans or self._resting)

    @property
    def captured(self) -> tuple[Sizes, ...]:
        """The sizes that have plans."""
        return tuple(self._plans)

    @property
    def graphs(self) -> int:
        """How many graphs they have."""
        return sum(len(plan.graphs) for plan in self._plans.values())

    def __iter__(self) -> Iterator[CapturedPlan]:
        return iter(list(self._plans.values()))

    def get(self, sizes: Sizes) -> CapturedPlan | None:
        """The plan of ``sizes``, noted as used; None when it has to be captured, or cannot."""
        found = self._plans.get(sizes)
        if found is not None:
            self.memory.used(found)
        return found

    def is_early(self, sizes: Sizes) -> bool:
        """Whether a call of ``sizes`` is too early to capture them."""
        return self._lazy and not any(sizes in m for m in (self.called, self.owed, self._plans))

    def budget(self, graphs_per_size: int, sizes: list[Sizes]) -> list[Sizes]:
        """The sizes that the device has graph handles for: the ends are kept, the middle thinned.

        ``sizes``: largest first; those captured need none. Those left out are in ``dropped``.
        """
        sizes = [s for s in sizes if s not in self._plans and s not in self.dropped]
        graphs_per_size = 1 if all(self._ways) else graphs_per_size
        kept, why = fitting(sizes, graphs_per_size, self.memory)
        for size in sizes:
            if size not in kept:
                self.drop(size, why)
        return kept

    def capture(self, sizes: Sizes, source: _Made, *, more: bool = False) -> CapturedPlan | None:
        """Capture ``sizes`` unless it is; None when it failed, with the reason in ``dropped``.

        A failure drops this size and nothing else. ``more``: others follow; ``measure`` at the
        end counts the bytes of all. None, with no reason, while another thread may be reading
        outputs. Raises CaptureFailed inside a capture or a replay, which is the caller's mistake
        and drops nothing.
        """
        if sizes in self._plans or sizes in self.dropped:
            return self._plans.get(sizes)
        self.callers.refuse_inside(f"sizes {sizes} would be captured")
        settled = self.memory.settle()
        if not self.ranks.all(f"the capture of sizes {sizes}", settled):
            if not settled and not self._warned:
                logger.warning(_NOT_NOW, sizes)
            self._warned = True
            return None
        if self._platform.graphs.is_capturing():
            raise CaptureFailed(
                f"sizes {sizes} would be captured inside of a capture that runs on this stream; "
                "call warmup() before it"
            )
        begun = time.perf_counter()
        plan = self._attempt(sizes, source, more)
        self.owed.discard(sizes)
        if plan is None:
            return None
        self._plans[sizes] = plan
        self.counters.add("captures", len(plan.graphs))
        self.counters.tell("captured", "static graphs", sizes, time.perf_counter() - begun)
        self.memory.hold(self, plan)
        if not more:
            self.memory.measure()
        return self._plans.get(sizes)

    def _attempt(self, sizes: Sizes, source: _Made, more: bool) -> CapturedPlan | None:
        for whole in self._ways:
            made = partial(self._capture, source, sizes, whole)
            what = f"the capture of sizes {sizes}{' as one graph' if whole else ''}"
            jointly = partial(self.ranks.jointly, what, made, self.memory.reset)
            try:
                return once_more(self.memory, jointly, last=whole == self._ways[-1])
            except (CaptureFailed, SizeBranch) as error:
                if not (more or isinstance(error, CaptureFailed)):
                    raise  # data of this call's own
                if whole != self._ways[-1]:
                    logger.info("%s; captured in pieces instead", str(error))
                    continue
                self.drop(sizes, str(error))
                logger.warning("%s", self.dropped[sizes])
                if isinstance(error, OutOfGraphMemory):
                    self.memory.give_back()
        return None

    def drop(self, sizes: Sizes, why: str, kind: EventKind = "dropped") -> None:
        """Serve ``sizes``, which have no plan, without one."""
        self.dropped[sizes] = why
        self.counters.tell(kind, "static graphs", sizes, 0, why)

    def _capture(self, source: _Made, sizes: Sizes, whole: bool) -> CapturedPlan:
        memory = self.memory
        with self.callers.using():
            alone = self.ranks.meeting is None
            made = beside(source_of(source, sizes), self._plans, alone=alone)
            memory.open()
            if memory.in_order is not None:
                memory.in_order()
            where = memory.platform, memory.pool, memory.stream
            take = partial(capture, *where, sizes=sizes, whole=whole, tight=memory.short)
            again = partial(source_of, source, sizes) if alone else None
            return self.streams.capture(take, made, sizes, whole, again)

    def evict(self, sizes: Sizes, why: str) -> None:
        """Free one size's graphs, at once or when no other thread may be reading their outputs."""
        self._retire(sizes)
        self.memory.freed()
        self.drop(sizes, why, "evicted")
        self.evicted.add(sizes)
        logger.info("sizes %s: %s", sizes, why)

    def _retire(self, sizes: Sizes) -> None:
        plan = self._plans.pop(sizes, None)
        self.streams.said.pop(sizes, None)
        if plan is not None:
            self.memory.retire(plan)

    def follow(self, at: tuple[int, ...] | None) -> None:
        """Serve what lies at ``at`` from now on; None: nothing that plans were made of.

        Plans of other addresses rest, and those of these serve again. Freed instead: where memory
        is short or shared, and with other ranks, whose allocators may do otherwise.
        """
        memory = self.memory
        if at is None or memory.shared or memory.limit is not None or self.ranks.meeting:
            if self:
                self.release(later=True)
            return
        self.owed |= self._plans.keys()
        spare = self._resting.add(self._plans.values())
        self._plans = {plan.sizes: plan for plan in self._resting.take(at)}
        if spare:
            memory.retire(*spare)
            memory.freed(later=True)

    def release(
        self, sizes: Iterable[Sizes] | None = None, *, later: bool = False, collect: bool = False
    ) -> list[Sizes]:
        """Free graphs of this form, all or those of ``sizes``; returns the sizes that had plans.

        Memory whose outputs another thread may be reading is freed when that thread calls again.
        ``later``: so is this thread's, for what frees in the middle of a call: its inputs may be
        results. ``collect``: garbage too, if nothing is left. Raises CaptureFailed inside a replay.
        """
        self.callers.refuse_inside("static graphs would be freed")
        wanted = {*self._plans, *self.dropped} if sizes is None else set(sizes)
        held = [each for each in self._plans if each in wanted]
        if held:
            self.ranks.lose()
        self.owed |= {*held, *(wanted & self.dropped.keys())}
        self.memory.retire(*self._resting.clear())
        for each in held:
            self._retire(each)
            if not later:
                self.counters.tell("released", "static graphs", each)
        self.memory.freed(later=later)
        self.memory.emptied(collect=collect)
        self.dropped = {each: why for each, why in self.dropped.items() if each not in wanted}
        self.evicted -= wanted
        return held
