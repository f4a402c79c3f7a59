"""From sizes to what serves them: one look-up, then one entry per target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from piecewise_core.config import Config
from piecewise_core.counters import Counters
from piecewise_core.frontend.background import Background
from piecewise_core.frontend.building import Unready
from piecewise_core.frontend.capturing import Capturing
from piecewise_core.frontend.piececode import need
from piecewise_core.frontend.region import Region
from piecewise_core.frontend.verifying import Verifier
from piecewise_core.graph.counted import Counted
from piecewise_core.ranges import Box, Sizes
from piecewise_core.ranks.ranks import Ranks
from piecewise_core.replay.replayable import Entry
from piecewise_core.runtime.plan import Plan
from piecewise_core.table import TargetTable
from piecewise_core.targets import Target

__all__ = ["Dispatch"]


class Dispatch:
    """The entries of every target of every region; the last one serves all other sizes.

    ``find(*sizes)`` gives the entry's place. An entry starts as *pending*: it sees to it that its
    target gets compiled, and then puts the steady entry in its own place. ``miss``: the last
    entry. ``raw``: picks the leaves' own tensors out of a call, for inputs returned as they are.
    ``serving``: what calls go to, by the same places: the entries, or what compares some calls.
    ``ranks``: the processes that serve them together.
    """

    def __init__(
        self,
        config: Config,
        counters: Counters,
        background: Background | None,
        miss: Entry,
        capturing: Capturing | None = None,
        verifier: Verifier | None = None,
    ) -> None:
        self.ranks = Ranks()
        self.tallies = counters.tallies()
        self.entries: list[Entry] = [miss]
        self.serving: list[Entry] = self.entries
        self._verifier = verifier
        self.find: Callable[..., int] = lambda *sizes: TargetTable.miss
        self.sealed: str | None = None
        self._capturing = capturing
        self.raw: Callable[..., Sequence[Any]] = lambda *args, **kwargs: ()
        self._config = config
        self._background = background
        self._miss = miss
        self._checks = config.check != "off"

    def install(self, bounds: Box, regions: Sequence[Region]) -> None:
        """Make the look-up over the targets of ``regions``."""
        captured = [
            (region, target)
            for region in (regions if self._capturing is not None else ())
            for target in self._capturing.targets(region)  # type: ignore[union-attr]
        ]
        plain = [(region, target) for region in regions for target in region.targets]
        self.find = TargetTable(bounds, [target for _, target in (*captured, *plain)]).find
        self.entries = [self._pending_replay(region, target) for region, target in captured]
        self.entries += [self._pending(region, target) for region, target in plain]
        self.entries.append(self._miss)
        self.serving = self.entries
        if self._verifier is not None:
            self.serving = self._verifier.watch(self.entries, (*captured, *plain))
        counted = [region.program.traced.counted for region, _ in (*captured, *plain)]
        if any(each is not None for each in counted):
            serving, each = self.serving, enumerate((*counted, None))
            self.serving = [_counting(serving, place, numbers) for place, numbers in each]
        if self.ranks.may_be and any(region.collectives for region in regions):
            serving, places = self.serving, range(len(self.serving))
            self.serving = [self._in_same_world(serving, place) for place in places]

    def meet(self, regions: Sequence[Region]) -> None:
        """Before any of ``regions`` serves: the same ones are about to on all ranks."""
        for region in regions:
            if not region.met:
                self.ranks.region(str(region.general_box), region.program.traced.graph)
                region.met = True

    def _in_same_world(self, serving: Sequence[Entry], place: int) -> Entry:
        """What calls go to where collectives are made: of the group that they were captured in."""
        same_world = self.ranks.same_world

        def entry(t: Any, b: Any, sizes: Sizes, args: Any, kwargs: Any) -> Any:
            same_world()
            return serving[place](t, b, sizes, args, kwargs)

        return entry

    def beyond(self, region: Region, t: Any, b: Any, sizes: Sizes, args: Any, kwargs: Any) -> Any:
        """Serve one call above the bounds by the region's general graph."""
        serve: Entry = partial(self.general, region)
        if self._verifier is not None:
            serve = self._verifier.beyond(region, serve)
        if region.program.traced.counted is not None:
            serve = _counting([serve], 0, region.program.traced.counted)
        return serve(t, b, sizes, args, kwargs)

    def general(self, region: Region, t: Any, b: Any, sizes: Sizes, args: Any, kwargs: Any) -> Any:
        """Serve one call by the region's general graph, as written while it is not compiled."""
        self.meet([region])
        box = region.general_box
        if self._background is not None and not region.is_ready(box):
            serve = self._steady(region, region.written_plan(), "general", box)
        elif self._checks and not region.served:
            need(region, box)
            serve = self._first(region, box, "general")
        else:
            serve = self._steady(region, self._plan(region, box), "general", box)
        result = serve(t, b, sizes, args, kwargs)
        region.served = True
        return result

    def _first(self, region: Region, box: Box, kind: str) -> Entry:
        """Serves a target's first call, and looks at what operators and compiled code return."""
        serve = self._steady(region, region.checking_plan(box), kind, box)

        def first(t: Any, b: Any, sizes: Sizes, args: Any, kwargs: Any) -> Any:
            result = serve(t, b, sizes, args, kwargs)
            region.checked(box)
            return result

        return first

    def _steady(self, region: Region, plan: Plan, kind: str, box: Box) -> Entry:
        """Count, run, rebuild."""
        output = region.program.traced.output
        tally, rebuild, raw = self.tallies.of(kind, box), output.serving(), self.raw
        if output.uses_inputs:

            def with_inputs(t: Any, b: Any, sizes: Sizes, args: Any, kwargs: Any) -> Any:
                tally[sizes] += 1
                return rebuild(plan(t, b, *sizes), raw(*args, **kwargs), b)

            return with_inputs

        def entry(t: Any, b: Any, sizes: Sizes, args: Any, kwargs: Any) -> Any:
            tally[sizes] += 1
            return rebuild(plan(t, b, *sizes), t, b)

        return entry

    def _pending(self, region: Region, target: Target) -> Entry:
        def pending(t: Any, b: Any, sizes: Sizes, args: Any, kwargs: Any) -> Any:
            if self._waits(region, target):
                return self.general(region, t, b, sizes, args, kwargs)
            box, kind = target.box, target.kind
            steady = self._steady(region, self._plan(region, box), kind, box)
            if self._checks:
                result = self._first(region, box, kind)(t, b, sizes, args, kwargs)
                steady = self._steady(region, region.plan(box), kind, box)
            else:
                result = steady(t, b, sizes, args, kwargs)
            self._put(sizes, steady)
            return result

        return pending

    def _pending_replay(self, region: Region, target: Target) -> Entry:
        return self.replay(region, target.capture or (), self._put)

    def replay(self, region: Region, captured: Sizes, put: Callable[[Sizes, Entry], None]) -> Entry:
        """What serves a size that may have to be captured; ``put`` has another take its place."""
        otherwise = self._without_graphs(region)
        capturing = self._capturing
        if capturing is None:
            return otherwise
        replays = capturing.pending(region, captured, otherwise, put)

        def pending(t: Any, b: Any, sizes: Sizes, args: Any, kwargs: Any) -> Any:
            capturing.settle(region)
            under = region.fallback(captured)
            self.meet([region])
            if not capturing.may_capture():
                return otherwise(t, b, sizes, args, kwargs)
            legal = sizes in self._config.bounds
            if legal and self._background is not None and self._waits(region, under):
                capturing.replays.all_capture(captured, False)
                return self.general(region, t, b, sizes, args, kwargs)
            if self.sealed != "error":  # else replays say what is refused
                self._plan(region, under.box)
            return replays(t, b, sizes, args, kwargs)

        return pending

    def _put(self, sizes: Sizes, entry: Entry) -> None:
        self.entries[self.find(*sizes)] = entry

    def _without_graphs(self, region: Region) -> Entry:
        """Serves calls that cannot be replayed, by whatever would serve it without graphs."""

        def entry(t: Any, b: Any, sizes: Sizes, args: Any, kwargs: Any) -> Any:
            target = region.fallback(sizes)
            plan = self._plan(region, target.box)
            return self._steady(region, plan, target.kind, target.box)(t, b, sizes, args, kwargs)

        return entry

    def _plan(self, region: Region, box: Box) -> Plan:
        """The plan that serves ``box``. Raises Unready where that has to be compiled."""
        self.meet([region])
        need(region, box)
        return region.plan(box)

    def _waits(self, region: Region, target: Target) -> bool:
        """Whether this call goes to the general graph while the target is not compiled."""
        if region.is_ready(target.box):
            return False
        if self._background is not None:
            if not region.is_asked(target.box):
                # A piece that no worker can compile is compiled here and now.
                ask = partial(region.request, target.box, self._background)
                raise Unready(("ask", region, target.box), ask)
            return True
        lazy = self._config.compile_mode == "lazy" and not self.sealed
        return lazy and not region.served and target.box != region.general_box


def _counting(serving: Sequence[Entry], place: int, counted: Counted | None) -> Entry:
    """What calls go to where objects of theirs count: they are set once a call is served."""

    def entry(t: Any, b: Any, sizes: Sizes, args: Any, kwargs: Any) -> Any:
        result = serving[place](t, b, sizes, args, kwargs)
        if counted is not None:
            counted.advance(sizes)
        return result

    return entry
