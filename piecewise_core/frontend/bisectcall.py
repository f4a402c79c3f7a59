"""One call of a session, taken apart: which piece gives other results than the model as written."""

from __future__ import annotations

from functools import partial
from typing import Any

from piecewise_core.frontend.bisecting import bisect
from piecewise_core.frontend.bisectreport import BisectReport
from piecewise_core.frontend.building import no_build
from piecewise_core.frontend.coverage import out_of_range
from piecewise_core.frontend.piececode import need
from piecewise_core.frontend.session import Session
from piecewise_core.frontend.suspects import FormSubject

__all__ = ["bisect_call"]


def bisect_call(session: Session, args: tuple[Any, ...], kwargs: dict[str, Any]) -> BisectReport:
    """Look at one call of a session: traced, compiled and captured first if it is not yet.

    Raises OutOfRange, and what a call raises.
    """
    return session.shared.once_ready(partial(_bisected, session, args, kwargs))


def _bisected(session: Session, args: tuple[Any, ...], kwargs: dict[str, Any]) -> BisectReport:
    form, tensors, bound, sizes = session.taken(args, kwargs)
    if sizes not in session.config.bounds:
        raise out_of_range(session.config, sizes)
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
    subject = FormSubject(form.shared, form.binder, capturing)
    suspect = subject.suspect(region, target, tensors, bound, sizes, args, kwargs)
    return form.shared.ranks.jointly("bisect()", lambda: bisect(suspect), lambda report: None)
