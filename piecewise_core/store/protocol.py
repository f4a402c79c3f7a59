"""What a store can do, so that callers need not know where entries are kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from piecewise_core.store.entry import Entry, Manifest

__all__ = ["Store"]


class Store(Protocol):
    """Entries by key. Methods may be called from several threads and processes.

    A store checks before it hands out: an Entry is whole, and is what its key says. What it
    cannot read is a miss. A remote level or one that checks signatures wraps another Store.
    ``writable``: whether ``put`` can take anything.
    """

    @property
    def writable(self) -> bool: ...

    def get(self, key: str) -> Entry | None:
        """The entry of ``key``, or None. Costs the same however many entries there are."""
        ...

    def put(self, entry: Entry, *, replace: bool = False) -> bool:
        """Keep ``entry``; whether it was taken. One that is there stays unless ``replace``.

        Raises StoreError when it cannot be kept at all.
        """
        ...

    def lock(self, key: str) -> AbstractContextManager[bool]:
        """A context that one process holds for ``key`` at a time; the value: whether it does.

        Waits, up to the store's timeout, for another holder; one that died holds nothing.
        """
        ...

    def manifests(self) -> Iterator[Manifest]:
        """Every entry's manifest, in no order. Reads all of them: for people, not for look-ups."""
        ...

    def where(self) -> str:
        """Where entries are kept, for messages."""
        ...
