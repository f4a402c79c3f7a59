"""Entries in objects that machines share: fetched, published, made by one of all."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

from piecewise_core.errors import SignatureRefused, StoreError
from piecewise_core.store.admission import signature_for
from piecewise_core.store.entry import Entry, Manifest
from piecewise_core.store.fleet import packing
from piecewise_core.store.fleet.clocks import Clock, RealClock
from piecewise_core.store.fleet.health import Guarded, Health, Unanswered, Worth
from piecewise_core.store.fleet.leases import PATIENCE, Lease, Leases
from piecewise_core.store.fleet.objects import Objects, ReadOnly
from piecewise_core.store.fleet.packing import name_of
from piecewise_core.store.ledger import Ledger
from piecewise_core.store.pruning import Pruned
from piecewise_core.store.signing import Signer

__all__ = ["Level"]

logger = logging.getLogger(__name__)

_MILLI = 1000


class Level:
    """The second level, in ``objects``.

    ``signer``, ``ledger``: as in FileStore. ``writable``: whether it publishes. ``clock``,
    ``chaos``: of a simulation.
    """

    def __init__(
        self,
        objects: Objects,
        signer: Signer | None = None,
        ledger: Ledger | None = None,
        *,
        writable: bool = True,
        clock: Clock | None = None,
        chaos: random.Random | None = None,
    ) -> None:
        self._clock = clock or RealClock()
        self._health = Health(objects.where(), self._clock, chaos, limited=clock is None)
        self.objects = Guarded(objects, self._health)
        self.ledger = ledger or Ledger()
        self.ledger.state = self.state
        self._signer = signer
        self._writable = writable and (signer is None or not signer.required or signer.can_sign)
        self._worth = Worth()
        self._leases = Leases(self.objects, self._clock, chaos)
        self._held: dict[str, Lease] = {}
        self._bad: set[str] = set()
        self._patient = True

    def where(self) -> str:
        """The place."""
        return self.objects.where()

    def state(self) -> str:
        """What it does, for people."""
        if self._worth.why:
            return f"{self.where()}: not asked any more, since {self._worth.why}"
        if self._health.why:
            return f"{self.where()}: does not answer ({self._health.why})"
        return f"{self.where()}: {'' if self._publishes() else 'read only, '}in use"

    # Reading ---------------------------------------------------------------------------

    def fetch(self, key: str) -> Entry | None:
        """The entry of ``key``, checked; None where it is not there, or not to be had."""
        if self._worth.why:
            return None
        begun = self._clock.now()
        try:
            data = self.objects.read(name_of(key), packing.MOST)
        except Unanswered:
            return None
        self._worth.asked(key, self._clock.now() - begun)
        entry = None if data is None else self._opened(key, data)
        if entry is None or data is None:
            return None
        seconds, saved = self._clock.now() - begun, entry.manifest.seconds
        self._settle(key, saved)
        self.ledger.count("fleet_hits", 1)
        self.ledger.count("fleet_bytes", len(data))
        self.ledger.count("fleet_saved_ms", round(max(0.0, saved - seconds) * _MILLI))
        return entry

    def _opened(self, key: str, data: bytes) -> Entry | None:
        """The entry in ``data``; what is bad is replaced by whoever makes it anew."""
        try:
            return packing.unpack(self._signer, key, data)
        except SignatureRefused as error:
            self.ledger.refuse(key, self.where(), str(error))
            if error.kind != "untrusted":  # what another key signed is good for others
                self._bad.add(key)
        except StoreError as error:
            logger.warning("entry %s of %s is damaged: %s", key[:12], self.where(), error)
            self._bad.add(key)
        return None

    def _settle(self, key: str, seconds: float) -> None:
        before = self._worth.why
        self._worth.settled(key, seconds)
        if self._worth.why and not before:
            logger.warning("%s is not asked any more: %s", self.where(), self._worth.why)

    # Writing ---------------------------------------------------------------------------

    def publish(self, entry: Entry) -> bool:
        """Put ``entry`` there, unless it is there, or another machine took over its making."""
        key, begun = entry.manifest.key, self._clock.now()
        signature = signature_for(self._signer, entry) if self._publishes() else None
        taken = False
        try:
            if signature is not None:
                taken = self._put(key, packing.pack(entry, signature))
        except (Unanswered, ReadOnly):
            return False
        except StoreError as error:
            logger.warning("%s is not published: %s", entry.manifest.label, error)
        self._worth.asked(key, self._clock.now() - begun)
        self._settle(key, entry.manifest.seconds)
        if taken:
            self.ledger.count("fleet_published", 1)
        return taken

    def _put(self, key: str, data: bytes) -> bool:
        lease = self._held.get(key)
        if lease is not None and not lease.holds():
            logger.info("%s is not published: another machine makes it by now", key[:12])
            return False
        if key in self._bad:
            self.objects.remove(name_of(key))
            self._bad.discard(key)
        return self.objects.create(name_of(key), data)

    def _publishes(self) -> bool:
        return self._writable and not self._health.read_only and not self._worth.why

    @contextmanager
    def lease(self, key: str) -> Iterator[bool]:
        """Be the one machine that makes what ``key`` stands for, waiting for another that does.

        The value: whether it is. Where there is no lease to be had, it is made all the same.
        """
        lease = self._leased(key) if self._publishes() and self._patient else None
        if lease is not None:
            self._held[key] = lease
        try:
            yield lease is not None
        finally:
            if lease is not None:
                del self._held[key]
                with suppress(Unanswered, ReadOnly):  # whoever waits takes over when it is silent
                    lease.release(published=self._is_there(key))

    def _leased(self, key: str) -> Lease | None:
        begun = self._clock.now()
        try:
            lease = self._leases.acquire(key, partial(self._is_there, key))
        except (Unanswered, ReadOnly):
            return None
        if lease is None and self._clock.now() - begun > PATIENCE:
            self._patient = False
            logger.warning(
                "nobody is waited for any more at %s: one lease was held for %.0f s",
                self.where(),
                PATIENCE,
            )
        return lease

    def _is_there(self, key: str) -> bool:
        return key not in self._bad and self.objects.read(name_of(key), 0) is not None

    # For people ------------------------------------------------------------------------

    def all_keys(self) -> Iterator[str]:
        """The keys of what is there. Raises what the backend raises."""
        for found in self.objects.listed(packing.FOLDER):
            key = packing.key_in(found.name)
            if key is not None:
                yield key

    def manifests(self) -> Iterator[Manifest]:
        """Every manifest that can be had: reads every object."""
        for key in self.all_keys():
            data = self.objects.read(name_of(key), packing.MOST)
            entry = None if data is None else self._opened(key, data)
            if entry is not None:
                yield entry.manifest

    def check(self, key: str) -> str | None:
        """What is wrong with the entry of ``key``, or None; changes nothing."""
        data = self.objects.read(name_of(key), packing.MOST)
        try:
            if data is None:
                return "it is not there"
            packing.unpack(self._signer, key, data)
        except StoreError as error:
            return str(error)
        return None

    def prune(self, limit: int) -> Pruned:
        """Remove the oldest entries past ``limit`` bytes; with 0 leases and leftovers too."""
        found = sorted(self.objects.listed(packing.FOLDER), key=lambda o: (o.made, o.name))
        left, removed = sum(one.size for one in found), []
        before = left
        for one in found:
            if left <= limit:
                break
            self.objects.remove(one.name)
            removed.append(one.name.rpartition("/")[2])
            left -= one.size
        for place in ("leases", "tmp") if limit == 0 else ():
            for old in self.objects.listed(place):
                self.objects.remove(old.name)
        return Pruned(tuple(removed), before - left, left)
