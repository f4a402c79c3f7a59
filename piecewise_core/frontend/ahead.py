"""Work of a session that is done before a call asks for it, and undone when nobody does."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from piecewise_core.errors import CaptureFailed, SizeBranch, TraceFailed
from piecewise_core.frontend.building import between_builds
from piecewise_core.frontend.refusals import refuse_autocast
from piecewise_core.graph.torch_private import any_autocast, compile_lock

if TYPE_CHECKING:
    from piecewise_core.frontend.region import Region
    from piecewise_core.frontend.session import Session
    from piecewise_core.ranges import Box, Sizes

logger = logging.getLogger(__name__)

_RAISING = 8
"""Sizes at which a model may raise before warm-up looks for no more of its regions."""

__all__ = ["capture_all", "compile_all", "dump_graphs", "release", "trace_all"]


def trace_all(session: Session) -> Iterator[Region]:
    """Trace until regions cover the bounds; yields each new one.

    Sizes at which the model itself raises are left to calls, which are told so.
    """
    known = len(session.regions)
    raising: list[Sizes] = []
    while (sizes := session.uncovered(raising)) is not None:
        try:
            session.region_for(sizes)
        except TraceFailed as error:
            unique = isinstance(error, SizeBranch) or session.config.regions == "declared"
            if unique or not session.regions:
                raise
            raising.append(sizes)
            if len(raising) == _RAISING:
                logger.warning(
                    "warm-up leaves out the sizes at which the model raises, %s among them (%s); "
                    "narrow Dim(min, max) or set Dim(multiple_of=) to those that are called",
                    raising[0],
                    str(error).partition("\n")[0][:300],
                )
                return
        yield from session.regions[known:]
        known = len(session.regions)


def compile_all(session: Session) -> Iterator[tuple[Region, Box, int]]:
    """Trace and compile all there is; yields before each piece that is about to compile."""
    if any_autocast():
        refuse_autocast()
    with session.lock:
        session.bound()
    for _ in trace_all(session):
        pass
    for region, box in [(r, box) for r in session.regions for box in r.boxes]:
        for index, piece in enumerate(region.program.compilable):
            if session.scheduler.ready(piece, box) is None:
                yield region, box, index
            with compile_lock:
                region.compile(index, box)
        region.build(box)


def capture_all(session: Session) -> list[Sizes]:
    """Capture every capture size, the largest first; returns those now served by graphs.

    What ``release`` freed, or a replaced parameter made stale, is captured again.
    """
    capturing = session.capturing
    if capturing is None:
        return []
    with between_builds(session.lock):
        bound = session.bound()
        if capturing.replays.released:
            capturing.replays.released = False
            session.install()
        return capturing.capture_all(session.regions, bound)


def release(session: Session, *, later: bool = False) -> list[Sizes]:
    """Free all graph memory; sizes are served without graphs until they are captured again.

    ``later``: in the middle of a call, whose inputs may lie in it.
    """
    capturing = session.capturing
    if capturing is None:
        return []
    with session.lock:
        freed = capturing.replays.release(later=later)
        session.install()
        return freed


def dump_graphs(session: Session, directory: Path) -> list[Path]:
    """Write every static graph to a file in ``directory``. Raises CaptureFailed."""
    if session.capturing is None:
        raise CaptureFailed("nothing is captured here; set capture_sizes on a platform that can")
    with session.lock:
        return session.capturing.plans.dump(directory)
