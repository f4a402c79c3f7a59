"""The captured plans of one model: one pool, one plan per size, within a memory limit."""

from __future__ import annotations

import gc
import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from piecewise_core.capture.attempt import Source, capture
from piecewise_core.capture.callers import Callers
from piecewise_core.capture.captured import CapturedPlan
from piecewise_core.counters import Counters
from piecewise_core.errors import CaptureFailed, OutOfGraphMemory
from piecewise_core.graph.spans import Spans, storage_span
from piecewise_core.protocols import BudgetContext, Platform
from piecewise_core.ranges import Sizes

__all__ = ["CapturedPlans", "largest_first"]

logger = logging.getLogger(__name__)


class CapturedPlans:
    """Captures sizes, keeps their plans, frees them.

    ``limit``: bytes of graph memory, or None. ``dropped``: sizes that have no plan, and why;
    they are served by compiled ranges. ``owed``: sizes that ``release`` freed, or let be tried
    anew: capturing them again is no news. ``callers``: who may be reading outputs; no thread
    captures over, or frees, what another may be reading. ``handed``: the memory of all results,
    which callers may put back in as inputs.
    """

    def __init__(
        self,
        platform: Platform,
        counters: Counters,
        limit: int | None,
        mode: str = "piecewise",
        callers: Callers | None = None,
    ) -> None:
        self.callers = callers or Callers(cloning=False)
        self._platform = platform
        self._driver: Any = platform.graphs
        self._counters = counters
        self._limit = limit
        # Whether to capture the whole forward as one graph, in order of preference.
        self._ways = {"full": [True], "full_and_piecewise": [True, False]}.get(mode, [False])
        self._pool: Any = None
        self._stream: Any = None
        self._short = False
        self._plans: OrderedDict[Sizes, CapturedPlan] = OrderedDict()
        self.dropped: dict[Sizes, str] = {}
        self.owed: set[Sizes] = set()
        # Served no more, but another thread may be reading their outputs; with their pools.
        self._retired: list[tuple[CapturedPlan, Any]] = []
        self._late = self._told = False
        self.handed = Spans()

    def __contains__(self, sizes: object) -> bool:
        return sizes in self._plans

    def __len__(self) -> int:
        return len(self._plans)

    @property
    def retired(self) -> bool:
        """Whether memory waits for another thread to be done with its outputs."""
        return bool(self._retired)

    def get(self, sizes: Sizes) -> CapturedPlan | None:
        """The plan of ``sizes``, noted as used; None when it has to be captured, or cannot."""
        found = self._plans.get(sizes)
        if found is not None and self._limit is not None:
            self._plans.move_to_end(sizes)
        return found

    def budget(self, graphs_per_size: int, sizes: list[Sizes]) -> list[Sizes]:
        """The sizes that the device has graph handles for: the ends are kept, the middle thinned.

        ``sizes``: largest first; what is captured already needs none. Those left out are in
        ``dropped``.
        """
        sizes = [s for s in sizes if s not in self._plans and s not in self.dropped]
        graphs_per_size = 1 if all(self._ways) else graphs_per_size
        ask = getattr(self._driver, "resource_budget", None)
        context = BudgetContext(graphs_per_size, tuple(sizes), self._graph_count())
        allowed = ask(context) if ask is not None else None
        if allowed is None or graphs_per_size * len(sizes) <= allowed:
            return sizes
        room = max(allowed // max(graphs_per_size, 1), 0)
        kept = _thinned(sizes, room)
        for size in sizes:
            if size not in kept:
                self.dropped[size] = (
                    f"the device has room for {allowed} more graphs, and {len(sizes)} sizes of "
                    f"{graphs_per_size} need {graphs_per_size * len(sizes)}"
                )
        return kept

    def capture(
        self, sizes: Sizes, source: Callable[[], Source], *, more: bool = False
    ) -> CapturedPlan | None:
        """Capture ``sizes`` unless it is; None when it failed, with the reason in ``dropped``.

        A failure drops this size and nothing else. ``more``: others follow; ``measure`` at the
        end counts the bytes of all. None, with no reason, while another thread may be reading
        outputs. Raises CaptureFailed inside a capture or a replay, which is the caller's mistake
        and drops nothing.
        """
        if sizes in self._plans or sizes in self.dropped:
            return self._plans.get(sizes)
        self.callers.refuse_inside(f"sizes {sizes} would be captured")
        if not self.settle():
            if not self._told:
                logger.warning(
                    "sizes %s are not captured now: another thread may still be reading what it "
                    "was given last, and a capture would overwrite that. It is done at a later "
                    "call; set clone_outputs=True to be free of that",
                    sizes,
                )
            self._told = True
            return None
        if self._driver.is_capturing():
            raise CaptureFailed(
                f"sizes {sizes} would be captured inside of a capture that runs on this stream; "
                "call warmup() before it"
            )
        with self.callers.using():
            plan = self._attempt(sizes, source)
        self.owed.discard(sizes)
        if plan is None:
            return None
        plan.callers = self.callers
        self._plans[sizes] = plan
        self._note_handed()
        self._counters.add("captures", len(plan.graphs))
        if self._limit is not None:
            self._evict(sizes)
        if not more:
            self.measure()
        return self._plans.get(sizes)

    def _attempt(self, sizes: Sizes, source: Callable[[], Source]) -> CapturedPlan | None:
        for whole in self._ways:
            try:
                return self._once_more(partial(self._capture, source, sizes, whole))
            except CaptureFailed as error:
                if whole != self._ways[-1]:
                    logger.info("%s; captured in pieces instead", str(error))
                    continue
                self.dropped[sizes] = str(error)
                logger.warning("%s", self.dropped[sizes])
                if isinstance(error, OutOfGraphMemory):
                    self._give_back()
        return None

    def _capture(self, source: Callable[[], Source], sizes: Sizes, whole: bool) -> CapturedPlan:
        try:
            made = source()
        except torch.OutOfMemoryError as error:
            raise OutOfGraphMemory(
                f"sizes {sizes} cannot be captured: there is no memory for their inputs: {error}. "
                "Capture fewer or smaller sizes (capture_sizes)"
            ) from error
        if self._pool is None:
            # What was just traced and compiled leaves garbage, some of it with device memory. All
            # that is older is walked only where memory turns out to be short: it takes long.
            gc.collect(1)
            self._pool = self._driver.new_pool()
            self._stream = self._stream or self._platform.device.new_stream()
        return capture(
            self._platform, self._pool, self._stream, made, sizes, whole=whole, tight=self._short
        )

    def _once_more(self, attempt: Callable[[], CapturedPlan]) -> CapturedPlan:
        """``attempt()``; when memory runs out for the first time, again without any garbage."""
        try:
            return attempt()
        except OutOfGraphMemory:
            if self._short:
                raise
        self._short = True
        gc.collect()
        self._give_back()
        return attempt()

    def _give_back(self) -> None:
        """Let the next capture have what a failed one left in the pool, where no graph needs it."""
        if not self._plans:
            self._pool = None
        self._empty_cache()

    def _empty_cache(self) -> None:
        empty = getattr(self._platform.device, "empty_cache", None)
        if empty is not None:
            empty()

    def forget(self, sizes: Sizes) -> None:
        """Free one size's graphs, at once or when no other thread may be reading their outputs."""
        self._retire(sizes)
        self._late = not self.settle()

    def _retire(self, sizes: Sizes) -> None:
        """Serve a size by its graphs no more; what they read is let go, their results are not."""
        plan = self._plans.pop(sizes, None)
        if plan is not None:
            plan.steps, plan.direct, plan.held, plan.made = (), (), (), ()
            self._retired.append((plan, self._pool))

    def apart(self, tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """A call's inputs, copied where they are results of earlier replays.

        For what is about to capture, free or replay before the call's inputs are staged.
        """
        if not any(map(self.handed.holds, tensors)):
            return tensors
        return [t.clone() if self.handed.holds(t) else t for t in tensors]

    def _note_handed(self) -> None:
        plans = (*self._plans.values(), *(plan for plan, _ in self._retired))
        results = (o for plan in plans for o in plan.outputs if isinstance(o, torch.Tensor))
        self.handed = Spans(map(storage_span, results))

    def settle(self) -> bool:
        """Free what nothing serves any more, unless another thread may be reading outputs.

        Whether none may.
        """
        if not self.callers.may_overwrite():
            return False
        while self._retired:
            self._reset(self._retired.pop()[0])
        self._note_handed()
        if self._late:
            self._late = False
            self._empty_cache()
        return True

    def release(self, *, later: bool = False) -> list[Sizes]:
        """Free all graphs and the pool; returns the sizes that had plans.

        Memory whose outputs another thread may be reading is freed when that thread calls again.
        ``later``: so is this thread's, for what frees in the middle of a call: its inputs may be
        results. Raises CaptureFailed inside a replay.
        """
        self.callers.refuse_inside("static graphs would be freed")
        held = list(self._plans)
        self.owed |= {*held, *self.dropped}
        for sizes in held:
            self._retire(sizes)
        self._late = later or not self.settle()
        self._pool, self._short = None, False
        self._empty_cache()
        self.dropped.clear()
        self._counters.set("pool_bytes", 0)
        self._counters.set("driver_bytes", 0)
        return held

    def dump(self, directory: Path) -> list[Path]:
        """Write each graph to a file of its own in ``directory``, made if need be.

        Raises CaptureFailed where there is no graph or the driver cannot write any.
        """
        write = getattr(self._driver, "dump", None)
        if write is None:
            raise CaptureFailed(
                "this platform's graphs cannot be written out: its driver has no method dump"
            )
        if not self._plans:
            raise CaptureFailed("there are no graphs; call warmup() with capture_sizes first")
        directory.mkdir(parents=True, exist_ok=True)
        written = []
        for sizes, plan in self._plans.items():
            for place, graph in enumerate(plan.graphs):
                path = directory / f"sizes-{'x'.join(map(str, sizes)) or 'fixed'}-graph-{place}.txt"
                path.unlink(missing_ok=True)
                write(graph, path)
                written.append(path)
        return written

    def _reset(self, plan: CapturedPlan) -> None:
        graphs, plan.steps, plan.direct, plan.outputs, plan.graphs = plan.graphs, (), (), (), ()
        plan.made = ()
        for graph in graphs:
            self._driver.reset(graph)

    def _evict(self, newest: Sizes) -> None:
        """Free the sizes used longest ago while the limit is passed."""
        while self._limit is not None and self.bytes() > self._limit:
            oldest, before = next(iter(self._plans)), self.bytes()
            self.forget(oldest)
            self.dropped[oldest] = (
                f"evicted: graph memory passed memory_limit={self._limit} bytes; raise it, or "
                "list fewer capture_sizes"
            )
            logger.info("sizes %s: %s", oldest, self.dropped[oldest])
            # Sizes share the pool, so freeing a small one may give nothing back.
            if oldest == newest or not self._plans or self.bytes() >= before:
                return

    def bytes(self) -> int:
        """Graph memory in use, in bytes: the pool's and the driver's."""
        return self._ask("pool_bytes") + self._ask("driver_bytes")

    def measure(self) -> None:
        """Ask the driver what the graphs hold and put it into the counters; it may take long."""
        for name in ("pool_bytes", "driver_bytes"):
            self._counters.set(name, self._ask(name))

    def _ask(self, name: str) -> int:
        ask = getattr(self._driver, name, None)
        return int(ask(self._pool)) if ask is not None and self._pool is not None else 0

    def _graph_count(self) -> int:
        return sum(len(plan.graphs) for plan in self._plans.values())


def _thinned(sizes: list[Sizes], room: int) -> list[Sizes]:
    """``room`` of ``sizes``, evenly spread, the first and last always among them."""
    if room >= len(sizes):
        return sizes
    if room <= 1:
        return sizes[:room]
    step = (len(sizes) - 1) / (room - 1)
    return [sizes[round(i * step)] for i in range(room)]


def largest_first(sizes: Iterable[Sizes]) -> list[Sizes]:
    """``sizes``, each once, in the order of capture: memory of the first serves the others."""
    return sorted(dict.fromkeys(sizes), key=lambda s: (math.prod(s), s), reverse=True)
