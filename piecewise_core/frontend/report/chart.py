"""Ranges and sizes as bars over each dim, with the calls and the padding of each."""

from __future__ import annotations

import math
from dataclasses import dataclass

from piecewise_core.frontend.facts import Facts
from piecewise_core.frontend.status import TargetStatus

__all__ = ["Bar", "Row", "chart"]

_ROWS = 400
"""Targets that a page shows."""


@dataclass(frozen=True)
class Bar:
    """Where sizes lie between the bounds of one dim: a share of them, on a scale of logarithms."""

    left: float
    width: float


@dataclass(frozen=True)
class Row:
    """One target. ``calls``: as a share of the most. ``padding``: padded rows, of all its rows."""

    target: TargetStatus
    bars: tuple[Bar, ...]
    calls: float
    padding: float


def chart(facts: Facts) -> tuple[Row, ...]:
    """A row for each target; those without calls go first where there are too many."""
    kept = set(sorted(range(len(facts.targets)), key=lambda i: -facts.targets[i].hits)[:_ROWS])
    most = max((target.hits for target in facts.targets), default=0) or 1
    return tuple(
        _row(target, facts, most) for place, target in enumerate(facts.targets) if place in kept
    )


def _row(target: TargetStatus, facts: Facts, most: int) -> Row:
    rows = target.real_rows + target.padded_rows
    bars = tuple(_bar(*ends) for ends in zip(target.spans, facts.bounds, strict=False))
    return Row(target, bars, target.hits / most, target.padded_rows / rows if rows else 0.0)


def _bar(span: tuple[int, int], bounds: tuple[int, int]) -> Bar:
    begin, end = math.log2(max(bounds[0], 0) + 1), math.log2(bounds[1] + 2)
    whole = max(end - begin, 1e-9)
    left = (math.log2(max(span[0], bounds[0], 0) + 1) - begin) / whole
    right = (math.log2(min(span[1], bounds[1]) + 2) - begin) / whole
    return Bar(min(max(left, 0.0), 1.0), min(max(right - left, 0.004), 1.0))
