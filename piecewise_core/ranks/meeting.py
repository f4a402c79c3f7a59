"""Rounds in which every rank says something and hears all others, through a key-value store."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from piecewise_core.errors import RanksDisagree
from piecewise_core.ranks.busy import beats

__all__ = ["Meeting", "first_difference", "odd_one", "within"]

_MET = "met"
_FIRST, _LAST, _LOOK = 0.0002, 0.01, 0.05
"""Seconds: the shortest and longest pause between two looks, and how often others are looked at."""

_MOST = 0.25
"""Seconds between two looks at a clock; more are this process's own delay."""


class Meeting:
    """The rounds of ``ranks``, of which ``me`` is one; ``prefix``: of all its keys, its own alone.

    A round has one outcome on all ranks: all came, or somebody waited ``timeout`` seconds without
    a sign of life of one that did not; who knows it first writes it down for all. Keys of a round
    are deleted once all are in the next. ``longest``: how many seconds this rank was held up by
    one, at most.
    """

    def __init__(
        self, store: Any, prefix: str, ranks: Sequence[int], me: int, timeout: float
    ) -> None:
        self.ranks, self.me, self.timeout = tuple(ranks), me, timeout
        self._store, self._prefix, self._round = store, prefix, 0
        self.longest = 0.0

    def meet(self, what: str, said: Any = None) -> dict[int, Any]:
        """What each rank said; ``said``: plain data. Raises RanksDisagree, at ``what`` on all."""
        key, begun = f"{self._prefix}/{self._round}", time.monotonic()
        self._round += 1
        text = json.dumps([what, said])
        try:
            found: dict[int, Any] = within(
                self.timeout, lambda alive: self._round_of(key, what, text, alive), what
            )
        finally:
            self.longest = max(self.longest, time.monotonic() - begun)
        at = {rank: heard[0] for rank, heard in found.items()}
        odd = odd_one(at)
        if odd is not None:
            raise RanksDisagree(
                f"rank {odd} is at {at[odd]}, and rank {_other(at, odd)} at "
                f"{at[_other(at, odd)]}; ranks must make the same calls in the same order",
                rank=odd,
                difference=f"at {at[odd]}, not {at[_other(at, odd)]}",
            )
        return {rank: heard[1] for rank, heard in found.items()}

    def _round_of(
        self, key: str, what: str, text: str, alive: Callable[[], None]
    ) -> dict[int, Any]:
        store = self._store
        store.set(f"{key}/{self.me}", text)
        self._wait(key, what, alive)
        found = {rank: json.loads(store.get(f"{key}/{rank}")) for rank in self.ranks}
        alive()
        self._clean(key)
        return found

    def _wait(self, key: str, what: str, alive: Callable[[], None]) -> None:
        """Until all have come, or somebody has given up. Raises RanksDisagree."""
        store, verdict = self._store, f"{key}/verdict"
        keys = [f"{key}/{rank}" for rank in self.ranks]
        silent = Silence(store, self.timeout)
        pause, looked, outcome = _FIRST, time.monotonic(), _MET
        while not store.check(keys):
            alive()
            time.sleep(pause)
            pause = min(pause * 2, _LAST)
            if time.monotonic() - looked < _LOOK:
                continue
            looked = time.monotonic()
            if store.check([verdict]):
                break
            late = silent([r for r in self.ranks if not store.check([f"{key}/{r}"])])
            if late:
                outcome = json.dumps([self.me, late, what])
                break
        decided = store.compare_set(verdict, "", outcome).decode()
        if decided != _MET:
            by, late, at = json.loads(decided)
            raise self._gave_up(by, late, at, what)

    def _gave_up(self, by: int, late: Sequence[int], at: str, what: str) -> RanksDisagree:
        names = ", ".join(map(str, late))
        if self.me in late:
            text = (
                f"rank {by} waited for this rank, {self.me}, at {at} and gave up after "
                f"{self.timeout:g} s; this rank is at {what} by now"
            )
            return RanksDisagree(text, rank=self.me, difference=f"did not come to {at} in time")
        return RanksDisagree(
            f"rank {names} did not come to {at} within {self.timeout:g} s: it is dead or slow "
            "(Config.ranks_timeout), has another model or config, or lacks what this rank does "
            "because this one alone changed",
            rank=late[0],
            difference=f"did not come to {at}",
        )

    def _clean(self, key: str) -> None:
        """Delete this rank's keys of the round before, which all have left."""
        before = f"{self._prefix}/{self._round - 2}"
        if self._round > 1:
            self._store.delete_key(f"{before}/{self.me}")
            if self.me == self.ranks[0]:
                self._store.delete_key(f"{before}/verdict")


