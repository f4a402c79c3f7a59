"""What a store does besides handing out entries, for whoever counts it and says it."""

from __future__ import annotations

import logging
from collections.abc import Callable

from piecewise_core.counters import Counters

__all__ = ["Ledger"]

logger = logging.getLogger(__name__)


class Ledger:
    """``refused``: key -> why what lies there was not taken, by this process.

    ``counters``: of the model that the store is for; set once there are some. ``state``: says what
    the second level does, "" where there is none.
    """

    def __init__(self) -> None:
        self.refused: dict[str, str] = {}
        self.counters: Counters | None = None
        self.state: Callable[[], str] = str

    def refuse(self, key: str, where: str, why: str) -> None:
        """An entry was refused, for its signature."""
        if self.refused.get(key) != why:
            logger.warning("entry %s of %s is not taken: %s", key[:12], where, why)
        self.refused[key] = why
        self.count("cache_refused", 1)
        if self.counters is not None:
            self.counters.tell("refused", f"entry {key[:12]}", why=why)

    def count(self, name: str, amount: int) -> None:
        """Add ``amount`` to counter ``name``."""
        if self.counters is not None:
            self.counters.add(name, amount)
