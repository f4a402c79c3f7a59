"""The regions of one form of calls: which sizes they hold, and how one more is had."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from piecewise_core.compile.scheduler import refuse_in_capture
from piecewise_core.errors import (
    PiecewiseError,
    Sealed,
    SizeBranch,
    TraceFailed,
    UnsupportedSideEffect,
)
from piecewise_core.frontend.coverage import (
    cell_like,
    cell_of,
    fixes,
    hint_in,
    unbounded,
    uncovered,
)
from piecewise_core.frontend.endpoints import branches_of, too_many
from piecewise_core.frontend.othersizes import Trace, as_numbers, beside_objects, check_others
from piecewise_core.frontend.region import Region
from piecewise_core.frontend.shared import Shared
from piecewise_core.frontend.successors import objects_in
from piecewise_core.graph.forgotten import forgotten
from piecewise_core.graph.garbage import no_collection
from piecewise_core.graph.smallsizes import trace_region
from piecewise_core.graph.split import split
from piecewise_core.graph.structure import Structure
from piecewise_core.graph.trace import Traced, hints
from piecewise_core.ranges import Box, Sizes
from piecewise_core.runtime.parameters import Parameters

__all__ = ["Regions"]

logger = logging.getLogger(__name__)

_ALONE = 3
"""Regions of one size, and no other, after which each size is traced by itself: it is faster."""

_OTHERS = "not as in region"


class Regions(list[Region]):
    """In the order in which they were made. ``raising``: sizes at which the model raises."""

    def __init__(self, shared: Shared) -> None:
        super().__init__()
        self._shared = shared
        self._config = shared.config
        self._auto = self._config.regions == "auto"
        self.raising: list[Sizes] = []

    def forget(self) -> None:
        """Drop all of them; the counters stay."""
        for region in self:
            self._shared.give_back(region.index)
        self.clear()

    def holding(self, sizes: Sizes) -> Region | None:
        """The region that holds ``sizes``, if there is one yet."""
        return next((r for r in self if sizes in r.general_box), None)

    def hold(self, sizes: Sizes) -> bool:
        """Whether a call of ``sizes`` now goes the way that was traced, by what objects count."""
        region = self.holding(sizes)
        counted = None if region is None else region.program.traced.counted
        return counted is None or counted.holds(sizes)

    def uncovered(self, without: Sequence[Sizes] = ()) -> Sizes | None:
        """Some sizes in bounds that no region holds yet; None when all are held.

        ``without``: sizes that do not count.
        """
        held = [r.general_box for r in self]
        return uncovered([*held, *map(Box.single, without)], self._config.bounds)

    @property
    def outer_bounds(self) -> Box:
        """The sizes that regions may hold: larger than the bounds if calls above them may be."""
        config = self._config
        return unbounded(config.dims) if config.out_of_range == "general" else config.bounds

    def make(
        self,
        structure: Structure,
        sizes: Sizes,
        parameters: Parameters,
        *,
        alone: bool = False,
        once: tuple[str, ...] = (),
    ) -> Region:
        """One more region, around ``sizes``: traced, unless the compile store has its trace.

        ``alone``: of these sizes and no others. ``once``: what a forward as written
        has changed. Binds the tensors that the trace meets in ``parameters``. Raises Sealed,
        CaptureFailed in a capture, and what tracing raises.
        """
        shared = self._shared
        boxes = [r.general_box for r in self]
        cell, hint = self._cell(boxes, sizes, structure)
        if alone:
            cell, hint = Box.single(sizes), sizes
        self._check_sealed(cell)
        refuse_in_capture(shared.setup.is_capturing, f"sizes {cell} would be traced")
        ticket = shared.traces.ticket(structure, cell) if shared.kept else None
        with no_collection():
            found = shared.traces.find(ticket, structure, parameters)
            if found is not None:
                return self.take(found)
            shared.begin_workers()
            begun = time.perf_counter()
            fn, config, bind = shared.fn, self._config, parameters.add

            def trace(box: Box, at: Sizes) -> Traced:
                return trace_region(fn, structure, config, box, bind, at)

            traced = self._traced(trace, structure, cell, hint, sizes)
            if any(place.startswith(once) for place in traced.keeps):
                raise UnsupportedSideEffect  # the one before says what is written
            if not traced.cuts:
                traced = replace(traced, cuts=self._outside())
            seconds = time.perf_counter() - begun
        shared.counters.traced(traced.box, seconds)
        entry = shared.traces.entry(ticket, traced, parameters, seconds)
        region = self.take(traced)
        # Only now: a trace that is refused later would be taken next time.
        shared.traces.keep(entry)
        return region

    def _cell(self, boxes: list[Box], sizes: Sizes, structure: Structure) -> tuple[Box, Sizes]:
        """Where a region around ``sizes`` may lie, and the sizes to trace it with.

        Raises SizeBranch where there would be too many.
        """
        outer = self.outer_bounds
        if not self._auto:
            # The part of the bounds around the sizes that no region's end cuts.
            cell = cell_of(boxes, outer, sizes)
            return cell, hints(cell)
        if len(boxes) >= self._config.max_regions:
            branches = branches_of(self._shared.fn, structure, self._config)
            raise SizeBranch(too_many(self._config, sizes, len(boxes), branches))
        alone = len(boxes) >= _ALONE and all(box.is_single_size() for box in boxes)
        cell = Box.single(sizes) if alone else cell_like(boxes, outer, sizes)
        return cell, hint_in(cell, boxes, outer, sizes, structure.fixed_sizes)

    def _outside(self) -> tuple[str, ...]:
        """What cuts a region of which nothing was asked: its sizes lie outside of others."""
        found = [(r.index, r.program.traced.cuts) for r in self]
        asked = [(i, cuts) for i, cuts in found if cuts and not cuts[0].startswith(_OTHERS)]
        return tuple(f"{_OTHERS} {i}: {'; '.join(cuts)}" for i, cuts in asked)[-1:]

    def _traced(
        self, trace: Trace, structure: Structure, cell: Box, hint: Sizes, sizes: Sizes
    ) -> Traced:
        """The trace of ``cell`` at ``hint``; at ``sizes`` where the model raises at the hint."""
        try:
            found = trace(cell, hint)
        except SizeBranch as error:
            every = "" if self._auto else branches_of(self._shared.fn, structure, self._config)
            error.args = (f"{error}{every}{forgotten(structure, str(error))}",)
            raise
        except TraceFailed as error:
            with suppress(PiecewiseError):
                return self._elsewhere(trace, cell, hint, sizes)
            if self._auto and objects_in(structure):
                return beside_objects(trace, cell, hint, sizes)
            if self._auto and type(error) is TraceFailed and not self:
                with suppress(PiecewiseError):
                    return as_numbers(trace, cell, sizes, error)
            raise
        if not self and self._auto and not objects_in(structure):
            check_others(trace, cell, found.box, hint)
        if found.box == cell or not found.unsettled:
            return found
        # Within fewer sizes torch can tell how some of them compare.
        with suppress(PiecewiseError):
            again = trace(found.box, hint)
            return replace(again, cuts=found.cuts)
        return found

    def _elsewhere(self, trace: Trace, cell: Box, hint: Sizes, sizes: Sizes) -> Traced:
        """The trace of ``cell`` at ``sizes``: the model raises at the hint. Raises TraceFailed."""
        alone = Box.single(sizes)
        if not self._auto or cell == alone:
            raise TraceFailed("there is no other way to trace it")
        if self:
            return trace(alone, sizes)
        if hint == sizes or min(sizes) < 2:
            raise TraceFailed("there is no other size to trace it at")
        traced = trace(cell, sizes)
        if fixes(traced.box, cell):
            raise TraceFailed("all sizes but one raise: something else has to vary with them")
        return traced

    def take(self, traced: Traced) -> Region:
        """The region of a trace, which `admit` makes known. Takes the trace over."""
        shared = self._shared
        if shared.matcher:
            shared.matcher.look(traced.graph.graph)
        rewrites = shared.setup.rewrites
        found = shared.layouts, shared.contracts, rewrites.program, rewrites.of_layouts
        program = split(traced, shared.splits, *found, shared.setup.forks_on)
        return Region(
            shared.number(),
            program,
            self._config,
            shared.scheduler,
            shared.setup.backend_class,
            None if shared.memory is None else shared.memory.pool,
        )

    def admit(self, region: Region) -> None:
        """Know one region more."""
        self.append(region)
        counters = self._shared.counters
        counters.add("pieces", len(region.program.pieces))
        counters.add("compilable_pieces", len(region.program.compilable))

    def _check_sealed(self, cell: Box) -> None:
        if self._shared.sealed is None:
            return
        text = f"sizes {cell} would be traced after seal(); warmup() traces all before seal()"
        if self._shared.sealed == "error":
            raise Sealed(text).having(sizes=str(cell))
        self._shared.counters.missed("region", cell, text)
