"""What is measured: one list of families for every library, and how each is read of a model."""

from __future__ import annotations

import functools
import operator
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from piecewise_core.compiled import Controls
from piecewise_core.config import Dim
from piecewise_core.counters import Counters, Stats
from piecewise_core.errors import ConfigError
from piecewise_core.events import EventKind
from piecewise_core.frontend.door.registry import door, dynamo_graphs
from piecewise_core.frontend.door.status import graph_status
from piecewise_core.frontend.graphpool import Pool
from piecewise_core.frontend.recorded import RecordedFunction
from piecewise_core.frontend.status import Status
from piecewise_core.frontend.statuses import named
from piecewise_core.ranges import Box
from piecewise_core.tally import Counted

__all__ = ["FAMILIES", "Family", "Model", "Models", "View"]

Model = Controls | RecordedFunction | Pool | Callable[[], Any]
"""What ``pw.compile``, ``load``, ``record`` or ``Pool`` returned; or ``pw.dynamo_graphs``."""

Samples = Iterator[tuple[tuple[str, ...], float]]


class View:
    """One model, looked at once. ``counters``: None of what is memory only, and ``look`` too."""

    def __init__(
        self,
        stats: Callable[[], Stats],
        counters: Counters | None = None,
        look: Callable[[], Status] | None = None,
        dims: Iterable[Dim] = (),
        regions: int = 0,
    ) -> None:
        self._stats, self._look = stats, look
        self._dims = [dim.name for dim in dims]
        self.counters, self.regions = counters, regions

    @functools.cached_property
    def stats(self) -> Stats:
        """Its counters."""
        return self._stats()

    @functools.cached_property
    def status(self) -> Status | None:
        """Its targets."""
        return None if self._look is None else self._look()

    def by_target(self) -> Iterator[tuple[tuple[str, str], Counted]]:
        """What was counted, by kind and the name of a target's sizes."""
        found = {} if self.counters is None else self.counters.by_target()
        for (kind, where), counted in found.items():
            box = Box.single(where) if isinstance(where, tuple) else where
            yield (kind, "" if box is None else named(self._dims, box)), counted

    def happened(self) -> dict[EventKind, tuple[int, float]]:
        """How often what happened, and the seconds that it took."""
        return {} if self.counters is None else self.counters.happened()


def _views(name: str, model: Any) -> Iterator[tuple[str, View]]:
    """``model`` by the names that it has in metrics."""
    if model is dynamo_graphs:
        yield from _of_the_door(name)
    elif isinstance(model, Pool):
        yield name, View(model.stats)
    elif isinstance(model, RecordedFunction):
        yield name, View(model.stats, model._counters, model.status, model._config.dims)
    else:
        session = model._pw_session
        regions = len(session.regions)
        yield name, View(model.stats, session.counters, model.status, session.config.dims, regions)


def _of_the_door(name: str) -> Iterator[tuple[str, View]]:
    """Each graph by its number, and the memory of all."""
    memories = {}
    for number, graph in door.numbered():
        made, look = graph.made, functools.partial(graph_status, graph)
        memories[id(graph.memory)] = graph.memory.counters
        yield f"{name} {number}", View(graph.stats, made.counters, look, made.setup.config.dims, 1)
    stats = [counters.stats() for counters in memories.values()]
    yield name, View(lambda: functools.reduce(operator.add, stats, Stats()))


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
        if view.counters is not None:
            yield (), view.happened().get(kind, (0, 0.0))[1]

    return read


def _events(view: View) -> Samples:
    for kind, (times, _) in view.happened().items():
        yield (kind,), times


def _targets(view: View) -> Samples:
    if view.status is None:
        return
    for state in ("ready", "compiling", "pending", "failed", "as_written"):
        yield (state,), len(view.status.of(state))


def _one(value: Callable[[View], float]) -> Callable[[View], Samples]:
    def read(view: View) -> Samples:
        yield (), value(view)

    return read


def _stored(value: Callable[[Stats], float]) -> Callable[[View], Samples]:
    """Of the compile store, which a pool has nothing to do with."""

    def read(view: View) -> Samples:
        if view.status is not None:
            yield (), value(view.stats)

    return read


def _regions(view: View) -> Samples:
    if view.counters is not None:
        yield (), view.regions


def _ready(view: View) -> Samples:
    if view.status is not None:
        yield (), view.status.ready


_TARGET = ("kind", "target")

FAMILIES = (
    Family("calls", "counter", "", "Calls served", _TARGET, _counted("calls")),
    Family("rows", "counter", "", "Rows of calls", _TARGET, _counted("rows")),
    Family("padded_rows", "counter", "", "Rows that padding added", _TARGET, _counted("added")),
    Family("events", "counter", "", "Events beside calls", ("kind",), _events),
    Family("trace", "counter", "seconds", "Time spent tracing", (), _seconds("traced")),
    Family("compile", "counter", "seconds", "Time spent compiling", (), _seconds("compiled")),
    Family("load", "counter", "seconds", "Time spent loading stored code", (), _seconds("loaded")),
    Family(
        "cache_refused", "counter", "", "Entries refused for their signature", (),
        _stored(lambda s: s.cache_refused),
    ),
    Family(
        "fleet_hits", "counter", "", "Entries fetched from the second level", (),
        _stored(lambda s: s.fleet_hits),
    ),
    Family(
        "fleet", "counter", "bytes", "Fetched from the second level", (),
        _stored(lambda s: s.fleet_bytes),
    ),
    Family(
        "fleet_saved", "counter", "seconds", "Compiling that fetching saved", (),
        _stored(lambda s: s.fleet_saved_ms / 1000),
    ),
    Family("capture", "counter", "seconds", "Time spent capturing", (), _seconds("captured")),
    Family("pool", "gauge", "bytes", "In the graph pool", (), _one(lambda v: v.stats.pool_bytes)),
    Family(
        "driver", "gauge", "bytes", "Of graphs, outside of the pool", (),
        _one(lambda v: v.stats.driver_bytes),
    ),
    Family("regions", "gauge", "", "Regions that are traced", (), _regions),
    Family("targets", "gauge", "", "Targets by state", ("state",), _targets),
    Family("ready", "gauge", "", "1 when no call in bounds has to wait, else 0", (), _ready),
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
            known = isinstance(model, (Controls, RecordedFunction, Pool))
            if not known and model is not dynamo_graphs:
                raise ConfigError(
                    f"metrics: {name!r} is a {type(model).__name__}; give what pw.compile, "
                    "pw.load, pw.record or pw.Pool returned, or pw.dynamo_graphs itself"
                )
        self._refs = {name: weakref.ref(model) for name, model in models.items()}
        self._open = True

    def views(self) -> Iterator[tuple[str, View]]:
        """Those that are still there; none once closed."""
        for name, ref in self._refs.items():
            model = ref() if self._open else None
            if model is not None:
                yield from _views(name, model)

    def close(self) -> None:
        """Read none any more."""
        self._open = False
