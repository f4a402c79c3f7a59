"""The graph memory of one model: a pool that the plans of all its forms of calls share.

Also what follows from sharing it: a capture or a replay of any plan writes over results of the
others, so whose results may be overwritten, and what they occupy, is known here.
"""

from __future__ import annotations

import gc
import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch

from piecewise_core.capture.captured import CapturedPlan, Owner
from piecewise_core.capture.evicting import make_room
from piecewise_core.capture.output_ownership import OutputOwnership
from piecewise_core.capture.resting import Resting
from piecewise_core.capture.streamorder import stream_order
from piecewise_core.capture.twostreams import beside
from piecewise_core.config import Config
from piecewise_core.counters import Counters
from piecewise_core.graph.spans import Span, Spans, storage_span
from piecewise_core.plugins import Declared
from piecewise_core.ranges import Sizes

__all__ = ["GraphMemory", "graph_memory"]

logger = logging.getLogger(__name__)


class GraphMemory:
    """``limit``: bytes, or None. ``callers``: who may be reading outputs.

    ``pool``, ``stream``: None before ``open``. ``short``: whether memory ran out before.
    ``handed``: the memory of all results, which callers may put back in as inputs. ``resting``:
    plans that serve nothing now. ``shared``: whether several models have their graphs here.
    ``counters``: of the bytes.
    """

    shared = False

    def __init__(
        self,
        platform: Declared,
        counters: Counters,
        limit: int | None,
        callers: OutputOwnership | None = None,
    ) -> None:
        self.platform = platform
        self.limit = limit
        self.callers = callers or OutputOwnership(cloning=False)
        self.pool: Any = None
        self.stream: Any = None
        self._side: Any = None
        self.short = False
        self.handed = Spans()
        self.resting: weakref.WeakSet[Resting] = weakref.WeakSet()
        self.counters = counters
        # Those used longest ago first. Owners hold this, so not the other way: the memory of a
        # model that is let go must not wait for a garbage collection.
        self._plans: OrderedDict[int, tuple[weakref.ref[Owner], CapturedPlan]] = OrderedDict()
        # Served no more, but another thread may be reading their outputs; with their pools.
        self._retired: list[tuple[CapturedPlan, Any]] = []
        self._late = False

    @property
    def graphs(self) -> int:
        """Graphs in the pool that serve."""
        return sum(len(plan.graphs) for _, plan in self._plans.values())

    @property
    def captured(self) -> list[Sizes]:
        """The sizes that they are of, each as often as there is a plan of it."""
        return [plan.sizes for _, plan in self._plans.values()]

    @property
    def retired(self) -> bool:
        """Whether memory waits for another thread to be done with its outputs."""
        return bool(self._retired)

    def begins(self, devices: Iterable[torch.device]) -> None:
        """Graphs of calls with tensors on ``devices`` are to lie here."""

    @cached_property
    def in_order(self) -> Callable[[], None] | None:
        """What to call before each replay of a graph here, and before what writes as one does.

        Made on the device of the graphs. None where all work is done when a call returns.
        """
        return stream_order(self.platform)

    def open(self) -> None:
        """Have a pool and a stream to capture on."""
        # What was just traced, compiled or run leaves garbage, some of it with device memory. All
        # that is older is walked only where memory turns out to be short: it takes long.
        gc.collect(1)
        self.open_pool()
        self.stream = self.stream or self.platform.device.new_stream()

    def side(self) -> Any:
        """The stream that forks of graphs here run on beside ``stream``, behind ``open``.

        One for all of them: allocators reuse memory per stream.
        """
        self._side = self._side or beside(self.platform.device, self.stream)
        return self._side

    def open_pool(self) -> None:
        """Have a pool, whose handle pieces are told before anything is captured."""
        if self.pool is None:
            self.pool = self.platform.graphs.new_pool()

    def give_back(self) -> None:
        """Let the next capture have what a failed one left in the pool, where no graph needs it."""
        if not self._plans:
            self.pool = None
        self.platform.empty_cache()

    # Plans -----------------------------------------------------------------------------

    def hold(self, owner: Owner, plan: CapturedPlan) -> None:
        """Take a new plan; over the limit, the least recent are evicted."""
        plan.callers = self.callers
        self._plans[id(plan)] = (self._weakly(owner), plan)
        self.handed = self.handed.and_more(_results(plan))
        if self.limit is not None:
            make_room(self, plan, self.limit)

    def _weakly(self, owner: Owner) -> weakref.ref[Owner]:
        return weakref.ref(owner)

    def used(self, plan: CapturedPlan) -> None:
        """Note that a plan serves a call."""
        if self.limit is not None:
            self._plans.move_to_end(id(plan))

    def plans(self) -> list[tuple[Owner | None, CapturedPlan]]:
        """Those that serve, with their owners, used longest ago first."""
        return [(owner(), plan) for owner, plan in self._plans.values()]

    def begin_over(self) -> None:
        """Start with a new pool next time, if this one is of no use any more."""
        if not self._plans and not self._retired:
            self.pool = None

    def retire(self, *plans: CapturedPlan) -> None:
        """Plans serve no more; what their graphs read is let go, their results are not yet."""
        for plan in plans:
            self._plans.pop(id(plan), None)
            plan.steps, plan.direct, plan.held, plan.made = (), (), (), ()
            self._retired.append((plan, self.pool))

    def freed(self, *, later: bool = False) -> None:
        """Free what was just retired: at once, or when no other thread may be reading outputs.

        ``later``: not even if none may, for what frees in the middle of a call.
        """
        self._late = later or not self.settle()

    def emptied(self, *, collect: bool = False) -> None:
        """Start with a new pool next time, where an owner freed all and no other has any.

        ``collect``: walk all garbage then, which takes long: for whoever asked for the memory.
        """
        if not self._plans:
            self.pool, self.short = None, False
            if collect:
                gc.collect()  # captures walk young garbage only: older may hold device memory
        self.platform.empty_cache()
        self.measure()

    def settle(self) -> bool:
        """Free what nothing serves any more, unless another thread may be reading outputs.

        Whether none may.
        """
        if not self.callers.may_overwrite():
            return False
        if self._retired:
            while self._retired:
                self.reset(self._retired.pop()[0])
            self._note_handed()
        if self._late:
            self._late = False
            self.platform.empty_cache()
        return True

    def reset(self, plan: CapturedPlan) -> None:
        """Free a plan that nobody serves or reads results of."""
        graphs, plan.steps, plan.direct, plan.outputs, plan.graphs = plan.graphs, (), (), (), ()
        plan.made = ()
        for graph in graphs:
            self.platform.graphs.reset(graph)

    # Results ---------------------------------------------------------------------------

    def apart(self, tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """A call's inputs, copied where they are results of earlier replays.

        For what is about to capture, free or replay before the call's inputs are staged.
        """
        if not any(map(self.handed.holds, tensors)):
            return tensors
        return [t.clone() if self.handed.holds(t) else t for t in tensors]

    def _note_handed(self) -> None:
        serving = (plan for _, plan in self._plans.values())
        plans = (*serving, *(plan for plan, _ in self._retired))
        self.handed = Spans(span for plan in plans for span in _results(plan))

    # Bytes -----------------------------------------------------------------------------

    def bytes(self) -> int:
        """Graph memory in use, in bytes: the pool's and the driver's."""
        return sum(count for _, count in self._asked())

    @property
    def counted(self) -> int:
        """The same when it was last measured."""
        stats = self.counters.stats()
        return stats.pool_bytes + stats.driver_bytes

    def measure(self) -> None:
        """Ask the driver what the graphs hold and put it into the counters; it may take long."""
        for name, count in self._asked():
            self.counters.set(name, count)
        told = None if self.pool is None else self.platform.executables
        self.counters.set("executables", self.graphs if told is None else told(self.pool))

    def _asked(self) -> Iterator[tuple[str, int]]:
        for name in ("pool_bytes", "driver_bytes"):
            yield name, 0 if self.pool is None else int(getattr(self.platform, name)(self.pool))


def graph_memory(platform: Declared, config: Config, counters: Counters) -> GraphMemory:
    """What the graphs of one model lie in, whatever forms its calls have."""
    callers = OutputOwnership(cloning=config.clone_outputs, strict=config.check == "strict")
    return GraphMemory(platform, counters, config.memory_limit, callers)


def _results(plan: CapturedPlan) -> Iterator[Span]:
    """Where the results of ``plan`` lie."""
    return (storage_span(o) for o in plan.outputs if isinstance(o, torch.Tensor))
