"""Work of a session that is done before a call asks for it, and undone when nobody does."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from piecewise_core.capture.dumping import dump_plans
from piecewise_core.errors import CaptureFailed, SizeBranch, TraceFailed, UnsupportedSideEffect
from piecewise_core.frontend.building import between_builds
from piecewise_core.frontend.refusals import refuse_around
from piecewise_core.torch_compat.dynamo import compile_lock

if TYPE_CHECKING:
    from piecewise_core.frontend.form import Form
    from piecewise_core.frontend.region import Region
    from piecewise_core.frontend.shared import Shared
    from piecewise_core.ranges import Box, Sizes

logger = logging.getLogger(__name__)

RAISING = 8
"""Sizes at which a model may raise before warm-up looks for no more of its regions."""

__all__ = [
    "RAISING",
    "capture_all",
    "compile_all",
    "compile_form",
    "decide_form",
    "dump_graphs",
    "release",
    "restore",
    "trace_all",
    "warm",
]


def trace_all(form: Form) -> Iterator[Region]:
    """Trace until regions cover the bounds; yields each new one.

    Sizes at which the model itself raises are left to calls, which raise.
    """
    known = len(form.regions)
    raising = form.regions.raising
    raising.clear()
    while (sizes := form.regions.uncovered(raising)) is not None:
        try:
            form.region_for(sizes)
        except TraceFailed as error:
            if isinstance(error, UnsupportedSideEffect) and not form.regions:
                refusal = UnsupportedSideEffect(
                    f"{error}. Where the first forward alone does that, call the compiled model "
                    "once before warmup()"
                )
                refusal.undo = error.undo  # of compile_mode="warmup", whose first call may fill
                raise refusal from None
            unique = isinstance(error, SizeBranch) or form.shared.config.regions == "declared"
            if unique or not form.regions:
                raise
            raising.append(sizes)
            if len(raising) == RAISING:
                logger.warning(
                    "warm-up leaves out the sizes at which the model raises, %s among them (%s); "
                    "narrow Dim(min, max) or set Dim(multiple_of=) to those that are called",
                    raising[0],
                    str(error).partition("\n")[0][:300],
                )
                return
        yield from form.regions[known:]
        known = len(form.regions)


def compile_all(forms: Sequence[Form]) -> Iterator[tuple[Region, Box, int]]:
    """Trace and compile all there is; yields before each piece that is about to compile."""
    for form in list(forms):
        yield from compile_form(form)


def compile_form(form: Form) -> Iterator[tuple[Region, Box, int]]:
    """The same of one form of calls."""
    shared = form.shared
    refuse_around(shared.setup.is_capturing)
    with shared.lock:
        waits = form.model.waits  # for objects, without which nothing more can be traced
        if not waits:
            form.bound()
    for _ in () if waits else trace_all(form):
        pass
    for region in form.regions:
        form.exactness.known(region)
    shared.scheduler.compile_beside(w for r in form.regions for w in r.wanted(*r.boxes))
    for region, box in [(r, box) for r in form.regions for box in r.boxes]:
        for index, piece in enumerate(region.program.compilable):
            if shared.scheduler.ready(piece, box) is None:
                yield region, box, index
            with compile_lock:
                region.compile(index, box)
        region.build(box)


def decide_form(form: Form) -> Iterator[tuple[Region, Box, int]]:
    """Measure whether captured sizes are worth code of their own; the same yields."""
    if form.capturing is not None and not form.model.waits:
        yield from form.exactness.decide(form.regions, form.capturing.plans)


def warm(form: Form) -> None:
    """Trace, compile and capture all there is of one form."""
    form.to_warm = False
    for _ in (*compile_form(form), *decide_form(form)):
        pass
    with between_builds(form.shared.lock):
        form.wake()
        form.capture_all()


def capture_all(
    shared: Shared, forms: Sequence[Form], sizes: Sequence[Sizes] | None = None
) -> list[Sizes]:
    """Capture ``sizes`` of every form, or all, but what sleeps; returns those with graphs."""
    with between_builds(shared.lock):
        return [each for form in forms for each in form.capture_all(sizes)]


def restore(
    shared: Shared,
    forms: Sequence[Form],
    sizes: Sequence[Sizes] | None = None,
    *,
    lazy: bool = False,
) -> list[Sizes]:
    """Capture again what ``release`` freed, or a replaced parameter made stale.

    ``sizes``: of these; None for all. ``lazy``: not now, but each at its next call.
    """
    with shared.lock:
        for form in forms:
            form.wake(sizes)
    return [] if lazy else capture_all(shared, forms, sizes)


def release(
    shared: Shared, forms: Sequence[Form], sizes: Sequence[Sizes] | None = None
) -> list[Sizes]:
    """Free graph memory, all or that of ``sizes``: they are served without graphs."""
    with shared.lock:
        return [s for form in forms for s in form.release(sizes)]


def dump_graphs(shared: Shared, forms: Sequence[Form], directory: Path) -> list[Path]:
    """Write every static graph to a file in ``directory``, as ``dump_plans``."""
    if shared.memory is None:
        raise CaptureFailed("nothing is captured here; set capture_sizes on a platform that can")
    with shared.lock:
        plans = [form.capturing.plans for form in forms if form.capturing is not None]
        return dump_plans(plans, directory)
