"""What happened so far: per compiled model, and process-wide as ``pw.counters``."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from piecewise_core.afterfork import after_fork

__all__ = ["CALL_KINDS", "Counters", "ProcessCounters", "Stats", "process_counters"]

CALL_KINDS = ("replayed", "compiled_size", "compiled_range", "general", "eager")


def _no_calls() -> dict[str, int]:
    return dict.fromkeys(CALL_KINDS, 0)


@dataclass(frozen=True)
class Stats:
    """Totals over all regions of a model, or over all models of the process.

    ``graphs``: regions traced. ``pieces``: compilable and splitting. ``compilable_pieces``.
    ``unique_pieces``: distinct compilable ones. ``compilations``: compiler runs. ``dedup_hits``:
    pieces served by another piece's artifact. ``cache_hits``, ``cache_misses``: of the compile
    store. ``captures``: static graphs. ``calls``: by kind of target; they sum to the calls made.
    ``padded_rows``: rows added to reach a capture size. ``restrided``: inputs copied to the
    traced layout. ``pool_bytes``: in the graph pool. ``driver_bytes``: graph memory outside it.
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
    captures: int = 0
    calls: Mapping[str, int] = field(default_factory=_no_calls)
    padded_rows: int = 0
    restrided: int = 0
    relaid: int = 0
    pool_bytes: int = 0
    driver_bytes: int = 0
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

    ``calls``: calls by kind; the hot path writes to it directly.
    """

    def __init__(self) -> None:
        self._lock = after_fork.frees(threading.Lock())
        self._values: dict[str, int] = {}
        self.calls: dict[str, int] = _no_calls()

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
        return _stats(self._values, self.calls)


def _stats(values: Mapping[str, int], calls: Mapping[str, int]) -> Stats:
    known = {f.name for f in fields(Stats)} - {"calls"}
    return Stats(**{n: v for n, v in values.items() if n in known}, calls=dict(calls))


class ProcessCounters:
    """Totals over every model of the process, those that are gone included.

    Every counter of Stats reads as an attribute: ``pw.counters.compilations``.
    """

    def __init__(self) -> None:
        self._lock = after_fork.frees(threading.Lock())
        self._live: weakref.WeakSet[Counters] = weakref.WeakSet()
        self._gone = Stats()

    def watch(self, counters: Counters) -> None:
        """Include ``counters`` from now on, and what it counted when it goes."""
        self._live.add(counters)
        weakref.finalize(counters, self._absorb, counters._values, counters.calls)

    def _absorb(self, values: Mapping[str, int], calls: Mapping[str, int]) -> None:
        with self._lock:
            self._gone = self._gone + _stats(values, calls)

    def stats(self) -> Stats:
        """The totals so far."""
        total = self._gone
        for counters in list(self._live):
            total = total + counters.stats()
        return total

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.stats(), name)


process_counters = ProcessCounters()
"""Totals over every model of this process."""
