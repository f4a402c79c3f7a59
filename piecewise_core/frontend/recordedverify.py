"""``check="verify"`` for recorded functions: a share of replayed calls also runs as written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch

from piecewise_core.config import Config
from piecewise_core.counters import Counters
from piecewise_core.frontend.comparing import NoRoom, Turns, compared, together
from piecewise_core.ranges import Sizes
from piecewise_core.ranks.ranks import Ranks

__all__ = ["RecordedVerifier"]

logger = logging.getLogger(__name__)

Key = tuple[Sizes, bool]
"""A captured size, and whether a call was padded to it."""


class RecordedVerifier:
    """Compares every so many replayed calls of a captured size with the function itself.

    ``wrong``: captured sizes that gave other results, exact or padded; they run as written.
    ``generators``: of devices.
    """

    def __init__(
        self, config: Config, counters: Counters, generators: Sequence[Any], ranks: Ranks
    ) -> None:
        self._ranks = ranks
        self._rate = config.verify_rate if config.check == "verify" else 0.0
        self._counters = counters
        self._generators = generators
        self._turns: dict[Key, Turns] = {}
        self.wrong: dict[Key, str] = {}

    def is_due(self, key: Key) -> bool:
        """Whether this call is one to compare."""
        if not self._rate:
            return False
        turns = self._turns.get(key)
        if turns is None:
            turns = self._turns[key] = Turns(self._rate)
        if turns.left == 0:
            turns.begin()
            return True
        turns.left -= 1
        return False

    def check(
        self,
        key: Key,
        as_written: Callable[[], Any],
        served: Callable[[], Any],
        memory: Sequence[torch.Tensor],
        reads: Sequence[torch.Tensor],
        made_at: Callable[[str], str],
    ) -> Any:
        """The result of a call that is served and compared.

        ``memory``: what it writes to. ``reads``: what nothing is to write to. ``made_at``: gives
        the line that makes a part of the result.
        """
        try:
            written = together(self._ranks, as_written)
            done = compared(written, served, memory, self._generators, reads=reads)
        except NoRoom as error:
            logger.info("calls of sizes %s are not verified now: %s", key[0], error)
            return served()
        done.agree(self._ranks)
        if done.how is None:
            self._counters.add("verified")
            return done.result
        if done.drew:
            logger.warning(
                "calls of sizes %s cannot be verified: they draw random numbers, and graphs draw "
                "others",
                key[0],
            )
            self._turns[key].end()
            return done.result
        self._counters.add("verified")
        self._counters.add("wrong")
        stage = "padded" if key[1] else "captured"
        line = made_at(done.path)
        self.wrong[key] = f"{done.how}, stage {stage}{f', from {line}' if line else ''}"
        self._counters.tell("wrong", f"replayed {key[0]}", key[0], 0, self.wrong[key])
        logger.error(
            "a call replayed at sizes %s gave other results than the function as written: %s. "
            "This call has the function's own results, and such calls run as written from now on",
            key[0],
            self.wrong[key],
        )
        done.leave()
        return done.wanted
