"""What a recorded function tells of its calls and graphs: counters, status, histogram."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from piecewise_core.capture.dumping import dump_plans
from piecewise_core.capture.graphmemory import GraphMemory
from piecewise_core.config import Config
from piecewise_core.counters import Counters, Stats
from piecewise_core.events import name_of
from piecewise_core.frontend.calllock import CallLock, is_mine
from piecewise_core.frontend.drift import Drift
from piecewise_core.frontend.estimate import Estimate
from piecewise_core.frontend.estimating import estimate
from piecewise_core.frontend.readiness import wait_for
from piecewise_core.frontend.recordedcalls import RecordedCalls
from piecewise_core.frontend.recordedestimate import RecordedSubject
from piecewise_core.frontend.recordedfacts import RecordedFacts
from piecewise_core.frontend.setup import Setup
from piecewise_core.frontend.status import Status, TargetStatus
from piecewise_core.frontend.statuses import replay_row
from piecewise_core.frontend.traffic import traffic
from piecewise_core.planner.histogram import Histogram

__all__ = ["RecordedBooks"]


class RecordedBooks:
    """The part of a RecordedFunction that reads what its forms of calls wrote down."""

    _config: Config
    _counters: Counters
    _fn: Callable[..., Any]
    _forms: list[RecordedCalls]
    _calls: RecordedCalls
    _lock: CallLock
    _memory: GraphMemory
    _setup: Setup

    @property
    def _started(self) -> list[RecordedCalls]:
        return [form for form in self._forms if form.started]

    @functools.cached_property
    def _drift(self) -> Drift:
        return Drift(self._config, self._counters)

    def tell(self) -> None:
        """Hand out events, unless this is inside of a call."""
        self._counters.deliver(lambda: is_mine(self._lock))

    def stats(self) -> Stats:
        """The counters so far."""
        return self._counters.stats()

    def status(self) -> Status:
        """Which sizes have graphs, how often they served, and what runs as it is."""
        started = self._started
        rows = [row for place, form in enumerate(started) for row in self._rows(form, place)]
        eager = self.stats().calls["eager"]
        if eager:
            why = "of sizes without graphs"
            rows.append(TargetStatus("eager", "others", "as_written", why, eager, form=-1))
        ready = bool(started) and not any(row.waits for row in rows)
        advice = (*self._setup.advice(recorded=True), *self._drift.look())
        return Status(ready, tuple(rows), len(started), advice)

    def _rows(self, form: RecordedCalls, place: int) -> list[TargetStatus]:
        replays, dims = form.recordings.replays, [dim.name for dim in self._config.dims]
        wrong = {captured: why for (captured, _), why in form.verifier.wrong.items()}
        rows = []
        for sizes in self._config.captures:
            row = replay_row(replays, sizes, dims)
            if sizes in wrong:
                row |= {"state": "as_written", "reason": wrong[sizes], "waits": False}
            calls, real, added = row.pop("counted")
            rows.append(
                TargetStatus(**row, hits=calls, real_rows=real, padded_rows=added, form=place)
            )
        return rows

    def dump_graphs(self, directory: str | Path) -> list[Path]:
        """Write every static graph to a file in ``directory``, to look at; returns the files.

        Of several forms of calls, each has a folder of its own there, ``form-0`` and so on.
        """
        return dump_plans([form.recordings.replays.plans for form in self._forms], Path(directory))

    def explain(self) -> RecordedFacts:
        """Which sizes have graphs, which have not and why."""
        plans = [form.recordings.replays.plans for form in self._forms]
        selected, dims = self._setup.selected, self._config.dims
        found = {key: why for form in self._forms for key, why in form.verifier.wrong.items()}
        return RecordedFacts(
            selected.info.name,
            tuple(s for s in self._config.captures if any(s in each for each in plans)),
            {size: why for each in plans for size, why in each.dropped.items()},
            self.stats().to_dict(),
            {captured: why for (captured, _), why in found.items()},
            self._calls.recordings.retraced,
            name_of(self._fn),
            selected.reason,
            tuple(f"{dim.name} {dim.sizes}" for dim in dims),
            tuple((dim.min, dim.max) for dim in dims),
            self.status(),
            self._counters.history(),
        )

    def estimate(self, sizes: Sequence[Any] | None = None) -> Estimate:
        """What static graphs of ``sizes`` take, as of compiled models.

        The function is run at those sizes that are captured to know, and some smaller ones. Raises
        ConfigError for sizes out of bounds, and NotTraced before a first call.
        """
        forms = [RecordedSubject(form) for form in self._started]
        return estimate(self._setup, forms, sizes, self._lock)

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Wait until every capture size has graphs, which ``warmup()`` or calls bring.

        ``timeout``: seconds; None for no end. Returns whether it is so.
        """
        return wait_for(self.status, timeout)

    def histogram(self) -> Histogram:
        """Calls so far by their sizes, for ``pw.plan`` and ``piecewise plan``."""
        return traffic(self._config, self._counters, self._memory)
