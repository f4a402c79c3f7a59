"""Time for leases and back-off, so that a simulation can have its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

__all__ = ["Clock", "RealClock"]


class Clock(Protocol):
    """``now``: seconds that only go forward. No clock is compared with another machine's."""

    def now(self) -> float: ...

    def sleep(self, seconds: float) -> None: ...

    def every(self, seconds: float, step: Callable[[], bool]) -> Callable[[], None]:
        """Have ``step`` called again and again until it gives False; the result ends it."""
        ...


class RealClock:
    """This machine's, and a thread for each ``every``."""

    def now(self) -> float:
        """Seconds of a clock that nobody sets."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)

    def every(self, seconds: float, step: Callable[[], bool]) -> Callable[[], None]:
        """Call ``step`` on a thread of its own, which ends with the process."""
        end = threading.Event()

        def go_on() -> None:
            while not end.wait(seconds) and step():
                pass

        threading.Thread(target=go_on, name="piecewise-lease", daemon=True).start()
        return end.set
