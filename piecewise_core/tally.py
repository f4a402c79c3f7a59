"""Calls counted by their sizes, target by target. Counters, status and histogram are read of it."""

from __future__ import annotations

import itertools
import math
import threading
import weakref
from collections.abc import Hashable
from contextlib import AbstractContextManager
from typing import NamedTuple

from piecewise_core.afterfork import after_fork
from piecewise_core.ranges import Box, Sizes

__all__ = ["Books", "Counted", "Tallies", "Tally", "rounded_up"]

_MOST = 16_384
"""Distinct sizes that a tally keeps one by one; those of a one-dim range are seldom more."""

_GONE = -1

_BITS = 5
"""Bits of a size that are kept where there are more: it is rounded up by less than 1/16."""


class Counted(NamedTuple):
    """``calls``, and the ``rows`` that they had and that padding ``added``.

    Rows: the product of a call's sizes; a call of a model without dims has one.
    """

    calls: int = 0
    rows: int = 0
    added: int = 0

    def plus(self, other: Counted) -> Counted:
        """Both together."""
        return Counted(*map(sum, zip(self, other, strict=True)))


class Tally(dict[Sizes, int]):
    """``tally[sizes] += 1`` counts a call: one step of the hot path, and the only one there.

    ``kind``: of target. ``captured``: the size that calls are padded to. ``lock``: taken where
    sizes become too many, and are counted by rounded ones from then on; totals stay exact.
    """

    def __init__(self, kind: str, captured: Sizes | None, lock: AbstractContextManager[object]):
        super().__init__()
        self.kind = kind
        self.captured = captured
        self._lock = lock
        self._rounded: dict[Sizes, Counted] = {}

    def __missing__(self, sizes: Sizes) -> int:
        if len(self) >= _MOST:
            with self._lock:
                for each, calls in self.items():
                    known = self._rounded.get(at := rounded_up(each), Counted())
                    self._rounded[at] = known.plus(self._counted(each, calls))
                self.clear()
        return 0

    def by_sizes(self) -> dict[Sizes, Counted]:
        """What was counted so far; other threads may go on counting."""
        with self._lock:
            found = dict(self._rounded)
            kept = dict(self)
        for sizes, calls in kept.items():
            found[sizes] = found.get(sizes, Counted()).plus(self._counted(sizes, calls))
        return found

    def take(self, other: Tally) -> None:
        """Count what ``other`` of the same kind did, which counts no more."""
        for sizes, calls in other.items():
            self[sizes] += calls
        for sizes, counted in other._rounded.items():
            self._rounded[sizes] = self._rounded.get(sizes, Counted()).plus(counted)

    def total(self) -> Counted:
        """The same over all sizes."""
        total = Counted()
        for counted in self.by_sizes().values():
            total = total.plus(counted)
        return total

    def _counted(self, sizes: Sizes, calls: int) -> Counted:
        rows = math.prod(sizes)
        added = 0 if self.captured is None else math.prod(self.captured) - rows
        return Counted(calls, calls * rows, calls * added)


_Made = dict[tuple[str, Hashable], Tally]


class Tallies:
    """The tallies of one owner's targets, by kind and what the target holds."""

    def __init__(self, lock: AbstractContextManager[object]) -> None:
        self._lock = lock
        self._made: _Made = {}

    def of(self, kind: str, where: Hashable = None) -> Tally:
        """The tally of a target. ``where``: what tells it apart, of replays the captured size."""
        found = self._made.get((kind, where))
        if found is None:
            captured = where if isinstance(where, tuple) else None
            found = self._made.setdefault((kind, where), Tally(kind, captured, self._lock))
        return found

    def total(self, kind: str, where: Hashable = None) -> Counted:
        """What was counted of a target."""
        found = self._made.get((kind, where))
        return Counted() if found is None else found.total()


class Books:
    """All tallies of one model. Those whose owner is gone are added up, by kind and sizes."""

    def __init__(self) -> None:
        self.lock = after_fork.frees(threading.RLock())
        self._made: dict[int, _Made] = {_GONE: {}}
        self._left: list[int] = []
        self._numbers = itertools.count()

    def open(self) -> Tallies:
        """Where one more owner counts."""
        made, number = Tallies(self.lock), next(self._numbers)
        with self.lock:
            self._settle()
            self._made[number] = made._made
        # Any thread may collect it at any time, whatever it holds: no lock is taken then.
        weakref.finalize(made, self._left.append, number).atexit = False
        return made

    def tallies(self) -> list[Tally]:
        """Every one; read them with ``lock`` held."""
        with self.lock:
            self._settle()
            return [tally for made in self._made.values() for tally in list(made.values())]

    def by_target(self) -> dict[tuple[str, Sizes | Box | None], Counted]:
        """What was counted so far, by kind and the sizes that targets hold; it never shrinks."""
        found: dict[tuple[str, Sizes | Box | None], Counted] = {}
        with self.lock:
            self._settle()
            for made in self._made.values():
                for (kind, where), tally in list(made.items()):
                    key = kind, _sizes_of(where)
                    found[key] = found.get(key, Counted()).plus(tally.total())
        return found

    def _settle(self) -> None:
        while self._left:
            for (kind, where), tally in self._made.pop(self._left.pop()).items():
                key = kind, _sizes_of(where)
                fresh = Tally(kind, tally.captured, self.lock)
                self._made[_GONE].setdefault(key, fresh).take(tally)


def _sizes_of(where: Hashable) -> Sizes | Box | None:
    return where if isinstance(where, (tuple, Box)) else None


def rounded_up(sizes: Sizes) -> Sizes:
    """``sizes``, each the next one that has few bits."""
    shifts = [max(size.bit_length() - _BITS, 0) for size in sizes]
    return tuple(
        -(-size >> by << by) if by else size for size, by in zip(sizes, shifts, strict=True)
    )
