"""What a store does besides handing out entries, for whoever counts it and says it."""

from __future__ import annotations

import logging
from collections.abc import Callable

__all__ = ["Ledger"]

logger = logging.getLogger(__name__)


class Ledger:
    """``refused``: key -> why what lies there was not taken, by this process.

    ``count``: called with a counter of Stats and what to add; set by whoever counts. ``state``:
    says what the second level does, "" where there is none.
    """

    def __init__(self) -> None:
        self.refused: dict[str, str] = {}
        self.count: Callable[[str, int], object] = _nowhere
        self.state: Callable[[], str] = str

    def refuse(self, key: str, where: str, why: str) -> None:
        """An entry was refused, for its signature."""
        if self.refused.get(key) != why:
            logger.warning("entry %s of %s is not taken: %s", key[:12], where, why)
        self.refused[key] = why
        self.count("cache_refused", 1)


def _nowhere(name: str, amount: int) -> None:
    """Where nobody counts."""
