"""A store in this process's memory: where no directory can be used, and for what came in a file."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext

from piecewise_core.afterfork import after_fork
from piecewise_core.store.entry import Entry, Manifest

__all__ = ["MemoryStore"]


class MemoryStore:
    """Holds ``entries``; more can be put unless ``writable`` is False.

    ``name``: what ``where`` says.
    """

    def __init__(
        self,
        entries: Iterable[Entry] = (),
        *,
        writable: bool = True,
        name: str = "this process's memory",
    ) -> None:
        self._entries = {entry.manifest.key: entry for entry in entries}
        self._guard = after_fork.frees(threading.Lock())
        self.writable = writable
        self.name = name

    def get(self, key: str) -> Entry | None:
        """The entry of ``key``, or None."""
        return self._entries.get(key)

    def put(self, entry: Entry, *, replace: bool = False) -> bool:
        """Keep ``entry`` as long as this object lives."""
        with self._guard:
            if not self.writable or (entry.manifest.key in self._entries and not replace):
                return False
            self._entries[entry.manifest.key] = entry
            return True

    def lock(self, key: str) -> AbstractContextManager[bool]:
        """Nothing: no other process can see these entries."""
        return nullcontext(True)

    def manifests(self) -> Iterator[Manifest]:
        """Every manifest."""
        for entry in list(self._entries.values()):
            yield entry.manifest

    def where(self) -> str:
        """The name it was given."""
        return self.name
