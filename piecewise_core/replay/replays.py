"""The replays of one form of calls: which sizes are captured, and what serves them.

A call of a captured size goes to that size's *entry*. The first one is pending: it captures the
size if that is not done (``Replays.plan``), puts the steady entry (``replay.serving``) in its
place, and goes on there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch

from piecewise_core.capture.alike import alike, level
from piecewise_core.capture.captured import CapturedPlan
from piecewise_core.capture.graphmemory import GraphMemory
from piecewise_core.capture.plans import CapturedPlans
from piecewise_core.capture.sealing import refuse_new
from piecewise_core.capture.source import Source
from piecewise_core.capture.thinning import largest_first
from piecewise_core.config import Config
from piecewise_core.counters import Counters
from piecewise_core.errors import ConfigError
from piecewise_core.graph.garbage import no_collection
from piecewise_core.ranges import Sizes
from piecewise_core.ranks.ranks import Ranks
from piecewise_core.replay.padding import Padding, beside
from piecewise_core.replay.reads import Reads
from piecewise_core.replay.replayable import Calls, Entry, Replayable
from piecewise_core.replay.serving import serving
from piecewise_core.replay.sleeping import Sleep
from piecewise_core.replay.trials import try_new
from piecewise_core.replay.views import put_in, shares
from piecewise_core.torch_compat.dynamo import compile_lock
from piecewise_core.torch_compat.profiling import named_runs

__all__ = ["Replays"]

logger = logging.getLogger(__name__)


class Replays:
    """Captures sizes, serves them by replay, frees and restores them.

    ``begin`` tells what calls look like. ``asleep``: sizes that stay without graphs until they are
    asked for again. ``sealed``: "error" or "warn" for captures from now on. Sizes whose
    capture failed, or that were evicted, are served by what would serve them without graphs.
    """

    def __init__(
        self,
        memory: GraphMemory,
        config: Config,
        counters: Counters,
        mode: str = "piecewise",
        ranks: Ranks | None = None,
    ) -> None:
        self.memory = memory
        self._config = config
        self.tallies = counters.tallies()
        self.reads = Reads(memory, config)
        plans = partial(CapturedPlans, memory, mode, counters=counters, ranks=ranks)
        self.plans = plans(lazy=config.capture == "lazy", graph_streams=config.graph_streams)
        self.asleep = Sleep()
        self.at_call = False
        self.sealed: str | None = None

    def begin(self, binder: Calls) -> None:
        """Note what calls look like; what was captured of calls that looked otherwise goes."""
        self.follow(None)
        self.memory.begins({leaf.device for leaf in binder.structure.tensors})
        self.reads.begin(binder)

    def follow(self, at: tuple[int, ...] | None) -> None:
        """Serve other objects, whose tensors lie at ``at``, as ``CapturedPlans`` do."""
        self.plans.follow(at)
        self.reads.forget()
        self.asleep.follow()

    # What serves a captured size -------------------------------------------------------

    def pending(
        self,
        program: Replayable,
        captured: Sizes,
        otherwise: Entry,
        put: Callable[[Sizes, Entry], None],
    ) -> Entry:
        """The entry of a size to capture. ``put``: replaces it. ``otherwise``: without graphs."""

        def pending(t: Any, b: Any, sizes: Sizes, args: Any, kwargs: Any) -> Any:
            if captured in self.asleep:
                result = otherwise(t, b, sizes, args, kwargs)
                self.memory.settle()  # only now: what it frees may be this call's input
                return result
            # Results of earlier replays are what a capture may overwrite before it reads them.
            kept = t if self.reads.static else self.memory.apart(t)
            if captured in self.plans.dropped:
                alone = captured in self.plans.evicted
                put(sizes, serve := beside(self.plans.ranks, captured, otherwise, alone=alone))
                return serve(t, b, sizes, args, kwargs)
            early = self.plans.is_early(captured) and not self.all_capture(captured, False)
            plan = None if early else self._plan_for(program, captured, (t, kept), b, sizes)
            if plan is None:
                self.plans.called.add(captured)
                return otherwise(t, b, sizes, args, kwargs)
            entry = self._serving(program, plan, otherwise)
            self.reads.refuse_lost_writes(program.facts(captured), t, args, kwargs)
            put(sizes, entry)
            return entry(kept, b, sizes, args, kwargs)

        return pending

    def learn(self, program: Replayable, captured: Sizes, t: Any, sizes: Sizes) -> bool:
        """Whether ``captured`` has graphs, captured now if it must be. Raises Sealed."""
        if captured in self.asleep or captured in self.plans.dropped:
            return False
        if self.plans.is_early(captured):
            return self.all_capture(captured, False)
        if captured in self.plans:
            return True
        kept = t if self.reads.static else self.memory.apart(t)
        return self._plan_for(program, captured, (t, kept), (), sizes) is not None

    def _plan_for(
        self, program: Replayable, captured: Sizes, given: Any, b: Any, sizes: Sizes
    ) -> CapturedPlan | None:
        """The plan, or None; ``given``: a call's tensors, and those apart from earlier results."""
        t, kept = given
        refuse_new(self.plans, captured, self.sealed)
        facts = program.facts(captured)
        overlap = None if facts is None else self.reads.overlap(facts)
        apart = overlap is None or not overlap(t, b)
        if captured in self.plans:
            return self.plans.get(captured) if apart else None
        ready = self.memory.callers.admit() and apart
        if ready and (self.reads.static or facts is None):
            # Graphs would read what they overwrite, or may turn out to write to it.
            ready = not any(map(self.memory.handed.holds, t))
        # A compilation beside it may use the device in ways that break a capture. Where one is
        # under way, another call captures: this one would hold up all others while it waits.
        ready = ready and compile_lock.acquire(blocking=False)
        try:
            if self.all_capture(captured, ready):
                return self.plan(program, captured, kept, b, sizes)
        finally:
            if ready:
                compile_lock.release()
        return None

    def all_capture(self, captured: Sizes, ready: bool) -> bool:
        """Whether all ranks capture ``captured`` in this call; ``ready``: whether this one may."""
        if any(captured in known for known in (self.asleep, self.plans, self.plans.dropped)):
            return False
        return self.plans.ranks.all(f"a call of sizes {captured}, to be captured", ready)

    def _serving(self, program: Replayable, plan: CapturedPlan, otherwise: Entry) -> Entry:
        if (facts := program.facts(plan.sizes)) is None:
            raise ConfigError(f"nothing is known of sizes {plan.sizes}, which are captured")
        buffers = self.reads.buffers(plan.sizes)
        views = self.reads.shared.get(plan.sizes, {})
        # A view is of the size that was captured.
        alone = self.reads.static or shares(views)
        calls = None if alone else program.padded(plan.sizes, plan.outputs)
        ranks, padding = self.plans.ranks, None
        if calls is not None:
            padding = Padding(calls, plan, buffers, otherwise, self.memory.apart, ranks)
        entry = serving(
            plan,
            put_in(facts, views),
            self.plans,
            self.tallies.of("replayed", plan.sizes),
            self.reads.binder.raw,
            beside(ranks, plan.sizes, otherwise),
            buffers=buffers,
            overlap=self.reads.overlap(facts),
            padding=padding,
        )
        name = f"piecewise replay {plan.sizes}"
        return named_runs(entry, name) if self._config.profiler_names else entry

    def plan(
        self,
        program: Replayable,
        captured: Sizes,
        tensors: Any,
        bound: Any,
        sizes: Sizes = (),
        tried: Source | None = None,
    ) -> CapturedPlan | None:
        """The plan of a capture size, captured now if it must be; None where it cannot be.

        ``tensors``: a call's, of ``sizes``; None in warm-up, which may have ``tried``.
        """
        if captured not in self.plans and captured not in self.plans.dropped:
            refuse_new(self.plans, captured, self.sealed)
            make = partial(self.reads.source, program, captured, tensors, bound, sizes)
            source = make if tried is None else lambda: tried
            self.plans.capture(captured, source, more=tensors is None)
            self.at_call = tensors is not None
            program.captured()  # which may give it up again
            level(self.plans)
        return self.plans.get(captured)

    @no_collection()
    def capture_all(
        self, wanted: Iterable[tuple[Replayable, Sizes]], bound: Sequence[torch.Tensor]
    ) -> list[Sizes]:
        """Capture every size, the largest first; returns those that are served by graphs.

        With ``inputs="static"`` there are none yet: each is captured at its first call, as all are
        while another thread may be reading outputs. Raises CaptureFailed inside a replay, Sealed,
        and OutOfRange where the model cannot take one of the sizes.
        """
        self.memory.callers.refuse_inside("sizes would be captured")
        if self.reads.static:
            return []
        programs = {sizes: program for program, sizes in wanted}
        order = largest_first(programs)
        most = max((program.graphs_per_size for program in programs.values()), default=0)
        todo = alike(self.plans, self.plans.budget(most, order))
        new = [sizes for sizes in todo if sizes not in self.plans.owed]
        tried: dict[Sizes, Source] = {}
        if new and self.sealed is None and self.memory.callers.may_overwrite():
            tried = try_new(self.plans, self.reads, self._config, programs, new, bound)
        for sizes in todo:
            self.plan(programs[sizes], sizes, None, bound, tried=tried.pop(sizes, None))
        self.memory.measure()
        return [sizes for sizes in order if sizes in self.plans]

    def release(
        self, sizes: Sequence[Sizes] | None = None, *, later: bool = False, collect: bool = False
    ) -> list[Sizes]:
        """Free the graphs of ``sizes``, or all, until ``asleep`` ends, as ``CapturedPlans`` do."""
        freed = self.plans.release(sizes, later=later, collect=collect)
        self.asleep.begin(sizes, moved=later)
        return freed

    def awake(self) -> tuple[Sizes, ...]:
        """The capture sizes that do not sleep; all while memory waits for a thread, which tells."""
        asleep = () if self.memory.retired else self.asleep
        return tuple([s for s in self._config.captures if s not in asleep])

    def dropped(self) -> tuple[str, ...]:
        """The capture sizes without graphs, and why."""
        return tuple(f"{sizes}: {why}" for sizes, why in self.plans.dropped.items())
