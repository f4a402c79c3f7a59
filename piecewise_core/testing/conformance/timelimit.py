"""A limit to how long one test may take: what hangs is a failure that shows where it hangs."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

__all__ = ["TookTooLong", "time_limit"]

_AGAIN = 5.0
"""Seconds until it is said again, to code that caught it and goes on."""


class TookTooLong(Exception):
    """A test did not end in time."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TookTooLong in this thread after ``seconds``, where it is Python that runs.

    Native code that never comes back to Python is not interrupted. Nothing is limited outside of
    the main thread, and where the system has no timers.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() != threading.main_thread():
        yield
        return

    def late(number: int, frame: Any) -> None:
        raise TookTooLong(f"no answer within {seconds:g} s; the trace shows where it stood")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
