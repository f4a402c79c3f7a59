"""Calls of a session and of a Dynamo graph as what bisection and verification look at."""

from __future__ import annotations

from typing import Any

from piecewise_core.frontend.bisecting import Suspect
from piecewise_core.frontend.capturing import Capturing
from piecewise_core.frontend.region import Region
from piecewise_core.frontend.setup import Setup
from piecewise_core.frontend.shared import Shared
from piecewise_core.graph.binder import Binder
from piecewise_core.ranges import Sizes
from piecewise_core.targets import Target

__all__ = ["FormSubject", "GraphSubject"]


def _generators(setup: Setup) -> list[Any]:
    rng = setup.platform.declared.rng
    return [] if rng is None else [rng()]


def _graphs(capturing: Capturing | None, target: Target, t: Any) -> tuple[Any, list[Any]]:
    """The static graphs that serve a call by now, and what they read."""
    if target.capture is None or capturing is None:
        return None, []
    # A replay would write over what another thread may be reading.
    free = capturing.plans.callers.may_overwrite()
    plan = capturing.plans.get(target.capture) if free else None
    return plan, [] if plan is None else list(capturing.replays.reads.of(target.capture, t))


class FormSubject:
    """A model that pw.compile took: as written is the model itself."""

    def __init__(self, shared: Shared, binder: Binder, capturing: Capturing | None) -> None:
        self._shared = shared
        self._binder = binder
        self._capturing = capturing

    def as_written(self, region: Region, t: Any, b: Any, sizes: Sizes, args: Any, kw: Any) -> Any:
        """Run one call of the model as its user wrote it."""
        return self._shared.fn(*args, **kw)

    def suspect(
        self, region: Region, target: Target, t: Any, b: Any, sizes: Sizes, args: Any, kw: Any
    ) -> Suspect:
        """One call, for bisection; with the static graphs that serve it by now."""
        shared, capturing = self._shared, self._capturing
        given = self._binder.raw(*args, **kw)
        plan, buffers = _graphs(capturing, target, t)
        output = region.program.traced.output
        return Suspect(
            region,
            t,
            b,
            sizes,
            given,
            lambda: shared.fn(*args, **kw),
            output.rebuild,
            plan,
            buffers,
            _generators(shared.setup),
            target,
        )


class GraphSubject:
    """A graph of torch.compile's: as written is the graph as Dynamo gave it."""

    def __init__(self, setup: Setup, capturing: Capturing | None = None) -> None:
        self._setup = setup
        self._capturing = capturing

    def as_written(self, region: Region, t: Any, b: Any, sizes: Sizes, args: Any, kw: Any) -> Any:
        """Run one call of the graph as it is."""
        return region.program.traced.output.rebuild(region.written_plan()(t, b, *sizes), t, b)

    def suspect(
        self, region: Region, target: Target, t: Any, b: Any, sizes: Sizes, args: Any, kw: Any
    ) -> Suspect:
        """One call, for bisection."""
        output = region.program.traced.output
        plan, buffers = _graphs(self._capturing, target, t)
        return Suspect(
            region,
            t,
            b,
            sizes,
            t,
            lambda: self.as_written(region, t, b, sizes, args, kw),
            output.rebuild,
            plan,
            buffers,
            _generators(self._setup),
            target,
        )
