"""Compile everything ahead of traffic, with a progress bar and a report."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import Any

from piecewise_core.errors import NotTraced
from piecewise_core.frontend.precompile import compile_all, decide_form, restore
from piecewise_core.frontend.progress import told
from piecewise_core.frontend.session import Session

__all__ = ["WarmupReport", "warm_up"]


@dataclass(frozen=True)
class WarmupReport:
    """What warm-up did, for all forms of calls so far.

    ``regions``: regions of the model. ``targets``: ranges and sizes ready. ``compilations`` and
    ``dedup_hits``: made and saved in this warm-up. ``cache_hits``: taken from the compile store
    in place of compilations. ``seconds``: wall time. ``as_written``: pieces
    that run uncompiled, with the reason. ``captured``: sizes served by static graphs, whose memory
    is ``graph_bytes``. ``dropped``: capture sizes that are not, with the reason.
    """

    regions: int = 0
    targets: int = 0
    compilations: int = 0
    dedup_hits: int = 0
    seconds: float = 0.0
    as_written: tuple[str, ...] = ()
    captured: tuple[tuple[int, ...], ...] = ()
    graph_bytes: int = 0
    dropped: tuple[str, ...] = ()
    cache_hits: int = 0

    def __str__(self) -> str:
        stored = f"{self.cache_hits} from the store, " if self.cache_hits else ""
        lines = [
            f"warm-up: {_many(self.regions, 'region')}, {self.targets} ranges and sizes ready, "
            f"{_many(self.compilations, 'compilation')}, {stored}{_many(self.dedup_hits, 'piece')} "
            f"shared, {self.seconds:.1f} s"
        ]
        if self.captured or self.dropped:
            lines.append(
                f"  static graphs: {len(self.captured)} sizes captured, {self.graph_bytes} bytes"
            )
        lines += [f"  not captured: {note}" for note in self.dropped]
        return "\n".join([*lines, *(f"  as written: {note}" for note in self.as_written)])


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def warm_up(
    session: Session, args: tuple[Any, ...], kwargs: dict[str, Any], *, progress: bool
) -> WarmupReport:
    """Trace every region and compile every range and size.

    ``args``, ``kwargs``: one example call of any size, needed once for each form of calls.
    ``progress``: say how far it is. An interrupt leaves what was compiled, and a
    model that serves.
    """
    with session.lock:
        if not session.forms and not args and not kwargs and session.config.dims:
            raise NotTraced(
                "warmup() needs to know what a call looks like: pass example arguments of any "
                "size, or call the model once before warmup()"
            )
        if not session.forms or args or kwargs:
            session.start(*args, **kwargs)
    begun, before = time.perf_counter(), session.stats()
    with told(progress) as tell, session.shared.ranks.busy.working():
        compiled = compile_all(session.forms)
        exact = (piece for form in session.forms for piece in decide_form(form))
        for region, box, index in itertools.chain(compiled, exact):
            total = sum(len(r.boxes) * len(r.backends) for r in session.regions)
            tell(f"{region.label(index)} for {box}", _done(session), total)
        tell("capturing", 1, 1)
        captured = restore(session.shared, session.forms)
    after, memory = session.stats(), session.shared.memory
    return WarmupReport(
        regions=len(session.regions),
        targets=sum(len(r.targets) for r in session.regions),
        compilations=after.compilations - before.compilations,
        dedup_hits=after.dedup_hits - before.dedup_hits,
        cache_hits=after.cache_hits - before.cache_hits,
        seconds=time.perf_counter() - begun,
        captured=tuple(captured),
        graph_bytes=0 if memory is None else memory.counted,
        dropped=_dropped(session),
        as_written=tuple(f"{a.owner}: {a.note}" for a in session.scheduler.artifacts if a.note),
    )


def _dropped(session: Session) -> tuple[str, ...]:
    capturing = (form.capturing for form in session.forms)
    return tuple(text for each in capturing if each is not None for text in each.replays.dropped())


def _done(session: Session) -> int:
    return sum(
        session.scheduler.ready(piece, box) is not None
        for region in session.regions
        for box in region.boxes
        for piece in region.program.compilable
    )
