"""The status of a compiled model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from piecewise_core.compile.artifact import Artifact
from piecewise_core.frontend.background import Background
from piecewise_core.frontend.form import Form
from piecewise_core.frontend.precompile import RAISING
from piecewise_core.frontend.region import Region
from piecewise_core.frontend.session import Session
from piecewise_core.frontend.status import State, Status, TargetStatus
from piecewise_core.ranges import Box, Sizes
from piecewise_core.replay.replays import Replays
from piecewise_core.tally import Counted
from piecewise_core.targets import Target

__all__ = [
    "code_seconds",
    "code_state",
    "named",
    "replay_row",
    "session_status",
    "spans_of",
]


def session_status(session: Session) -> Status:
    """What serves which sizes. Takes no lock: a call that compiles holds nothing up here."""
    targets: list[TargetStatus] = []
    forms = list(session.forms)
    for place, form in enumerate(forms):
        targets += _OfForm(session, form, place)
    rows = [t for t in targets if t.state != "as_written" or t.kind != "eager"]
    wrong = sum(t.hits for t in targets if t not in rows)
    eager = session.stats().calls["eager"] - wrong
    if eager > 0:
        reason = "out of bounds, watched by a mode, or of a form that is not traced"
        targets.append(TargetStatus("eager", "others", "as_written", reason, eager, form=-1))
    ready = bool(forms) and not any(target.waits for target in targets)
    second = session.shared.artifact_cache.ledger.state()
    asked = dict.fromkeys(form.exactness.advice(r) for form in forms for r in form.regions)
    of_weights = filter(None, asked)
    advice = (*session.setup.advice(), *of_weights, *session.shared.drift.look())
    return Status(ready, tuple(targets), len(forms), advice, second)


class _OfForm:
    """The targets of one form of calls: iterate over it."""

    def __init__(self, session: Session, form: Form, place: int) -> None:
        self._session, self._form, self._place = session, form, place
        self._dims = [dim.name for dim in session.config.dims]
        self._background = session.shared.background

    def __iter__(self) -> Iterator[TargetStatus]:
        regions = list(self._form.regions)
        for region in regions:
            if region.box is not None:
                yield from self._captured(region, region.box)
            for target in region.targets:
                yield self._compiled(region, target)
            yield from self._general(region)
        raising = self._form.regions.raising
        if len(raising) < RAISING and self._form.regions.uncovered(raising) is not None:
            sizes = "other sizes in bounds" if regions else "all sizes in bounds"
            yield self._row("untraced", sizes, "pending", "not traced yet", waits=True)

    def _row(
        self,
        kind: str,
        sizes: str,
        state: State,
        reason: str = "",
        counted: Counted | None = None,
        **more: Any,
    ) -> TargetStatus:
        calls, rows, added = counted or Counted()
        return TargetStatus(
            kind, sizes, state, reason, calls, rows, added, form=self._place, **more
        )

    def _wrong(self, region: Region, target: Target) -> TargetStatus | None:
        """The row of a target that gave other results than the model."""
        verifier = self._form.verifier
        why = None if verifier is None else verifier.wrong.get((region.index, target))
        if verifier is None or why is None:
            return None
        counted = verifier.tallies.total("eager", target)
        return self._row("eager", str(target), "as_written", why, counted)

    def _captured(self, region: Region, box: Box) -> Iterator[TargetStatus]:
        if self._form.capturing is None:
            return
        for target in self._form.capturing.targets(region):
            wrong = self._wrong(region, target)
            if wrong is not None:
                yield wrong
        replays = self._form.capturing.replays
        for sizes in self._session.config.captures:
            if sizes in box:
                yield self._row(**replay_row(replays, sizes, self._dims))

    def _compiled(self, region: Region, target: Target) -> TargetStatus:
        wrong = self._wrong(region, target)
        if wrong is not None:
            return wrong
        box = target.box
        counted = self._form.dispatch.tallies.total(target.kind, box)
        state, reason, waits = code_state(region, box, self._background)
        sizes, spans = named(self._dims, box), spans_of(box)
        more = {"seconds": code_seconds(region, box), "waits": waits, "spans": spans}
        return self._row(target.kind, sizes, state, reason, counted, **more)

    def _general(self, region: Region) -> Iterator[TargetStatus]:
        box = region.general_box
        counted = self._form.dispatch.tallies.total("general", box)
        if not counted.calls and (box == region.box or not region.is_ready(box)):
            return
        state, reason, _ = code_state(region, box, self._background)
        if self._background is not None and not region.is_ready(box):
            state, reason = "as_written", "serves until other code is compiled"
        seconds = 0.0
        if all(target.box != box for target in region.targets):
            seconds = code_seconds(region, box)
        sizes, more = named(self._dims, box), {"seconds": seconds, "spans": spans_of(box)}
        yield self._row("general", sizes, state, reason, counted, **more)


def code_state(region: Region, box: Box, background: Background | None) -> tuple[State, str, bool]:
    """How far the code for ``box`` is, why, and whether calls wait for it."""
    if region.as_written:
        return "as_written", "a size is 0 there", False
    if region.is_ready(box):
        made = list(_artifacts(region, box))
        notes = [f"{artifact.owner}: {artifact.note}" for artifact in made if artifact.note]
        written = bool(notes) and len(notes) == len(made)
        return "as_written" if written else "ready", "; ".join(notes), False
    why = region.failed(box)
    if why is not None:
        return "failed", why, background is None
    if region.is_compiled_now(box):
        return "compiling", "", True
    if background is not None and region.is_asked(box):
        return "compiling", "in the background", True
    return "pending", "not compiled yet", True


def code_seconds(region: Region, box: Box) -> float:
    """What compiling, or loading, the code that serves ``box`` took."""
    return sum(artifact.seconds for artifact in _artifacts(region, box))


def _artifacts(region: Region, box: Box) -> Iterable[Artifact]:
    """The distinct code that serves ``box``."""
    return {id(found): found for found in region.artifacts(box)}.values()


def named(dims: list[str], box: Box) -> str:
    """``box`` with the names of its dims, as status() shows it."""
    shown = [
        f"{name} {span.start if span.is_single_size() else span}"
        for name, span in zip(dims, box.ranges, strict=True)
    ]
    return ", ".join(shown) or "every call"


def spans_of(box: Box) -> tuple[tuple[int, int], ...]:
    """The first and last size of each dim."""
    return tuple((span.start, span.end) for span in box.ranges)


def replay_row(replays: Replays, sizes: Sizes, dims: list[str]) -> dict[str, Any]:
    """The row of one capture size."""
    counted = replays.tallies.total("replayed", sizes)
    box = Box.single(sizes)
    row = {"kind": "replayed", "sizes": named(dims, box), "counted": counted}
    row["spans"] = spans_of(box)
    why = replays.plans.dropped.get(sizes)
    if sizes in replays.plans:
        return {**row, "state": "ready"}
    if why is not None:
        return {**row, "state": "failed", "reason": f"served without graphs: {why}"}
    if sizes in replays.asleep:
        return {**row, "state": "pending", "reason": f"{replays.asleep.why}; served without graphs"}
    return {**row, "state": "pending", "reason": "not captured yet", "waits": True}
