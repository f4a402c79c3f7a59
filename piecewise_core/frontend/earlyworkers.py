"""Worker processes that start while a model is traced: what they import is not waited for later."""

from __future__ import annotations

import threading
import weakref

from piecewise_core.compile.pool import WorkerPool

__all__ = ["EarlyWorkers"]

UNUSED = 300.0
"""Seconds after which workers end that nobody took: the trace failed, or the store had it all."""


class EarlyWorkers:
    """At most one pool of them, until somebody takes it over. They end with this object, too."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: WorkerPool | None = None

    def __bool__(self) -> bool:
        return self._pool is not None

    def keep(self, pool: WorkerPool, seconds: float = UNUSED) -> None:
        """Keep ``pool``, whose processes are starting, for ``seconds``."""
        self.end()
        self._pool = pool
        # Neither may keep the other: the timer must not hold a model that is gone.
        timer = threading.Timer(seconds, _expire, (weakref.ref(self), weakref.ref(pool)))
        timer.daemon = True
        timer.start()

    def take(self) -> WorkerPool | None:
        """The pool, which is the caller's from now on; None where there is none."""
        with self._lock:
            pool, self._pool = self._pool, None
        return pool

    def end(self) -> None:
        """End what nobody took."""
        pool = self.take()
        if pool is not None:
            pool.close()

    def expire(self, pool: WorkerPool | None) -> None:
        """End ``pool`` if it is still there."""
        with self._lock:
            if pool is None or self._pool is not pool:
                return
            self._pool = None
        pool.close()


def _expire(owner: weakref.ref[EarlyWorkers], pool: weakref.ref[WorkerPool]) -> None:
    early = owner()
    if early is not None:
        early.expire(pool())
