"""What is measured: one list of families for every library, and how each is read of a model."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from piecewise_core.compiled import Controls
from piecewise_core.counters import Stats
from piecewise_core.errors import ConfigError
from piecewise_core.events import EventKind
from piecewise_core.frontend.recorded import RecordedFunction
from piecewise_core.frontend.status import Status
from piecewise_core.frontend.statuses import named
from piecewise_core.ranges import Box
from piecewise_core.tally import Counted

__all__ = ["FAMILIES", "Family", "Model", "Models", "View"]

Model = Controls | RecordedFunction
"""What ``pw.compile``, ``pw.load`` or ``pw.record`` returned."""

Samples = Iterator[tuple[tuple[str, ...], float]]


class View:
    """One model, looked at once."""

    def __init__(self, model: Model) -> None:
        self._model = model
        if isinstance(model, RecordedFunction):
            self.counters, self._config = model._counters, model._config
        else:
            self.counters, self._config = model._pw_session.counters, model._pw_session.config

    @functools.cached_property
    def stats(self) -> Stats:
        """Its counters."""
        return self.counters.stats()

    @functools.cached_property
    def status(self) -> Status:
        """Its targets."""
        return self._model.status()

    @property
    def regions(self) -> int:
        """How many regions it has now."""
        if isinstance(self._model, RecordedFunction):
            return 0
        return len(self._model._pw_session.regions)

    def by_target(self) -> Iterator[tuple[tuple[str, str], Counted]]:
        """What was counted, by kind and the name of a target's sizes."""
        dims = [dim.name for dim in self._config.dims]
        for (kind, where), counted in self.counters.by_target().items():
            box = Box.single(where) if isinstance(where, tuple) else where
            yield (kind, "" if box is None else named(dims, box)), counted


@dataclass(frozen=True)
class Family:
    """One metric: ``name`` without unit, ``labels`` beside ``model``, and how it is read."""

    name: str
    kind: Literal["counter", "gauge"]
    unit: Literal["", "seconds", "bytes"]
    about: str
    labels: tuple[str, ...]
    read: Callable[[View], Samples]


def _counted(field: Literal["calls", "rows", "added"]) -> Callable[[View], Samples]:
    def read(view: View) -> Samples:
        for labels, counted in view.by_target():
            yield labels, getattr(counted, field)

    return read


def _seconds(kind: EventKind) -> Callable[[View], Samples]:
    def read(view: View) -> Samples:
        yield (), view.counters.happened().get(kind, (0, 0.0))[1]

    return read


def _events(view: View) -> Samples:
    for kind, (times, _) in view.counters.happened().items():
        yield (kind,), times


def _targets(view: View) -> Samples:
    for state in ("ready", "compiling", "pending", "failed", "as_written"):
        yield (state,), len(view.status.of(state))


def _one(value: Callable[[View], float]) -> Callable[[View], Samples]:
    def read(view: View) -> Samples:
        yield (), value(view)

    return read


_TARGET = ("kind", "target")

FAMILIES = (
    Family("calls", "counter", "", "Calls served", _TARGET, _counted("calls")),
    Family("rows", "counter", "", "Rows of calls", _TARGET, _counted("rows")),
    Family("padded_rows", "counter", "", "Rows that padding added", _TARGET, _counted("added")),
    Family("events", "counter", "", "Events beside calls", ("kind",), _events),
    Family("trace", "counter", "seconds", "Time spent tracing", (), _seconds("traced")),
    Family("compile", "counter", "seconds", "Time spent compiling", (), _seconds("compiled")),
    Family("load", "counter", "seconds", "Time spent loading stored code", (), _seconds("loaded")),
    Family("capture", "counter", "seconds", "Time spent capturing", (), _seconds("captured")),
    Family("pool", "gauge", "bytes", "In the graph pool", (), _one(lambda v: v.stats.pool_bytes)),
    Family(
        "driver", "gauge", "bytes", "Of graphs, outside of the pool", (),
        _one(lambda v: v.stats.driver_bytes),
    ),
    Family("regions", "gauge", "", "Regions that are traced", (), _one(lambda v: v.regions)),
    Family("targets", "gauge", "", "Targets by state", ("state",), _targets),
    Family(
        "ready", "gauge", "", "1 when no call in bounds has to wait, else 0", (),
        _one(lambda v: v.status.ready),
    ),
)  # fmt: skip
"""Every metric. Of the time spent, what background workers compile is in it too."""


class Models:
    """Models by name, referred to weakly: those that are gone are not read any more."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        if not isinstance(models, Mapping) or not models:
            raise ConfigError(
                f"metrics: {type(models).__name__} is no dict of models by name; write "
                '{"encoder": fast}'
            )
        for name, model in models.items():
            if not isinstance(name, str) or not name:
                raise ConfigError(f"metrics: {name!r} is not a name; give a string")
            if not isinstance(model, (Controls, RecordedFunction)):
                raise ConfigError(
                    f"metrics: {name!r} is a {type(model).__name__}; give what pw.compile, "
                    "pw.load or pw.record returned"
                )
        self._refs = {name: weakref.ref(model) for name, model in models.items()}
        self._open = True

    def views(self) -> Iterator[tuple[str, View]]:
        """Those that are still there; none once closed."""
        for name, ref in self._refs.items():
            model = ref() if self._open else None
            if model is not None:
                yield name, View(model)

    def close(self) -> None:
        """Read none any more."""
        self._open = False
