"""What a forked child has to put right: it has one thread, and all that the others left undone.

A lock that another thread held is held by nobody, and would be waited for in vain. What that thread
had set for the whole process would never be set back.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeVar

__all__ = ["after_fork"]

logger = logging.getLogger(__name__)

Lock = TypeVar("Lock")


class AfterFork:
    """Frees locks in a forked child, and leaves contexts that threads of its parent entered."""

    def __init__(self) -> None:
        self._locks: weakref.WeakKeyDictionary[Any, list[Any]] = weakref.WeakKeyDictionary()
        self._entered: list[tuple[int, AbstractContextManager[Any]]] = []
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._in_child)

    def frees(self, lock: Lock, tell: Callable[[bool], object] | None = None) -> Lock:
        """Have ``lock`` free in children, unless the thread that forks holds it; returns it.

        ``tell``: a method that is called in each child with whether another thread held the lock;
        what that guards may be half changed then. Its object may go before. Who shares a lock
        registers it each with its own, and is told in that order.
        """
        told = self._locks.setdefault(lock, [])
        if tell is not None:
            told.append(weakref.WeakMethod(tell))
        return lock

    @contextlib.contextmanager
    def leaves(self, context: AbstractContextManager[Any]) -> Iterator[None]:
        """Enter ``context``, which sets something for the whole process; children set it back."""
        entry = threading.get_ident(), context
        with context:
            self._entered.append(entry)
            try:
                yield
            finally:
                self._entered.remove(entry)

    def _in_child(self) -> None:
        mine = threading.get_ident()
        for entry in reversed(self._entered):
            if entry[0] != mine:
                self._leave(entry[1])
        self._entered = [entry for entry in self._entered if entry[0] == mine]
        lost = {id(lock) for lock in list(self._locks) if _free(lock)}
        # Only now: what is reported may take other locks.
        for lock, told in list(self._locks.items()):
            for method in filter(None, [tell() for tell in told]):
                method(id(lock) in lost)

    def _leave(self, context: AbstractContextManager[Any]) -> None:
        try:
            context.__exit__(None, None, None)
        except Exception as error:  # it was being entered or left: nobody knows how far
            logger.warning("a forked process keeps a setting of a thread that it lacks: %s", error)


def _free(lock: Any) -> bool:
    """Make ``lock`` free unless this thread has it; whether another thread had it."""
    if lock.acquire(blocking=False):
        lock.release()
        return False
    # As Python's own threading does for its locks; the object has to stay, others refer to it.
    lock._at_fork_reinit()
    return True


after_fork = AfterFork()
"""One for the process: only it is told of forks, and what is registered for that never goes."""
