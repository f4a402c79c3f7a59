"""What one key stands for is made once among all processes that share a store."""

from __future__ import annotations

import logging
from typing import Protocol, TypeVar

from piecewise_core.errors import StoreError
from piecewise_core.store.entry import Entry, Manifest, Ticket
from piecewise_core.store.protocol import Store

__all__ = ["Flight", "single_flight"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Flight(Protocol[T_co]):
    """How one thing is loaded or made.

    Only ``make`` runs inside the store's lock, and must not wait for a lock (``compile_lock``)
    whose holders may wait for the store's.
    """

    def load(self, entry: Entry) -> T_co | None:
        """What ``entry`` holds; None refuses it, and it is made anew."""
        ...

    def prepare(self) -> None:
        """Get ready for ``make``: what needs other locks. May be called again."""
        ...

    def make(self) -> Entry | None:
        """Make it; the entry to keep it by, None for none."""
        ...

    def take(self) -> T_co:
        """What ``make`` made."""
        ...


def single_flight(store: Store | None, ticket: Ticket | None, flight: Flight[T]) -> T:
    """What ``store`` has for ``ticket``, else what ``flight`` makes, published for the others.

    Whoever waited for the lock looks again before making anything. An entry that was refused is
    replaced. Without ``store`` or ``ticket`` nothing is looked for or kept. Raises what ``flight``
    raises; a store that cannot keep the entry is one warning.
    """
    if store is None or ticket is None:
        flight.prepare()
        flight.make()
        return flight.take()
    refused: Manifest | None = None
    while True:
        entry = store.get(ticket.key)
        if entry is not None and entry.manifest != refused:
            found = flight.load(entry)
            if found is not None:
                return found
            refused = entry.manifest
        flight.prepare()
        with store.lock(ticket.key):
            there = store.get(ticket.key)
            if there is None or there.manifest == refused:
                _publish(store, flight.make())
                break
        # Another process made one meanwhile: it is loaded without the lock.
    return flight.take()


def _publish(store: Store, entry: Entry | None) -> None:
    if entry is None:
        return
    try:
        store.put(entry, replace=True)
    except StoreError as error:
        logger.warning("%s is not kept: %s", entry.manifest.label, error)
