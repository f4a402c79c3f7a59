"""What happened so far: per compiled model, and process-wide as ``pw.counters``."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

__all__ = ["CALL_KINDS", "Counters", "Stats", "process_counters"]

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
    pool_bytes: int = 0
    driver_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The counters as a plain dict."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    def __add__(self, other: Stats) -> Stats:
        mine, theirs = self.to_dict(), other.to_dict()
        calls = {k: mine["calls"][k] + theirs["calls"][k] for k in CALL_KINDS}
        return Stats(
            **{n: calls if n == "calls" else mine[n] + theirs[n] for n in mine}
        )


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


class Counters:
    """Adds up what happens; threads may add at once."""

    def __init__(self, parent: Counters | None = None) -> None:
        self._parent = parent
        self._lock = threading.Lock()
        self._values: dict[str, int] = {}

    def add(self, name: str, amount: int = 1) -> None:
        """Add ``amount`` to counter ``name``, here and in the parent."""
        with self._lock:
            self._values[name] = self._values.get(name, 0) + amount
        if self._parent is not None:
            self._parent.add(name, amount)

    def stats(self, **live: Any) -> Stats:
        """The totals; ``live`` holds those that are counted elsewhere."""
        calls = {k: self._values.get(f"calls.{k}", 0) for k in CALL_KINDS}
        known = {f.name for f in fields(Stats)}
        plain = {n: v for n, v in self._values.items() if n in known}
        return Stats(**{**plain, "calls": calls, **live})


process_counters = Counters()
"""Totals over every model of this process."""
