"""One store in front of another: what came in a file before what the machine keeps."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager

from piecewise_core.store.entry import Entry, Manifest
from piecewise_core.store.protocol import Store

__all__ = ["LayeredStore"]


class LayeredStore:
    """Looks in ``front``, then in ``back``; puts into ``back``."""

    def __init__(self, front: Store, back: Store) -> None:
        self._front = front
        self._back = back

    @property
    def writable(self) -> bool:
        """Whether the back takes anything."""
        return self._back.writable

    def get(self, key: str) -> Entry | None:
        """The entry of ``key`` from whichever has it first."""
        return self._front.get(key) or self._back.get(key)

    def put(self, entry: Entry, *, replace: bool = False) -> bool:
        """Keep ``entry`` in the back. Raises StoreError."""
        return self._back.put(entry, replace=replace)

    def lock(self, key: str) -> AbstractContextManager[bool]:
        """The back's lock: the front is read only."""
        return self._back.lock(key)

    def manifests(self) -> Iterator[Manifest]:
        """Every manifest of both."""
        return itertools.chain(self._front.manifests(), self._back.manifests())

    def where(self) -> str:
        """Both places."""
        return f"{self._front.where()}, then {self._back.where()}"
