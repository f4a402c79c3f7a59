"""Tracing and compiling beside calls: what one call needs built holds up no call that is ready.

Locks, in the order in which a thread takes them; any may be left out.

1. A call lock, of one model (``Shared.lock``, of all its forms): runs one call at a time, and
   guards what calls go by: tables, bound tensors, captured plans, the memory of static graphs.
2. The building lock, of the process (``compile_lock``, which is Dynamo's own): neither tracing nor
   Inductor is safe in two threads. Held for seconds, or minutes.
3. A store's locks, of one entry or one directory.

Locks of counters and the like are leaves: nothing is waited for inside of them.

Who holds the building lock waits for no call lock. So what was built is published behind the
building lock, under the call lock, and only if nothing changed meanwhile; else it is built again.
A call that finds something missing raises Unready, which takes it out of its call lock; it builds,
and looks again. Another thread that misses the same waits for that, holding nothing.

A call inside of another call cannot let go of the outer one's lock. It builds with that held, and
waits for nobody's publication: whoever publishes may need that very lock. Where two models call
each other, each from a thread of its own, one of the inner calls runs as written (``calllock``).

A capture needs the call lock, for the memory, and wants no compilation beside it, which may use the
device in ways that break captures. It never waits for one with the call lock held.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Hashable, Iterator
from typing import Any

from piecewise_core.torch_compat.dynamo import compile_lock

__all__ = ["Builds", "Unready", "between_builds", "no_build"]


class Unready(Exception):
    """Something that a call needs is not built. Never reaches a user.

    ``key``: of equal ones, one is built. ``build``: call it without the call lock.
    """

    def __init__(self, key: Hashable, build: Callable[[], object]) -> None:
        super().__init__(key)
        self.key = key
        self.build = build


class Builds:
    """What is being built for one model. ``lock``: its call lock, reentrant.

    ``working()``: a context to build in.
    """

    def __init__(
        self, lock: threading.RLock, working: Callable[[], Any] = contextlib.nullcontext
    ) -> None:
        self._working = working
        self._changed = threading.Condition(lock)
        # By whom: a forked child has what its parent's other threads built, and not them.
        self._under_way: dict[Hashable, threading.Thread] = {}

    def have(self, unready: Unready) -> None:
        """Build it, or wait for another thread that does; look again afterwards.

        Raises what building raises, in the thread that builds.
        """
        inside = self._inside_a_call()
        with self._changed:
            mine = not self._is_under_way(unready.key)
            if not mine and not inside:
                self._changed.wait_for(lambda: not self._is_under_way(unready.key))
                return
            if mine:
                self._under_way[unready.key] = threading.current_thread()
        try:
            with self._working():
                unready.build()
        finally:
            with self._changed:
                if mine:
                    self._under_way.pop(unready.key, None)
                self._changed.notify_all()

    def _is_under_way(self, key: Hashable) -> bool:
        builder = self._under_way.get(key)
        return builder is not None and builder.is_alive()

    def _inside_a_call(self) -> bool:
        """Whether this thread holds the call lock."""
        try:
            self._changed.notify(0)
        except RuntimeError:
            return False
        return True


@contextlib.contextmanager
def no_build() -> Iterator[None]:
    """Inside of a call lock: hold the building lock. Raises Unready where another thread has it."""
    if not compile_lock.acquire(blocking=False):
        raise Unready("no build", _wait)
    try:
        yield
    finally:
        compile_lock.release()


def _wait() -> None:
    with compile_lock:
        pass


@contextlib.contextmanager
def between_builds(lock: threading.RLock) -> Iterator[None]:
    """Hold a call lock and the building lock; wait for the latter without the former."""
    while True:
        _wait()
        lock.acquire()
        if compile_lock.acquire(blocking=False):
            break
        lock.release()
    try:
        yield
    finally:
        compile_lock.release()
        lock.release()
