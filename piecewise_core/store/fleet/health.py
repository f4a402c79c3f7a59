"""Whether the second level answers, and whether asking it is worth the time."""

from __future__ import annotations

import logging
import random
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

from piecewise_core.errors import StoreError
from piecewise_core.store.fleet.clocks import Clock
from piecewise_core.store.fleet.objects import Object, Objects, ReadOnly

__all__ = ["Guarded", "Health", "Unanswered", "Worth", "within"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_PAUSES = (0.1, 0.4, 1.2)
"""Seconds before an operation that failed is tried again."""
_FIRST_DOWN, _LONGEST_DOWN = 30.0, 600.0
_KNOWN, _UNKNOWN = 60.0, 10.0
"""Seconds that an operation may take: where the last one worked, and else."""
_LOOKED_AT, _ENOUGH = 32, 8
_TOO_MUCH = 30.0
"""Seconds lost by asking after which nobody waits for _ENOUGH pieces."""


class Unanswered(StoreError):
    """The level does not answer: nobody sees this but the level itself, and commands."""


class Health:
    """Runs operations; after one that failed for good nothing is asked for a while.

    ``where``: of the level, for messages. ``limited``: whether an operation that hangs is left
    alone, on its thread.
    """

    def __init__(
        self, where: str, clock: Clock, chaos: random.Random | None = None, *, limited: bool = True
    ) -> None:
        self._where = where
        self._clock = clock
        self._chaos = chaos or random.Random()
        self._limited = limited
        self._known = self._said = self.read_only = False
        self._down = self._until = 0.0
        self.why = ""

    def run(self, work: Callable[[], T]) -> T:
        """What ``work`` gives. Raises Unanswered, and ReadOnly."""
        if self._clock.now() < self._until:
            raise Unanswered(self.why)
        for pause in (*_PAUSES, None):
            begun = self._clock.now()
            try:
                found = (
                    within(_KNOWN if self._known else _UNKNOWN, work) if self._limited else work()
                )
            except ReadOnly as error:
                self.read_only = True
                logger.info("%s takes nothing: %s", self._where, error)
                raise
            except Exception as error:
                # One that hangs, and the first after a time of silence, is not tried again.
                hung = self._clock.now() - begun > _UNKNOWN / 2
                if pause is None or self._down or hung:
                    self._failed(error)
                    raise Unanswered(self.why) from error
                self._clock.sleep(pause * self._chaos.uniform(0.5, 1.5))
            else:
                self._known, self._down, self.why = True, 0.0, ""
                return found
        raise Unanswered(self.why)

    def _failed(self, error: Exception) -> None:
        self._known = False
        self._down = min(max(2 * self._down, _FIRST_DOWN), _LONGEST_DOWN)
        seconds = self._down * self._chaos.uniform(0.75, 1.25)
        self._until = self._clock.now() + seconds
        self.why = f"{type(error).__name__}: {error}"[:200]
        text = f"the second level of the compile store, {self._where}, does not answer ({self.why})"
        if self._said:
            logger.info("%s; it is asked again in %.0f s", text, seconds)
            return
        self._said = True
        warnings.warn(
            f"{text}; what it would have is compiled here. It is asked again in {seconds:.0f} s. "
            "Check cache_url, credentials and network, or set cache_url to None",
            RuntimeWarning,
            stacklevel=2,
        )


class Guarded:
    """``objects``, each operation run by ``health``."""

    def __init__(self, objects: Objects, health: Health) -> None:
        self._objects = objects
        self._run = health.run

    def where(self) -> str:
        """The place."""
        return self._objects.where()

    def read(self, name: str, limit: int) -> bytes | None:
        """As Objects has it."""
        return self._run(partial(self._objects.read, name, limit))

    def create(self, name: str, data: bytes) -> bool:
        """As Objects has it."""
        return self._run(partial(self._objects.create, name, data))

    def write(self, name: str, data: bytes) -> None:
        """As Objects has it."""
        self._run(partial(self._objects.write, name, data))

    def remove(self, name: str) -> None:
        """As Objects has it."""
        self._run(partial(self._objects.remove, name))

    def listed(self, folder: str) -> Iterator[Object]:
        """As Objects has it, all at once."""
        return iter(self._run(lambda: list(self._objects.listed(folder))))


class Worth:
    """Compares what asking costs with what compiling does, over the last keys."""

    def __init__(self) -> None:
        self._asked: dict[str, float] = {}
        self._pairs: deque[tuple[float, float]] = deque(maxlen=_LOOKED_AT)
        self._guard = threading.Lock()
        self.why = ""

    def asked(self, key: str, seconds: float) -> None:
        """``key`` was asked for, in vain so far."""
        with self._guard:
            self._asked[key] = self._asked.get(key, 0.0) + seconds

    def settled(self, key: str, seconds: float) -> None:
        """What ``key`` stands for takes ``seconds`` to compile: here, or where it was made."""
        with self._guard:
            price = self._asked.pop(key, None)
            if price is None:
                return
            self._pairs.append((price, seconds))
            prices, gains = map(sum, zip(*self._pairs, strict=True))
            lost = prices - gains
            if lost > _TOO_MUCH or (lost >= 0 and len(self._pairs) >= _ENOUGH):
                self.why = (
                    f"asking for {len(self._pairs)} pieces took {prices:.1f} s, and compiling them "
                    f"takes {gains:.1f} s"
                )


def within(seconds: float, work: Callable[[], T]) -> T:
    """``work()``, on a thread of its own. Raises StoreError after ``seconds``: it may go on."""
    found: list[T] = []
    wrong: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:
            wrong.append(error)
        done.set()

    threading.Thread(target=run, name="piecewise-fleet", daemon=True).start()
    if not done.wait(seconds):
        raise StoreError(f"no answer within {seconds:.0f} s")
    if wrong:
        raise wrong[0]
    return found[0]
