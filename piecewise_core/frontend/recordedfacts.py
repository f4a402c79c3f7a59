"""What ``explain()`` gives of a recorded function."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from piecewise_core.events import Event
from piecewise_core.frontend.facts import Facts
from piecewise_core.frontend.report.paged import Paged
from piecewise_core.frontend.status import Status
from piecewise_core.ranges import Sizes

__all__ = ["RecordedFacts"]


@dataclass(frozen=True)
class RecordedFacts(Paged):
    """What is known of a recorded function.

    ``captured``: sizes with graphs. ``dropped``: capture sizes without, and why. ``as_written``:
    those whose graphs gave other results than the function, and how. ``retraced``: why sizes were
    last recorded anew, or "". ``model``: its name. ``dims``, ``bounds``: each dim, and its first
    and last size. ``status``: as ``status()`` has it. ``events``: the last that happened.
    """

    platform: str
    captured: tuple[Sizes, ...]
    dropped: dict[Sizes, str]
    stats: dict[str, Any]
    as_written: dict[Sizes, str] = field(default_factory=dict)
    retraced: str = ""
    model: str = ""
    reason: str = ""
    dims: tuple[str, ...] = ()
    bounds: tuple[tuple[int, int], ...] = ()
    status: Status = field(default_factory=lambda: Status(False, ()))
    events: tuple[Event, ...] = ()

    def to_json(self) -> str:
        """The facts as a JSON object; sizes are written as in ``str``."""
        facts = asdict(self)
        for name in ("dropped", "as_written"):
            facts[name] = {str(sizes): why for sizes, why in getattr(self, name).items()}
        return json.dumps(facts, indent=2)

    def __str__(self) -> str:
        lines = [f"platform {self.platform}, recorded", f"captured: {_listed(self.captured)}"]
        lines += [f"not captured: {why}" for why in _told(self.dropped)]
        lines += [f"last recorded anew, for {self.retraced}"] if self.retraced else []
        lines += [f"served as written: {why}" for why in _told(self.as_written)]
        lines += [f"advice: {text}" for text in self.status.advice]
        calls = ", ".join(f"{k} {v}" for k, v in self.stats["calls"].items() if v)
        return "\n".join([*lines, f"calls: {calls or 'none'}"])

    def _facts(self) -> Facts:
        return Facts(
            platform=self.platform,
            reason=self.reason,
            compiler="none, recorded",
            dims=self.dims,
            regions=(),
            stats=self.stats,
            captured=tuple(map(str, self.captured)),
            dropped=_told(self.dropped),
            as_written=_told(self.as_written),
            retraced=self.retraced,
            model=self.model,
            bounds=self.bounds,
            ready=self.status.ready,
            targets=self.status.targets,
            events=self.events,
            advice=self.status.advice,
            recorded=True,
        )


def _told(found: dict[Sizes, str]) -> tuple[str, ...]:
    return tuple(f"{sizes}: {why}" for sizes, why in found.items())


def _listed(sizes: tuple[Sizes, ...]) -> str:
    return ", ".join(map(str, sizes)) or "none"
