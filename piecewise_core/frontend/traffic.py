"""The histogram of a model's calls."""

from __future__ import annotations

import math

from piecewise_core.capture.graphmemory import GraphMemory
from piecewise_core.config import Config
from piecewise_core.counters import Counters
from piecewise_core.planner.histogram import Histogram

__all__ = ["traffic"]


def traffic(config: Config, counters: Counters, memory: GraphMemory | None) -> Histogram:
    """Calls by their sizes, and what memory captured sizes take: of all forms, and of a pool."""
    dims = tuple(dim.name for dim in config.dims)
    calls = {sizes: n for sizes, n in counters.by_sizes().items() if len(sizes) == len(dims)}
    captured = [] if memory is None else memory.captured
    if memory is None or not captured:
        return Histogram(dims, calls)
    stats = memory.counters.stats()
    rows = max(math.prod(sizes) for sizes in captured)
    per_row = stats.pool_bytes / rows if rows else None
    return Histogram(dims, calls, -(-stats.driver_bytes // len(captured)), per_row)
