"""What happened so far: per compiled model, and process-wide as ``pw.counters``."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from piecewise_core.afterfork import after_fork
from piecewise_core.events import KEPT_EVENTS, Event, EventKind, Events, log
from piecewise_core.ranges import Box, Sizes
from piecewise_core.tally import Books, Counted, Tallies

__all__ = ["CALL_KINDS", "Counters", "ProcessCounters", "Stats", "process_counters"]

logger = logging.getLogger(__name__)

CALL_KINDS = ("replayed", "compiled_size", "compiled_range", "general", "eager")


def _no_calls() -> dict[str, int]:
    return dict.fromkeys(CALL_KINDS, 0)


@dataclass(frozen=True)
class Stats:
    """Totals over all regions of a model, or over all models of the process.

    ``graphs``: regions traced. ``pieces``: compilable and splitting. ``compilable_pieces``.
    ``unique_pieces``: distinct compilable ones. ``compilations``: compiler runs. ``dedup_hits``:
    pieces served by another piece's artifact. ``cache_hits``, ``cache_misses``: of the compile
    store. ``cache_refused``: entries not taken, for their signature. ``fleet_hits``: entries
    fetched from the second level, of ``fleet_bytes``, which saved ``fleet_saved_ms``;
    ``fleet_published``: put there. ``captures``: static graphs.
    ``calls``: by kind of target; they sum to the calls made. ``padded_rows``: rows added to reach a
    capture size. ``restrided``: inputs copied to the traced layout. ``pool_bytes``: in the graph
    pool. ``driver_bytes``: graph memory outside it. ``executables``: what launches the graphs.
    ``retraces``: times that traces, or recordings, were made anew since Python state had changed.
    ``declined``: pieces and ranges of which code does not serve every size: the compiler declined
    the piece, or fixed a size. ``verified``: calls that also ran as written. ``wrong``: targets
    found to give other results.
    """

    graphs: int = 0
    pieces: int = 0
    compilable_pieces: int = 0
    unique_pieces: int = 0
    compilations: int = 0
    dedup_hits: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    cache_refused: int = 0
    fleet_hits: int = 0
    fleet_bytes: int = 0
    fleet_published: int = 0
    fleet_saved_ms: int = 0
    captures: int = 0
    calls: Mapping[str, int] = field(default_factory=_no_calls)
    padded_rows: int = 0
    restrided: int = 0
    relaid: int = 0
    pool_bytes: int = 0
    driver_bytes: int = 0
    executables: int = 0
    retraces: int = 0
    declined: int = 0
    verified: int = 0
    wrong: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The counters as a plain dict."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    def __add__(self, other: Stats) -> Stats:
        mine, theirs = self.to_dict(), other.to_dict()
        calls = {k: mine["calls"][k] + theirs["calls"][k] for k in CALL_KINDS}
        numbers = {n: mine[n] + theirs[n] for n in mine if n != "calls"}
        return Stats(**numbers, calls=calls)


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


class Counters:
    """Adds up what happens to one model; also reported to the process-wide totals.

    Calls are written to directly: to a tally by their sizes, and to ``unsized`` by kind where their
    sizes are not known. ``on_event``: told of events. ``model``: its name in these.
    """

    def __init__(self, on_event: Callable[[Event], object] | None = None, model: str = "") -> None:
        self._model = model
        self._lock = after_fork.frees(threading.Lock())
        self._values: dict[str, int] = {}
        self._happened: dict[EventKind, tuple[int, float]] = {}
        self.unsized: dict[str, int] = _no_calls()
        self._books = Books()
        self.events = None if on_event is None else Events(on_event)
        self._history: deque[Event] = deque(maxlen=KEPT_EVENTS)

    def tell(
        self, kind: EventKind, what: str = "", sizes: object = "", seconds: float = 0, why: str = ""
    ) -> None:
        """Count an event, and note it, for who wants to know and for ``explain()``."""
        event = Event(kind, what, str(sizes), seconds, why, time.time(), self._model)
        log(event)
        with self._lock:
            times, spent = self._happened.get(kind, (0, 0.0))
            self._happened[kind] = times + 1, spent + seconds
            self._history.append(event)
        if self.events is not None:
            self.events.waiting.append(event)

    def traced(self, box: object, seconds: float) -> None:
        """A region was traced."""
        self.add("graphs")
        self.tell("traced", "region", box, seconds)

    def history(self) -> tuple[Event, ...]:
        """The last events, the oldest first."""
        with self._lock:
            return tuple(self._history)

    def retraced(self, why: str) -> None:
        """Traces, or recordings, are made anew."""
        self.add("retraces")
        self.tell("retraced", why=why)

    def missed(self, what: str, sizes: object, text: str) -> None:
        """Something is built after ``seal("warn")``; said in the log too."""
        self.tell("missed", what, sizes, why=text)
        logger.warning("%s", text)

    def deliver(self, inside: Callable[[], bool] = lambda: False) -> None:
        """Hand out the events so far, unless this is ``inside`` of a lock."""
        if self.events is not None and self.events.waiting and not inside():
            self.events.deliver()

    @property
    def calls(self) -> Mapping[str, int]:
        """Calls by kind, so far."""
        return self.stats().calls

    def tallies(self) -> Tallies:
        """Where one more owner counts its calls, target by target; they stay when it is gone."""
        return self._books.open()

    def add(self, name: str, amount: int = 1) -> None:
        """Add ``amount`` to counter ``name``; threads may add at once."""
        with self._lock:
            self._values[name] = self._values.get(name, 0) + amount

    def set(self, name: str, value: int) -> None:
        """Set counter ``name``, for amounts that go up and down."""
        with self._lock:
            self._values[name] = value

    def stats(self) -> Stats:
        """The totals so far."""
        return _stats(self._values, self.unsized, self._books)

    def happened(self) -> dict[EventKind, tuple[int, float]]:
        """How often each kind of event happened, and the seconds that it took in all."""
        with self._lock:
            return dict(self._happened)

    def by_target(self) -> dict[tuple[str, Sizes | Box | None], Counted]:
        """Calls by kind and the sizes that their target holds; None where those are not known."""
        found = self._books.by_target()
        for kind, calls in self.unsized.items():
            found[kind, None] = found.get((kind, None), Counted()).plus(Counted(calls))
        return found

    def by_sizes(self) -> dict[Sizes, int]:
        """How many calls there were of which sizes, as far as their sizes were looked at."""
        found: dict[Sizes, int] = {}
        with self._books.lock:
            for tally in self._books.tallies():
                for sizes, counted in tally.by_sizes().items():
                    found[sizes] = found.get(sizes, 0) + counted.calls
        return {sizes: found[sizes] for sizes in sorted(found) if found[sizes] > 0}


def _stats(values: Mapping[str, int], calls: Mapping[str, int], books: Books) -> Stats:
    known = {f.name for f in fields(Stats)} - {"calls"}
    numbers, by_kind = {n: v for n, v in values.items() if n in known}, dict(calls)
    padded = 0
    with books.lock:
        for tally in books.tallies():
            total = tally.total()
            by_kind[tally.kind] += total.calls
            padded += total.added
    return Stats(**{**numbers, "padded_rows": padded}, calls=by_kind)


class ProcessCounters:
    """Totals over every model of the process, those that are gone included.

    Every counter of Stats reads as an attribute: ``pw.counters.compilations``.
    """

    def __init__(self) -> None:
        self._lock = after_fork.frees(threading.Lock())
        self._live: weakref.WeakSet[Counters] = weakref.WeakSet()
        # Appended to when they are collected, in any thread, whatever lock that holds.
        self._gone: list[tuple[Mapping[str, int], Mapping[str, int], Books]] = []
        self._total = Stats()

    def watch(self, counters: Counters) -> None:
        """Include ``counters`` from now on, and what it counted when it goes."""
        self._settle()
        self._live.add(counters)
        weakref.finalize(
            counters, self._gone.append, (counters._values, counters.unsized, counters._books)
        )

    def stats(self) -> Stats:
        """The totals so far."""
        total = self._settle()
        for counters in list(self._live):
            total = total + counters.stats()
        return total

    def _settle(self) -> Stats:
        """Add up those that are gone."""
        with self._lock:
            while self._gone:
                self._total += _stats(*self._gone.pop())
            return self._total

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.stats(), name)


process_counters = ProcessCounters()
"""Totals over every model of this process."""
