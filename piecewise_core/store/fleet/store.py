"""The local store in front of what machines share."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from piecewise_core.errors import StoreError
from piecewise_core.store.entry import Entry, Manifest
from piecewise_core.store.fleet.level import Level
from piecewise_core.store.protocol import Store

__all__ = ["FleetStore"]

logger = logging.getLogger(__name__)


class FleetStore:
    """Looks in ``local``, then in ``level``; what that has is kept locally from then on."""

    def __init__(self, local: Store, level: Level) -> None:
        self._local = local
        self._level = level

    @property
    def writable(self) -> bool:
        """Whether the local store takes anything."""
        return self._local.writable

    def get(self, key: str) -> Entry | None:
        """The entry of ``key``, or None."""
        found = self._local.get(key)
        if found is None:
            found = self._level.fetch(key)
            if found is not None:
                self._keep(found)
        return found

    def put(self, entry: Entry, *, replace: bool = False) -> bool:
        """Keep ``entry`` here, and publish it. Raises StoreError where it cannot be kept here."""
        try:
            return self._local.put(entry, replace=replace)
        finally:
            self._level.publish(entry)

    @contextmanager
    def lock(self, key: str) -> Iterator[bool]:
        """One process of this machine, and then one machine: the others of it wait meanwhile."""
        with self._local.lock(key) as held, self._level.lease(key):
            yield held

    def manifests(self) -> Iterator[Manifest]:
        """Every manifest of the local store: of the other, all would have to be fetched."""
        return self._local.manifests()

    def where(self) -> str:
        """Both places."""
        return f"{self._local.where()}, then {self._level.where()}"

    def _keep(self, entry: Entry) -> None:
        try:
            self._local.put(entry, replace=True)
        except StoreError as error:
            logger.warning("%s is fetched and not kept: %s", entry.manifest.label, error)