class Clock:
    """Seconds in which this process ran: where it was stopped, or starved, nobody else is late."""

    def __init__(self) -> None:
        self._last, self._ran = time.monotonic(), 0.0

    def now(self) -> float:
        """The seconds so far; asked several times a second."""
        real = time.monotonic()
        self._ran += min(real - self._last, _MOST)
        self._last = real
        return self._ran


class Silence:
    """Tells which ranks have given no sign of life for ``timeout`` seconds."""

    def __init__(self, store: Any, timeout: float) -> None:
        self._store, self._timeout, self._clock = store, timeout, Clock()
        self._begun = self._clock.now()
        self._seen: dict[int, tuple[int, float]] = {}

    def __call__(self, missing: Sequence[int]) -> list[int]:
        now = self._clock.now()
        for rank in missing:
            count, since = beats(self._store, rank), self._seen.get(rank)
            if since is None:
                self._seen[rank] = count, self._begun
            elif since[0] != count:
                self._seen[rank] = count, now
        return [rank for rank in missing if now - self._seen[rank][1] > self._timeout]


def within(timeout: float, work: Callable[[Callable[[], None]], Any], what: str) -> Any:
    """``work(alive)`` in a thread of its own, as long as it calls ``alive`` often enough.

    Whoever holds the store may be stopped: no answer of it may then hold up this rank. Raises what
    the work raises, and RanksDisagree where the store is gone or does not answer.
    """
    clock = Clock()
    last = [clock.now()]
    outcome: list[tuple[Any, BaseException | None]] = []
    done = threading.Event()

    def alive() -> None:
        last[0] = -1.0

    def run() -> None:
        try:
            outcome.append((work(alive), None))
        except BaseException as error:
            outcome.append((None, error))
        done.set()

    threading.Thread(target=run, name="piecewise ranks", daemon=True).start()
    while not done.wait(min(timeout, 0.1)):
        now = clock.now()
        if last[0] < 0:
            last[0] = now
        if now - last[0] > timeout:
            raise _no_store(what, f"did not answer within {timeout:g} s")
    result, error = outcome[0]
    if error is None:
        return result
    if isinstance(error, RuntimeError) and not isinstance(error, RanksDisagree):
        raise _no_store(what, str(error).partition("\n")[0]) from error
    raise error


def _no_store(what: str, why: str) -> RanksDisagree:
    return RanksDisagree(
        f"the store in which ranks meet is lost at {what}: {why}. Rank 0 holds it, unless torchrun "
        "does",
        rank=0,
        difference=f"its store: {why}",
    )


def odd_one(values: Mapping[int, Any]) -> int | None:
    """The first rank whose value most others do not have; None where all are equal."""
    known = {rank: json.dumps(value, sort_keys=True) for rank, value in values.items()}
    counts = Counter(known.values())
    usual = max(counts, key=lambda value: counts[value])  # of several, the first rank's
    return next((rank for rank, value in known.items() if value != usual), None)


def _other(values: Mapping[int, Any], odd: int) -> int:
    return next(rank for rank in values if values[rank] != values[odd])


def first_difference(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> tuple[str, str, str]:
    """The first entry in which two differ, and what it is in each; of long lists, where."""
    for name in (*mine, *theirs):
        a, b = mine.get(name), theirs.get(name)
        if a == b:
            continue
        if isinstance(a, list) and isinstance(b, list) and len(a) + len(b) > 8:
            place = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), None)  # noqa: B905
            if place is None:
                return name, f"of {len(a)} parts", f"of {len(b)} parts"
            return f"{name}, part {place}", repr(a[place]), repr(b[place])
        return name, repr(a), repr(b)
    return "", "", ""
