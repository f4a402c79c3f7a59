"""Captures after ``seal()``."""

from __future__ import annotations

from piecewise_core.capture.plans import CapturedPlans
from piecewise_core.errors import Sealed
from piecewise_core.ranges import Sizes

__all__ = ["refuse_new"]


def refuse_new(plans: CapturedPlans, sizes: Sizes, sealed: str | None) -> None:
    """Raise Sealed, or warn, where ``sizes`` would be captured for the first time after seal().

    ``sealed``: "error" or "warn"; None: they may.
    """
    if sealed is None or any(sizes in known for known in (plans, plans.owed, plans.dropped)):
        return
    text = (
        f"sizes {sizes} would be captured after seal(); call warmup() before seal(), or "
        "restore() after release()"
    )
    if sealed == "error":
        raise Sealed(text).having(sizes=str(sizes))
    plans.counters.missed("static graphs", sizes, text)
