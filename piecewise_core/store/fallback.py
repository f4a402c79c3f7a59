"""A store that is opened on first need, and goes on in memory where its directory fails."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from piecewise_core.afterfork import after_fork
from piecewise_core.errors import StoreError
from piecewise_core.store.entry import Entry, Manifest
from piecewise_core.store.memory import MemoryStore
from piecewise_core.store.protocol import Store

__all__ = ["FallbackStore"]


class FallbackStore:
    """What ``open_`` returns, opened on first need.

    When opening fails, and when an entry cannot be written, new entries go to memory from then
    on, and one RuntimeWarning says so. What can still be read is. ``read_only``: nothing is meant
    to be written, so a directory that does not allow it is fine.
    """

    def __init__(self, open_: Callable[[], Store], *, read_only: bool = False) -> None:
        self._open = open_
        self._read_only = read_only
        self._guard = after_fork.frees(threading.RLock())
        self._opened: Store | None = None
        self._memory: MemoryStore | None = None

    @property
    def writable(self) -> bool:
        """Whether ``put`` can take anything."""
        return not self._read_only

    def get(self, key: str) -> Entry | None:
        """The entry of ``key``, or None."""
        opened = self._level()
        found = None if self._memory is None else self._memory.get(key)
        return opened.get(key) if found is None else found

    def put(self, entry: Entry, *, replace: bool = False) -> bool:
        """Keep ``entry``, in memory when it must be."""
        opened = self._level()
        if self._read_only:
            return False
        if self._memory is None:
            try:
                return opened.put(entry, replace=replace)
            except StoreError as error:
                self._degrade(error)
        return self._memory is not None and self._memory.put(entry, replace=replace)

    def lock(self, key: str) -> AbstractContextManager[bool]:
        """That of the store itself."""
        return self._level().lock(key)

    def manifests(self) -> Iterator[Manifest]:
        """Every manifest that can be read."""
        opened = self._level()
        if self._memory is not None and self._memory is not opened:
            yield from self._memory.manifests()
        yield from opened.manifests()

    def where(self) -> str:
        """Where new entries go."""
        opened = self._level()
        return (self._memory or opened).where()

    def _level(self) -> Store:
        with self._guard:
            if self._opened is None:
                try:
                    self._opened = self._open()
                    if not self._read_only and not self._opened.writable:
                        self._degrade(StoreError(f"{self._opened.where()} cannot be written to"))
                except (StoreError, OSError) as error:
                    self._opened = self._degrade(error)
            return self._opened

    def _degrade(self, error: Exception) -> MemoryStore:
        with self._guard:
            if self._memory is not None:
                return self._memory
            memory = self._memory = MemoryStore()
        warnings.warn(
            f"the compile store cannot be used ({error}); what is compiled now is kept in memory "
            "and compiled again by the next process. Set cache_dir to a directory of your own "
            "with room, or PIECEWISE_CACHE_MODE=off",
            RuntimeWarning,
            stacklevel=2,
        )
        return memory
