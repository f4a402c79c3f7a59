"""Who makes what a key stands for, among machines: leases with fencing tokens.

A lease is an object ``leases/KEY/EPOCH`` that can be created once. Its holder changes it again and
again while it lives. Whoever waits measures by its own clock how long the last epoch has not
changed; after ``TTL`` seconds it creates the next one, which only one machine can. Epochs below
the last are fenced: their holders do not publish. Holders are told apart by ids, since epochs begin
anew once a published entry's lease was taken away.
"""

from __future__ import annotations

import json
import random
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from piecewise_core.store.fleet.clocks import Clock
from piecewise_core.store.fleet.objects import Objects

__all__ = ["PATIENCE", "TTL", "Lease", "Leases"]

TTL = 20.0
"""Seconds after which a lease that has not changed is its holder's no more."""

PATIENCE = 300.0
"""Seconds that anybody waits for others in all, per key."""

_BEATS = 4
"""Times in TTL that a holder changes its lease."""
_FIRST, _LONGEST_SLEEP, _GROWTH = 0.05, 2.0, 1.6
_SIZE = 1 << 10
_MOST = 64
"""Epochs of one key; nobody who means well gets so far. No lease is to be had beyond."""


@dataclass(frozen=True)
class Record:
    """What a lease says. ``beat``: changes. ``ttl``: seconds that it holds without a change."""

    holder: str
    beat: int
    ttl: float
    held: bool = True

    def text(self) -> bytes:
        """As it is kept."""
        return json.dumps(asdict(self)).encode()


class Lease:
    """Held by this machine, as far as it knows, until ``release``."""

    def __init__(self, leases: Leases, key: str, epoch: int, record: Record) -> None:
        self.key = key
        self.epoch = epoch
        self._leases = leases
        self._record = record
        self._stop = leases.clock.every(TTL / _BEATS, self._beat)

    def holds(self) -> bool:
        """Whether nobody took over. Raises what the backend raises."""
        found = self._leases.last(self.key, self.epoch)
        return found is not None and found[0] == self.epoch and self._is_mine(found[1])

    def release(self, *, published: bool) -> None:
        """Let others have it; once what was made is ``published`` nobody needs it."""
        self._stop()
        objects = self._leases.objects
        if not self.holds():
            return
        if published:
            for epoch in range(self.epoch, 0, -1):
                objects.remove(_name(self.key, epoch))
        else:
            self._record = replace(self._record, held=False)
            objects.write(_name(self.key, self.epoch), self._record.text())

    def _beat(self) -> bool:
        """Change it; False, so that it is done no more, where it is another's."""
        try:
            if not self.holds():
                return False
            self._record = replace(self._record, beat=self._record.beat + 1)
            self._leases.objects.write(_name(self.key, self.epoch), self._record.text())
        except Exception:  # unreachable, for a time: whoever waits takes over after TTL
            return True
        return True

    def _is_mine(self, data: bytes) -> bool:
        found = _record(data)
        return found is not None and found.holder == self._record.holder


class Leases:
    """Leases in ``objects``, by ``clock``."""

    def __init__(self, objects: Objects, clock: Clock, chaos: random.Random | None = None) -> None:
        self.objects = objects
        self.clock = clock
        self._chaos = chaos or random.Random()

    def acquire(self, key: str, there: Callable[[], bool]) -> Lease | None:
        """Wait for the lease of ``key``; None once ``there``, or after PATIENCE seconds.

        Raises what the backend raises.
        """
        begun = since = self.clock.now()
        epoch, data = self.last(key) or (1, None)
        pause = _FIRST
        while epoch < _MOST:
            if data is None or self._is_free(data, since):
                # Asked here alone: as long as it is held there is nothing yet.
                if there():
                    return None
                lease = self._take(key, epoch if data is None else epoch + 1)
                if lease is not None:
                    return lease
                epoch, data = self.last(key) or (1, None)
                since = self.clock.now()
            if self.clock.now() - begun > PATIENCE:
                break
            self.clock.sleep(pause * self._chaos.uniform(0.5, 1.5))
            pause = min(pause * _GROWTH, _LONGEST_SLEEP)
            now = self.objects.read(_name(key, epoch), _SIZE)
            if now != data:
                data, since = now, self.clock.now()
                epoch = 1 if now is None else epoch  # taken away: they begin anew
        return None

    def last(self, key: str, epoch: int = 1) -> tuple[int, bytes] | None:
        """The last epoch of ``key``, from ``epoch`` on, and what it says."""
        found = None
        while epoch <= _MOST:
            data = self.objects.read(_name(key, epoch), _SIZE)
            if data is None:
                break
            found = epoch, data
            epoch += 1
        return found

    def _is_free(self, data: bytes, since: float) -> bool:
        """Whether the lease that says ``data``, and has since ``since``, is nobody's."""
        record = _record(data)
        if record is not None and not record.held:
            return True
        # What another wrote decides for no longer than TTL.
        ttl = TTL if record is None else min(max(record.ttl, 1.0), TTL)
        return self.clock.now() - since > ttl

    def _take(self, key: str, epoch: int) -> Lease | None:
        record = Record(secrets.token_hex(8), 0, TTL)
        name, data = _name(key, epoch), record.text()
        # One that was created and whose answer got lost is ours all the same.
        if self.objects.create(name, data) or self.objects.read(name, _SIZE) == data:
            return Lease(self, key, epoch, record)
        return None


def _record(data: bytes) -> Record | None:
    """What a lease says; None for what nobody here wrote."""
    try:
        found: Any = json.loads(data)
        record = Record(**found)
        kinds = ((record.holder, str), (record.beat, int), (record.ttl, float), (record.held, bool))
        return record if all(type(value) is kind for value, kind in kinds) else None
    except (ValueError, TypeError, RecursionError):
        return None


def _name(key: str, epoch: int) -> str:
    return f"leases/{key[:2]}/{key}/{epoch}"
