"""A model's call lock, which waits for no thread that waits, in the end, for this one.

Two models that call each other, each from a thread of its own, would wait for each other's locks.
The last thread to wait sees the circle. A lock that is free costs what a plain one does: who holds
what is asked only where a thread has to wait.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from _thread import RLock
from collections.abc import Callable
from threading import get_ident
from typing import Any

from piecewise_core.afterfork import after_fork
from piecewise_core.counters import Counters
from piecewise_core.errors import Interlocked
from piecewise_core.frontend.refusals import refuse_grad
from piecewise_core.graph.memory import values

__all__ = ["CallLock", "as_written", "is_mine", "served_beside"]

logger = logging.getLogger(__name__)


class CallLock(RLock):  # type: ignore[misc]  # final for mypy only
    """Reentrant. Entering it raises Interlocked where waiting would never end."""

    def __init__(self) -> None:
        super().__init__()
        _waits.known.add(self)

    def __enter__(self, blocking: bool = True, timeout: float = -1) -> bool:
        return self.acquire(False) or _waits.wait_for(self)


def served_beside(
    error: Interlocked,
    lock: CallLock,
    fn: Callable[..., Any],
    counters: Counters,
    args: Any,
    kwargs: Any,
) -> Any:
    """Serve a call as written, without ``lock``, for which it would wait for ever.

    Raises ``error`` where that is about another lock.
    """
    if error.lock is not lock:
        raise error
    return as_written(str(error), fn, counters, args, kwargs)


def as_written(why: str, fn: Callable[..., Any], counters: Counters, args: Any, kwargs: Any) -> Any:
    """Serve one call by the function itself."""
    logger.info("%s; this call runs as written", why)
    refuse_grad(fn, values((args, kwargs)))
    counters.unsized["eager"] += 1
    return fn(*args, **kwargs)


class _Waits:
    """``known``: all call locks. What threads wait for, and what each of them holds meanwhile."""

    def __init__(self) -> None:
        self.known: weakref.WeakSet[CallLock] = weakref.WeakSet()
        self._mutex = after_fork.frees(threading.Lock())
        self._process = os.getpid()
        self._waiting: dict[int, tuple[CallLock, frozenset[int]]] = {}

    def wait_for(self, lock: CallLock) -> bool:
        me = get_ident()
        with self._mutex:
            if self._process != os.getpid():  # a forked process, in which no other thread waits
                self._process = os.getpid()
                self._waiting.clear()
            held = frozenset(id(one) for one in list(self.known) if is_mine(one))
            if self._comes_back(lock, held):
                error = Interlocked(
                    "a model is called from inside of a call of another, while a second thread "
                    "does the same the other way round: each would wait for the other for ever. "
                    "Call the models in one order in all threads, or from one thread"
                )
                error.lock = lock
                raise error
            self._waiting[me] = lock, held
        try:
            return lock.acquire()
        finally:
            with self._mutex:
                del self._waiting[me]

    def _comes_back(self, lock: CallLock, held: frozenset[int]) -> bool:
        """Whether who holds ``lock`` waits, over however many threads, for one of ``held``."""
        wanted, seen = {id(lock)}, set[int]()
        while wanted - seen and not wanted & held:
            seen |= wanted
            wanted |= {id(want) for want, holds in self._waiting.values() if holds & seen}
        return bool(wanted & held)


def is_mine(lock: CallLock) -> bool:
    """Whether this thread holds ``lock``."""
    try:
        threading.Condition(lock).notify(0)
    except RuntimeError:
        return False
    return True


_waits = _Waits()
"""One for the process, as threads are."""
