"""The histogram of a model's calls."""

from __future__ import annotations

import math
from collections.abc import Sequence

from piecewise_core.config import Config
from piecewise_core.counters import Counters
from piecewise_core.planner.histogram import Histogram
from piecewise_core.ranges import Sizes

__all__ = ["traffic"]


def traffic(config: Config, counters: Counters, captured: Sequence[Sizes]) -> Histogram:
    """Calls by their sizes, and what memory the ``captured`` sizes, of all forms, take."""
    dims = tuple(dim.name for dim in config.dims)
    calls = {sizes: n for sizes, n in counters.by_sizes().items() if len(sizes) == len(dims)}
    if not captured:
        return Histogram(dims, calls)
    stats = counters.stats()
    rows = max(math.prod(sizes) for sizes in captured)
    per_row = stats.pool_bytes / rows if rows else None
    return Histogram(dims, calls, -(-stats.driver_bytes // len(captured)), per_row)
