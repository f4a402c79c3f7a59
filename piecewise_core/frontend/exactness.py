"""Whether captured sizes are worth code of their own: ``capture_compile="auto"``, by measurement.

One size of a region is captured both ways, in a pool of its own, and replayed in turns. That is
done in warm-up alone, so that no call waits for it, and once for the same pieces on the same kind
of machine: the answer is kept in the compile store. Sizes of 1 are a question of their own, by
which dims are 1: what multiplies one row is other code altogether.

Where convolutions are the work of a GPU nothing is measured: Inductor lays them out for fixed sizes
only, so that calls have code of their size without a warm-up, too.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch

from piecewise_core.capture.graphmemory import GraphMemory
from piecewise_core.capture.preserved import Preserved
from piecewise_core.capture.thinning import largest_first
from piecewise_core.capture.timing import medians
from piecewise_core.counters import Counters
from piecewise_core.errors import OutOfRange, StoreError
from piecewise_core.frontend.building import between_builds
from piecewise_core.frontend.capturing import Capturing
from piecewise_core.frontend.region import Region
from piecewise_core.frontend.shared import Shared
from piecewise_core.graph.binder import Binder
from piecewise_core.graph.convolutions import weights_turned, why_fixed
from piecewise_core.ranges import Box, Sizes
from piecewise_core.store.entry import Entry, Ticket, make_entry, make_ticket, now
from piecewise_core.torch_compat.dynamo import compile_lock

__all__ = ["MOST", "Exactness"]

logger = logging.getLogger(__name__)

MOST = 8
"""Captured sizes of a region that may get code of their own unasked: each is compiled by itself."""

PAYS = 0.97
"""Of the range's time, the most that a replay of exact code may take to be worth its compilation.
What differs by less differs as much from run to run."""

_ROUNDS, _REPLAYS = 7, 3


class Exactness:
    """Decides for the regions of one form of calls. ``kept``: the answers, as entries of a store.

    ``bound()``: the tensors that the model holds.
    """

    def __init__(
        self, shared: Shared, binder: Binder, bound: Callable[[], Sequence[torch.Tensor]]
    ) -> None:
        self._shared, self._binder, self._bound = shared, binder, bound
        self.kept: dict[str, Entry] = {}

    def known(self, region: Region) -> None:
        """Take the answer that the compile store has, before ``region`` compiles or captures."""
        if region.settled:
            return
        region.settled = True
        store = self._shared.artifact_cache.store
        why, _ = self._of_convolutions(region)
        for sizes in self._questions(region):
            if why:
                region.exact |= set(sizes)
                region.verdicts[_sample(sizes)] = f"{why}: each captured size has its own code"
                continue
            ticket = self._ticket(region, _sample(sizes))
            entry = None if ticket is None or store is None else store.get(ticket.key)
            if entry is not None:
                with suppress(ValueError, TypeError, KeyError):
                    data = json.loads(entry.artifact)
                    self._take(region, sizes, float(data["exact"]), float(data["range"]))
                    self.kept[entry.manifest.key] = entry

    def decide(
        self, regions: Iterable[Region], captured: Container[Sizes]
    ) -> Iterator[tuple[Region, Box, int]]:
        """Measure what is not known, for warm-up; yields before each piece that is compiled.

        ``captured``: sizes that have graphs; what serves their regions stays.
        """
        for region in regions if self._shared.sealed is None else ():
            self.known(region)
            memory = self._shared.memory
            if memory is None or memory.limit is not None:  # two captures more, if not for long
                continue
            for sizes in self._questions(region):
                sample = _sample(sizes)
                if sample in region.verdicts or any(size in captured for size in sizes):
                    continue
                yield from self._compiled(region, Box.single(sample))
                self._measure(region, sizes, sample)
                if sample in region.exact:
                    yield from self._compiled(region, *map(Box.single, sizes))

    def advice(self, region: Region) -> str:
        """What to say of how ``region`` reads its weights; "" for nothing."""
        why, turned = self._of_convolutions(region)
        fixed = not why or region.exact or self._shared.config.capture_compile == "exact"
        return turned if fixed else ""

    def _of_convolutions(self, region: Region) -> tuple[str, str]:
        if region.convolutions is None:
            shared, graph = self._shared, region.program.traced.graph.graph
            asked = graph, shared.scheduler.compiler, shared.setup.selected.info.device_type
            region.convolutions = why_fixed(*asked), weights_turned(*asked)
        return region.convolutions

    def _questions(self, region: Region) -> list[list[Sizes]]:
        """The captured sizes of ``region`` to decide about, by what decides; the largest first."""
        shared, config = self._shared, self._shared.config
        memory, compiler = shared.memory, shared.scheduler.compiler
        if config.capture_compile != "auto" or memory is None or region.box is None:
            return []
        platform = memory.platform
        if region.collectives:
            return []  # ranks would decide, and run what they measure, each by itself
        if compiler == "eager" or platform.elapsed is None or not platform.captures(compiler):
            return []  # nothing is compiled, or nobody can tell
        single = {target.box for target in region.targets if target.box.is_single_size()}
        inside = [s for s in config.captures if s in region.box and Box.single(s) not in single]
        ones = sorted({_ones(sizes) for sizes in inside})
        found = [[s for s in inside if _ones(s) == which] for which in ones]
        many = [sizes for sizes in found if len(sizes) > MOST]
        for sizes in many:
            why = f"{len(sizes)} captured sizes, more than {MOST}: code of their ranges"
            region.verdicts.setdefault(sizes[0], why)
        if region.as_written:
            return []
        return [largest_first(sizes) for sizes in found if sizes not in many]

    def _compiled(self, region: Region, *boxes: Box) -> Iterator[tuple[Region, Box, int]]:
        self._shared.scheduler.compile_beside(region.wanted(*boxes))
        for box in boxes:
            yield from self._one_by_one(region, box)

    def _one_by_one(self, region: Region, box: Box) -> Iterator[tuple[Region, Box, int]]:
        for index, piece in enumerate(region.program.compilable):
            if self._shared.scheduler.ready(piece, box) is None:
                yield region, box, index
            with compile_lock:
                region.compile(index, box)
        region.build(box)

    def _measure(self, region: Region, sizes: list[Sizes], sample: Sizes) -> None:
        shared, ticket = self._shared, self._ticket(region, sample)
        memory = GraphMemory(shared.setup.platform.declared, Counters(), None)
        plain = shared.config.replace(memory_limit=None, on_event=None, inputs="copy")
        setup = replace(shared.setup, config=plain)
        pair = [Capturing(setup, Counters(), memory) for _ in range(2)]
        with between_builds(shared.lock):
            before = frozenset(region.exact)
            try:
                found = []
                for capturing, exact in zip(pair, ((), (sample,)), strict=True):
                    region.exact = {*before, *exact}
                    capturing.replays.begin(self._binder)
                    program = capturing.program(region)
                    capturing.replays.capture_all([(program, sample)], self._bound())
                    found.append(capturing.plans.get(sample))
                region.exact = set(before)
                if None in found:
                    dropped = (why for each in pair for why in each.plans.dropped.values())
                    why = next(dropped, "it was not captured")
                    region.verdicts[sample] = f"sizes {sample} could not be measured: {why}"
                    return
                written = [self._bound()[place] for place in region.program.mutated_bound]
                usual, exact_time = self._times(found, written)
            except OutOfRange:
                return  # the model's own capture says it
            finally:
                region.exact = set(before)
                for capturing in pair:
                    capturing.replays.release()
            self._take(region, sizes, exact_time, usual)
        self._keep(ticket, exact_time, usual)

    def _times(self, plans: list[Any], written: list[torch.Tensor]) -> list[float]:
        """Seconds of a replay of each plan."""
        platform = self._shared.setup.platform.declared
        kept = Preserved(written, () if platform.rng is None else (platform.rng(),), draws=True)
        runs = [plan.replay for plan in plans]
        return medians(platform, runs, kept.put_back, rounds=_ROUNDS, times=_REPLAYS)

    def _take(self, region: Region, sizes: list[Sizes], exact: float, usual: float) -> None:
        pays, sample = exact <= PAYS * usual, _sample(sizes)
        if pays:
            region.exact |= set(sizes)
        one = "size of 1" if len(sample) == 1 else "size with 1 there"
        which = one if 1 in sample else "captured size"
        region.verdicts[sample] = (
            f"sizes {sample} took {exact * 1e6:.1f} us with code of their own, "
            f"{usual * 1e6:.1f} us with their range's: "
            f"{f'each {which} has its own' if pays else 'code of the ranges'}"
        )
        logger.info("region %d: %s", region.index, region.verdicts[sample])

    def _keep(self, ticket: Ticket | None, exact: float, usual: float) -> None:
        cache = self._shared.artifact_cache
        if ticket is None:
            return
        text = json.dumps({"exact": exact, "range": usual})
        entry = make_entry(
            ticket, text.encode(), serves=ticket.box, adaptor="timer", made=now(), run=cache.run
        )
        self.kept[ticket.key] = entry
        if cache.store is not None and cache.store.writable:
            try:
                cache.store.put(entry, replace=True)
            except StoreError as error:
                logger.warning("%s is not kept in the compile store: %s", ticket.label, error)

    def _ticket(self, region: Region, sample: Sizes) -> Ticket | None:
        """What the answer is kept under: the keys of both codes of all pieces."""
        box, keys = Box.single(sample), []
        for each in (region.fallback(sample).box, box):
            for index, piece in enumerate(region.program.compilable):
                task = self._shared.scheduler.task(
                    piece, region.program.traced.symbols, each, region.label(index)
                )
                if task.unkept:
                    return None
                keys.append(task.key if piece.hazard else task.whole)
        factors = {
            "capture_compile": hashlib.sha256(" ".join(keys).encode()).hexdigest(),
            "graph_mode": self._shared.setup.graph_mode,
            **self._shared.setup.streams_factor,
        }
        return make_ticket(factors, box, f"times of {self._shared.artifact_cache.model}")


def _ones(sizes: Sizes) -> tuple[bool, ...]:
    """Which of them are 1: one row of several is another matter than several of one."""
    return tuple(size == 1 for size in sizes)


def _sample(sizes: list[Sizes]) -> Sizes:
    """The one in the middle: the ends are special."""
    return sizes[len(sizes) // 2]
