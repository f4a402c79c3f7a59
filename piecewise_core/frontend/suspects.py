"""Calls of a session and of a Dynamo graph as what bisection and verification look at."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from piecewise_core.errors import OutOfRange
from piecewise_core.frontend.bisecting import Suspect, bisect
from piecewise_core.frontend.bisectreport import BisectReport
from piecewise_core.frontend.building import no_build
from piecewise_core.frontend.coverage import out_of_range
from piecewise_core.frontend.region import Region, need
from piecewise_core.frontend.setup import Setup
from piecewise_core.ranges import Sizes
from piecewise_core.targets import Target

if TYPE_CHECKING:
    from piecewise_core.frontend.form import Form
    from piecewise_core.frontend.session import Session

__all__ = ["FormSubject", "GraphSubject", "bisect_call"]


def _generators(setup: Setup) -> list[Any]:
    rng = setup.platform.declared.rng
    return [] if rng is None else [rng()]


class FormSubject:
    """A model that pw.compile took: as written is the model itself."""

    def __init__(self, form: Form) -> None:
        self._form = form

    def as_written(self, region: Region, t: Any, b: Any, sizes: Sizes, args: Any, kw: Any) -> Any:
        """Run one call of the model as its user wrote it."""
        return self._form.shared.fn(*args, **kw)

    def suspect(
        self, region: Region, target: Target, t: Any, b: Any, sizes: Sizes, args: Any, kw: Any
    ) -> Suspect:
        """One call, for bisection; with the static graphs that serve it by now."""
        form = self._form
        given = form.binder.raw(*args, **kw)
        plan, buffers = None, []
        if target.capture is not None and form.capturing is not None:
            # A replay would write over what another thread may be reading.
            free = form.capturing.plans.callers.may_overwrite()
            plan = form.capturing.plans.get(target.capture) if free else None
            if plan is not None:
                buffers = list(form.capturing.replays.reads.of(target.capture, t))
        output = region.program.traced.output
        return Suspect(
            region,
            t,
            b,
            sizes,
            given,
            lambda: form.shared.fn(*args, **kw),
            output.rebuild,
            plan,
            buffers,
            _generators(form.shared.setup),
            str(target),
        )


class GraphSubject:
    """A graph of torch.compile's: as written is the graph as Dynamo gave it."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup

    def as_written(self, region: Region, t: Any, b: Any, sizes: Sizes, args: Any, kw: Any) -> Any:
        """Run one call of the graph as it is."""
        return region.program.traced.output.rebuild(region.written_plan()(t, b, *sizes), t, b)

    def suspect(
        self, region: Region, target: Target, t: Any, b: Any, sizes: Sizes, args: Any, kw: Any
    ) -> Suspect:
        """One call, for bisection."""
        output = region.program.traced.output
        return Suspect(
            region,
            t,
            b,
            sizes,
            t,
            lambda: self.as_written(region, t, b, sizes, args, kw),
            output.rebuild,
            None,
            (),
            _generators(self._setup),
            str(target),
        )


def bisect_call(session: Session, args: tuple[Any, ...], kwargs: dict[str, Any]) -> BisectReport:
    """Look at one call of a session: traced, compiled and captured first if it is not yet.

    Raises OutOfRange, and what a call raises.
    """
    return session.shared.once_ready(partial(_bisected, session, args, kwargs))


def _bisected(session: Session, args: tuple[Any, ...], kwargs: dict[str, Any]) -> BisectReport:
    form, tensors, bound, sizes = session.taken(args, kwargs)
    if sizes not in session.config.bounds:
        raise OutOfRange(out_of_range(session.config, sizes))
    region = form.held_region(sizes)
    target = region.fallback(sizes)
    need(region, target.box)
    capturing = form.capturing
    if capturing is not None:
        captured = [x for x in capturing.targets(region) if sizes in x.box]
        plan = None
        if captured and captured[0].capture is not None:
            with no_build():
                plan = capturing.plan(region, captured[0].capture, tensors, bound, sizes)
        target = captured[0] if plan is not None else target
    return bisect(FormSubject(form).suspect(region, target, tensors, bound, sizes, args, kwargs))
