"""When traces, compilations and captures happened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from piecewise_core.events import Event

__all__ = ["Lane", "Mark", "Timeline", "timeline"]

_LANES = ("traced", "compiled", "loaded", "captured")
"""What has a lane of its own; the rest shares one."""

_MARKS = 1000
"""Events that a page shows, the last ones."""


@dataclass(frozen=True)
class Mark:
    """One event. ``left`` and ``width``: shares of the whole time. ``after``: seconds."""

    event: Event
    left: float
    width: float
    after: float


@dataclass(frozen=True)
class Lane:
    """Events of one kind."""

    name: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Timeline:
    """``begun``: when the first event did, in UTC. ``seconds``: to the end of the last."""

    begun: str
    seconds: float
    lanes: tuple[Lane, ...]

    @property
    def marks(self) -> list[Mark]:
        """All of them, in the order of time."""
        return sorted((m for lane in self.lanes for m in lane.marks), key=lambda m: m.event.at)


def timeline(events: Sequence[Event]) -> Timeline | None:
    """The last of ``events`` in lanes; None without any."""
    shown = events[-_MARKS:]
    if not shown:
        return None
    begin = min(event.at - event.seconds for event in shown)
    whole = max(max(event.at for event in shown) - begin, 1e-6)
    lanes: dict[str, list[Mark]] = {name: [] for name in (*_LANES, "other")}
    for event in shown:
        after = event.at - event.seconds - begin
        mark = Mark(event, after / whole, max(event.seconds / whole, 0.002), after)
        lanes[event.kind if event.kind in _LANES else "other"].append(mark)
    return Timeline(
        datetime.fromtimestamp(begin, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC"),
        whole,
        tuple(Lane(name, tuple(marks)) for name, marks in lanes.items() if marks),
    )
