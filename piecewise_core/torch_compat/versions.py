"""The versions of torch that piecewise is tested with."""

from __future__ import annotations

__all__ = ["TESTED", "tested_range"]

TESTED = ("2.11", "2.13")
"""The oldest and the newest, both inclusive."""


def tested_range() -> str:
    """``2.11 to 2.13``."""
    return " to ".join(TESTED)
