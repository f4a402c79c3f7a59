"""Whether calls are still of the sizes that are captured: advice for who reads ``status()``."""

from __future__ import annotations

import operator
from collections.abc import Iterator

from piecewise_core.config import Config
from piecewise_core.counters import Counters
from piecewise_core.planner.histogram import Histogram
from piecewise_core.planner.planning import plan
from piecewise_core.ranges import Sizes
from piecewise_core.tally import rounded_up

__all__ = ["Drift"]

_CALLS = 1000
"""Calls that are looked at together, at least."""

_SHARE = 0.1
"""Of their rows what padding adds and other sizes would not, or of the calls: worth a word."""


class Drift:
    """Compares, each time that there were enough calls since, what padding adds with what it must.

    ``advice``: what was found last.
    """

    def __init__(self, config: Config, counters: Counters) -> None:
        self._counters = counters
        self._captures = config.captures if config.padding == "capture_sizes" else ()
        self._dims = tuple(dim.name for dim in config.dims)
        self._calls: dict[Sizes, int] = {}
        self._added = 0
        self.advice: tuple[str, ...] = ()

    def look(self) -> tuple[str, ...]:
        """The advice by now; an event tells when there is some for the first time."""
        if not self._captures or not self._dims:
            return ()
        calls, added = self._counters.by_sizes(), self._counters.stats().padded_rows
        fresh = {
            s: n - self._calls.get(s, 0) for s, n in calls.items() if len(s) == len(self._dims)
        }
        fresh = {sizes: n for sizes, n in fresh.items() if n > 0 and all(sizes)}
        if sum(fresh.values()) < _CALLS:
            return self.advice
        before, more = self.advice, added - self._added
        self._calls, self._added = calls, added
        self.advice = tuple(self._found(fresh, more))
        if self.advice and not before:
            self._counters.tell("drifted", "capture sizes", why="; ".join(self.advice))
        return self.advice

    def _found(self, calls: dict[Sizes, int], added: int) -> Iterator[str]:
        total = sum(calls.values())
        larger = sum(n for sizes, n in calls.items() if not self._is_held(sizes))
        if larger > _SHARE * total:
            yield (
                f"{larger / total:.0%} of the last {total} calls are larger than every captured "
                "size and run without graphs; capture larger sizes"
            )
        few: dict[Sizes, int] = {}
        for sizes, n in calls.items():
            at = rounded_up(sizes)
            few[at] = few.get(at, 0) + n
        rows = Histogram(self._dims, calls).rows
        best = plan(Histogram(self._dims, few), max_graphs=len(self._captures), max_padding=0)
        # Of rounded sizes: what rounding adds is padding too.
        least = (1 + best.expected_padding) * best.rows / rows - 1
        if added / rows - least > _SHARE:
            yield (
                f"padding added {added / rows:.0%} to the rows of the last {total} calls, and "
                f"as many other capture sizes would add {least:.0%}; pw.plan(compiled.histogram()) "
                "says which"
            )

    def _is_held(self, sizes: Sizes) -> bool:
        return any(all(map(operator.le, sizes, captured)) for captured in self._captures)
