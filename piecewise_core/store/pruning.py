"""Keep a store of files below a size: what was used longest ago goes first."""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass

from filelock import FileLock, Timeout

from piecewise_core.afterfork import after_fork
from piecewise_core.errors import StoreError
from piecewise_core.store.directory import claim
from piecewise_core.store.entry import Entry, Manifest
from piecewise_core.store.files import FileStore

__all__ = ["BoundedStore", "Pruned", "empty_quarantine", "prune", "total"]

logger = logging.getLogger(__name__)

_ROOM = 0.9
"""The part of the limit that pruning leaves, so that not every new entry prunes again."""

_SHARE = 16
"""A process looks at the whole store again when it added a 16th of the limit."""


@dataclass(frozen=True)
class Pruned:
    """What pruning removed: keys, bytes of all that went, bytes of the entries that stay."""

    keys: tuple[str, ...]
    freed: int
    left: int


@dataclass(frozen=True)
class _Use:
    """One entry's last use, as its directory's time tells: to sort by, whatever the clock was."""

    used: float
    size: int
    key: str


class BoundedStore:
    """``inner``, pruned to ``limit`` bytes as entries are added."""

    def __init__(self, inner: FileStore, limit: int) -> None:
        self.inner = inner
        self.writable = inner.writable
        self.limit = limit
        self._guard = after_fork.frees(threading.Lock())
        self._added: int | None = None

    def get(self, key: str) -> Entry | None:
        """The entry of ``key``, or None."""
        return self.inner.get(key)

    def put(self, entry: Entry, *, replace: bool = False) -> bool:
        """Keep ``entry``, and remove others where that takes the store past its limit."""
        if entry.manifest.size > self.limit * _ROOM:
            logger.warning(
                "entry %s has %d bytes and is not kept: the store's limit is %d",
                entry.manifest.key[:12],
                entry.manifest.size,
                self.limit,
            )
            return False
        taken = self.inner.put(entry, replace=replace)
        if taken and self._due(entry.manifest.size):
            prune(self.inner, self.limit)
        return taken

    def lock(self, key: str) -> AbstractContextManager[bool]:
        """That of the store itself."""
        return self.inner.lock(key)

    def manifests(self) -> Iterator[Manifest]:
        """Every manifest."""
        return self.inner.manifests()

    def where(self) -> str:
        """The directory."""
        return self.inner.where()

    def _due(self, size: int) -> bool:
        with self._guard:
            first = self._added is None
            self._added = size + (self._added or 0)
            if not first and self._added * _SHARE < self.limit:
                return False
            self._added = 0
            return True


def prune(store: FileStore, limit: int) -> Pruned:
    """Remove what was left half-written; past ``limit`` bytes also the entries least in use."""
    with _alone(store) as alone:
        uses = sorted(_uses(store), key=lambda use: use.used)
        left = sum(use.size for use in uses)
        if not alone or not store.writable:
            return Pruned((), 0, left)
        freed = _tidy(store)
        removed = []
        target = limit if left <= limit else int(limit * _ROOM)
        for use in uses:
            if left <= target:
                break
            store.discard(use.key)
            removed.append(use.key)
            left -= use.size
            freed += use.size
        return Pruned(tuple(removed), freed, left)


def empty_quarantine(store: FileStore) -> None:
    """Remove what failed its check."""
    if store.writable:
        shutil.rmtree(store.root / "quarantine", ignore_errors=True)


def total(store: FileStore) -> int:
    """Bytes of all entries."""
    return sum(use.size for use in _uses(store))


def _uses(store: FileStore) -> Iterator[_Use]:
    for key in store.all_keys():
        path = store.path(key)
        with suppress(OSError):
            yield _Use(os.stat(path).st_mtime, _size(path), key)


def _tidy(store: FileStore) -> int:
    """Remove what dead processes left: whoever is alive holds what it writes."""
    freed = 0
    aside = store.root / "tmp"
    for name in os.listdir(aside) if aside.is_dir() else ():
        with suppress(OSError):
            held = claim(aside / name, sure=True)
            if held is not None:
                freed += _size(aside / name)
                shutil.rmtree(aside / name, ignore_errors=True)
                os.close(held)
    locks = store.root / "locks"
    for name in os.listdir(locks) if locks.is_dir() else ():
        with _free(store, name.removesuffix(".lock")) as free, suppress(OSError):
            if free and name != _LOCK:
                os.unlink(locks / name)
    return freed


_LOCK = "prune.lock"


def _alone(store: FileStore) -> AbstractContextManager[bool]:
    return _free(store, _LOCK.removesuffix(".lock"))


@contextmanager
def _free(store: FileStore, name: str) -> Iterator[bool]:
    """Hold the lock called ``name`` if nobody does."""
    lock = FileLock(store.root / "locks" / f"{name}.lock", timeout=0)
    try:
        (store.root / "locks").mkdir(mode=0o700, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError, Timeout, StoreError):
        yield False
        return
    try:
        yield True
    finally:
        with suppress(OSError):
            lock.release()


def _size(path: os.PathLike[str]) -> int:
    found = 0
    with suppress(OSError):
        found = sum(item.stat(follow_symlinks=False).st_size for item in os.scandir(path))
    return found
