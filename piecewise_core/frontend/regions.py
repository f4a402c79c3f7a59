"""The regions of one callable: which sizes they hold, and how one more is had."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from piecewise_core.compile.scheduler import Scheduler, refuse_in_capture
from piecewise_core.compile.store.keeper import Keeper
from piecewise_core.counters import Counters
from piecewise_core.errors import NotTraced, Sealed
from piecewise_core.frontend.cells import cell_of, uncovered
from piecewise_core.frontend.region import Region, unbounded
from piecewise_core.frontend.setup import Setup
from piecewise_core.frontend.tracestore import TraceStore
from piecewise_core.graph.garbage import no_collection
from piecewise_core.graph.layouts import Layouts
from piecewise_core.graph.names import Matcher
from piecewise_core.graph.smallsizes import trace_region
from piecewise_core.graph.split import split
from piecewise_core.graph.structure import Structure
from piecewise_core.graph.trace import Traced
from piecewise_core.ranges import Box, Sizes
from piecewise_core.runtime.parameters import Parameters

__all__ = ["Regions"]

logger = logging.getLogger(__name__)


class Regions:
    """Grows by one region at a time; ``known`` has them in the order in which they were made.

    ``sealed``: "error" or "warn" where no more may be. ``kept``: whether traces may come from the
    compile store, and go there.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        setup: Setup,
        scheduler: Scheduler,
        keeper: Keeper,
        counters: Counters,
    ) -> None:
        self.known: list[Region] = []
        self.sealed: str | None = None
        self.kept = True
        self._fn = fn
        self._setup = setup
        self._config = setup.config
        self._scheduler = scheduler
        self._counters = counters
        self._matcher = Matcher(self._config.splitting_ops, setup.unsafe_ops)
        self._splits = setup.splits(self._matcher)
        self._layouts = Layouts(self._config.dims)
        self._traces = TraceStore(keeper.store, fn, self._config, keeper.run)

    def holding(self, sizes: Sizes) -> Region | None:
        """The region that holds ``sizes``, if there is one yet."""
        return next((r for r in self.known if sizes in r.general_box), None)

    def uncovered(self) -> Sizes | None:
        """Some sizes in bounds that no region holds yet; None when all are held."""
        return uncovered([r.general_box for r in self.known], self._config.bounds)

    @property
    def outer_bounds(self) -> Box:
        """The sizes that regions may hold: larger than the bounds if calls above them may be."""
        bounds = self._config.bounds
        return unbounded(bounds) if self._config.out_of_range == "general" else bounds

    @property
    def unmet(self) -> tuple[str, ...]:
        """The splitting ops that no graph so far has."""
        return self._matcher.unmet

    def make(self, structure: Structure | None, sizes: Sizes, parameters: Parameters) -> Region:
        """One more region, around ``sizes``: traced, unless the compile store has its trace.

        Binds the tensors that the trace meets in ``parameters``. Raises NotTraced without a
        ``structure``, Sealed, CaptureFailed in a capture, and what tracing raises.
        """
        if structure is None:
            raise NotTraced("nothing was called yet; call the model once, or pass examples")
        # The part of the bounds around the sizes that no region's end cuts.
        cell = cell_of([r.general_box for r in self.known], self.outer_bounds, sizes)
        self._check_sealed(cell)
        refuse_in_capture(self._setup.is_capturing, f"sizes {cell} would be traced")
        ticket = self._traces.ticket(structure, cell) if self.kept else None
        with no_collection():
            found = self._traces.find(ticket, structure, parameters)
            if found is not None:
                return self.take(found)
            begun = time.perf_counter()
            traced = trace_region(self._fn, structure, self._config, cell, parameters.add)
            seconds = time.perf_counter() - begun
        self._counters.add("graphs")
        entry = self._traces.entry(ticket, traced, parameters, seconds)
        region = self.take(traced)
        self._traces.keep(entry)  # only now: a trace that is refused later would be taken next time
        return region

    def take(self, traced: Traced) -> Region:
        """The region of a trace, which `admit` makes known. Takes the trace over."""
        if self._matcher:
            self._matcher.look(traced.graph.graph)
        program = split(traced, self._splits, self._layouts)
        return Region(
            len(self.known),
            program,
            self._config,
            self._scheduler,
            self._config.bounds,
            self._config.sizes,
            self._setup.backend_class,
        )

    def admit(self, region: Region) -> None:
        """Know one region more."""
        self.known.append(region)
        self._counters.add("pieces", len(region.program.pieces))
        self._counters.add("compilable_pieces", len(region.program.compilable))

    def _check_sealed(self, cell: Box) -> None:
        if self.sealed is None:
            return
        text = f"sizes {cell} would be traced after seal(); warmup() traces all before seal()"
        if self.sealed == "error":
            raise Sealed(text)
        logger.warning("%s", text)
