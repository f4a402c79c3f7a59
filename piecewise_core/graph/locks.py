"""A lock that traced code takes: what a first forward sets up under it is traced behind that.

Read in torch 2.11.0, 2.13.0 and 2.14.1: Dynamo's words for a lock that is entered or acquired.
"""

from __future__ import annotations

import re

from piecewise_core.errors import UnsupportedSideEffect

__all__ = ["LOCK", "refused_lock"]

LOCK = "a lock at "
"""How the place of a lock begins."""

_KINDS = "lock|RLock|Condition|Semaphore|BoundedSemaphore"
_TAKES = re.compile(
    rf"enter a `({_KINDS})` context manager|"
    rf"trace method `(?:acquire|__enter__)` of class `({_KINDS})`"
)


def refused_lock(told: str, where: str) -> UnsupportedSideEffect | None:
    """What to raise where a trace failed for a lock at ``where``; None for all else.

    ``told``: Dynamo's message. What a forward changes under the lock is not known: only tensors
    can be put back.
    """
    if not _TAKES.search(told):
        return None
    refusal = UnsupportedSideEffect(
        f"the model takes {LOCK}{where or 'a place unknown'}, which a traced program cannot "
        "repeat: move what it guards out of the compiled part, or use pw.record"
    )
    refusal.undo, refusal.writes = (_nothing,), True
    refusal.places = (f"{LOCK}{where}",)
    return refusal


def _nothing() -> None:
    pass
