"""Signs of life of a rank that traces, compiles or captures: others wait for it longer."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from piecewise_core.torch_compat.collectives import default_group, default_store

__all__ = ["Busy", "beats"]


def _key(rank: int) -> str:
    return f"piecewise/busy/{rank}"


def beats(store: Any, rank: int) -> int:
    """How many signs of life ``rank`` has given."""
    return int(store.add(_key(rank), 0))


class Busy:
    """Gives a sign every ``interval`` seconds while ``working`` and not ``waiting``.

    One that waits for others gives none: two that wait for each other would wait for ever.
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._waiting = 0
        self._store: Any = None
        self._world: Callable[[], Any] = lambda: None

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Work that other ranks may be waiting for."""
        world = default_group()
        if world is None:
            yield
            return
        done, key = threading.Event(), _key(world.rank())

        def beat() -> None:
            with contextlib.suppress(RuntimeError):  # the store is gone: whoever meets says so
                store = self._connected(world)  # here: whoever holds it may be stopped
                while not done.wait(self._interval):
                    if not self._waiting:
                        store.add(key, 1)

        threading.Thread(target=beat, name="piecewise busy", daemon=True).start()
        try:
            yield
        finally:
            done.set()

    def _connected(self, world: Any) -> Any:
        """The one connection that signs go through, whichever thread gives them.

        Made once: for each that comes, torch's server looks up the caller's name before it serves
        anybody else, and where names are looked up slowly all ranks wait for that.
        """
        if self._world() is not world:
            self._store, self._world = default_store(), weakref.ref(world)
        return self._store

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """A wait for the others."""
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
