"""Many machines on one second level, in virtual time, by the very code that serves real ones.

    python fleet_simulation.py --workers 512 --pieces 24 --crashes 0.01

Each worker is a thread of which one runs at a time; time passes where all of them sleep. Modelled:
the latency of each request, requests that fail, and lose their answer, starts that are spread, how
long a piece takes to compile, and workers that die while they hold a lease. Workers' clocks begin
anywhere and run by up to a part in a thousand too fast or slow. Progress on standard error; one
JSON line last.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import heapq
import json
import logging
import random
import statistics
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator

from piecewise_core.ranges import Box, Range
from piecewise_core.store.entry import Entry, make_entry, make_ticket
from piecewise_core.store.fleet.level import Level
from piecewise_core.store.fleet.objects import Object
from piecewise_core.store.fleet.store import FleetStore
from piecewise_core.store.ledger import Ledger
from piecewise_core.store.memory import MemoryStore
from piecewise_core.store.single_flight import single_flight

BOX = Box((Range(1, 64),))


class Dead(BaseException):
    """The worker's process is no more."""


class Time:
    """Virtual seconds; whoever sleeps is woken in order, one at a time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._waiting: list[tuple[float, int, Callable[[], None]]] = []
        self._turn = 0
        self._baton = threading.Semaphore(0)

    def at(self, when: float, step: Callable[[], None]) -> None:
        self._turn += 1
        heapq.heappush(self._waiting, (when, self._turn, step))

    def sleep(self, seconds: float) -> None:
        """Called on a worker's thread: gives the baton back until its time comes."""
        mine = threading.Semaphore(0)
        self.at(self.now + seconds, lambda: (mine.release(), self._baton.acquire()))
        self._baton.release()
        mine.acquire()

    def start(self, when: float, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                with contextlib.suppress(Dead):
                    work()
            finally:
                self._baton.release()

        thread = threading.Thread(target=run, daemon=True)
        self.at(when, lambda: (thread.start(), self._baton.acquire()))

    def run(self, tell: Callable[[float], None]) -> None:
        """Until nobody waits."""
        steps = 0
        while self._waiting:
            when, _, step = heapq.heappop(self._waiting)
            self.now = max(self.now, when)
            step()
            steps += 1
            if steps % 50_000 == 0:
                tell(self.now)


class Machine:
    """One worker's clock, and its way to the objects."""

    def __init__(self, time: Time, chaos: random.Random, bucket: Bucket) -> None:
        self.time, self.chaos, self.bucket = time, chaos, bucket
        self.dead = False
        self._offset, self._rate = chaos.uniform(0, 1e6), chaos.uniform(0.999, 1.001)

    # A clock.

    def now(self) -> float:
        return self._offset + self.time.now * self._rate

    def sleep(self, seconds: float) -> None:
        self._live()
        self.time.sleep(seconds / self._rate)
        self._live()

    def every(self, seconds: float, step: Callable[[], bool]) -> Callable[[], None]:
        ended = threading.Event()

        def run() -> None:
            while not ended.is_set():
                self.time.sleep(seconds / self._rate)
                if ended.is_set() or self.dead or not step():
                    return

        self.time.start(self.time.now, run)
        return ended.set

    def _live(self) -> None:
        if self.dead:
            raise Dead

    # Objects.

    def where(self) -> str:
        return "simulated://bucket"

    def _request(self, work: Callable[[], object], size: int = 0) -> object:
        self.sleep(self.bucket.latency(self.chaos) + size / self.bucket.bandwidth)
        fails = self.chaos.random() < self.bucket.failures
        if fails and self.chaos.random() < 0.5:
            raise OSError("connection reset")
        found = work()
        self.sleep(self.bucket.latency(self.chaos))
        self.bucket.requests += 1
        if fails:
            raise OSError("the answer got lost")
        return found

    def read(self, name: str, limit: int) -> bytes | None:
        # As it was half a latency ago: a request's way there, and back, in one.
        self.sleep(self.bucket.latency(self.chaos) / 2)
        found = self.bucket.objects.get(name)
        data = None if found is None else found[: limit + 1]
        self.bucket.requests += 1
        self.bucket.fetched += len(data or b"")
        self.sleep(self.bucket.latency(self.chaos) / 2 + len(data or b"") / self.bucket.bandwidth)
        if self.chaos.random() < self.bucket.failures:
            raise OSError("connection reset")
        return data

    def create(self, name: str, data: bytes) -> bool:
        def put() -> bool:
            return self.bucket.objects.setdefault(name, data) is data

        return self._request(put, len(data))

    def write(self, name: str, data: bytes) -> None:
        self._request(lambda: self.bucket.objects.update({name: data}), len(data))

    def remove(self, name: str) -> None:
        self._request(lambda: self.bucket.objects.pop(name, None))

    def listed(self, folder: str) -> Iterator[Object]:
        return iter(())


class Bucket:
    """What all share."""

    def __init__(self, failures: float, latency: float, bandwidth: float) -> None:
        self.objects: dict[str, bytes] = {}
        self.failures, self._latency, self.bandwidth = failures, latency, bandwidth
        self.requests = self.fetched = 0

    def latency(self, chaos: random.Random) -> float:
        """One way, in seconds: most alike, some ten times as long."""
        return chaos.expovariate(2 / self._latency) * (10 if chaos.random() < 0.01 else 1)


class Flight:
    """One piece that one worker wants."""

    def __init__(self, fleet: Fleet, machine: Machine, number: int) -> None:
        self.fleet, self.machine, self.number = fleet, machine, number

    def load(self, entry: Entry) -> Entry:
        if entry.artifact != self.fleet.artifacts[self.number]:
            raise AssertionError("another artifact")
        return entry

    def prepare(self) -> None:
        """Nothing."""

    def make(self) -> Entry:
        self.fleet.compilations[self.number] += 1
        seconds = self.fleet.seconds[self.number]
        if self.fleet.chaos.random() < self.fleet.crashes:
            self.machine.sleep(seconds * self.fleet.chaos.random())
            self.machine.dead = True
            self.fleet.died += 1
            raise Dead
        self.machine.sleep(seconds)
        self._made = make_entry(
            self.fleet.tickets[self.number],
            self.fleet.artifacts[self.number],
            serves=BOX,
            adaptor="simulated",
            seconds=seconds,
        )
        return self._made

    def take(self) -> Entry:
        return self._made


class Fleet:
    """Workers that all want the same pieces."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.chaos = random.Random(options.seed)
        self.crashes = options.crashes
        self.time = Time()
        self.bucket = Bucket(options.failures, options.latency, options.bandwidth)
        numbers = range(options.pieces)
        self.tickets = [make_ticket({"piece.form": str(n)}, BOX) for n in numbers]
        self.artifacts = [self.chaos.randbytes(options.bytes) for n in numbers]
        self.seconds = [self.chaos.uniform(2, 40) for n in numbers]
        self.compilations: collections.Counter[int] = collections.Counter()
        self.counters: collections.Counter[str] = collections.Counter()
        self.died = 0
        self.starts: list[float] = []
        for _ in range(options.workers):
            self.time.start(self.chaos.uniform(0, options.spread), self.worker)

    def worker(self) -> None:
        machine = Machine(self.time, random.Random(self.chaos.random()), self.bucket)
        ledger = Ledger()
        ledger.count = lambda name, more: self.counters.update({name: more})
        level = Level(machine, ledger=ledger, clock=machine, chaos=machine.chaos)
        store, begun = FleetStore(MemoryStore(), level), self.time.now
        with contextlib.suppress(Dead):
            for number, ticket in enumerate(self.tickets):
                single_flight(store, ticket, Flight(self, machine, number))
            self.starts.append(self.time.now - begun)


def simulate(options: argparse.Namespace) -> dict[str, object]:
    """What came of it, as plain data."""
    real, fleet = time.monotonic(), Fleet(options)

    def tell(now: float) -> None:
        made = sum(fleet.compilations.values())
        print(f"{now:.0f} s virtual, {made} compiled, {len(fleet.starts)} ready", file=sys.stderr)

    fleet.time.run(tell)
    made = [fleet.compilations[n] for n in range(options.pieces)]
    alone = sum(fleet.seconds)
    return {
        "workers": options.workers,
        "pieces": options.pieces,
        "crashes": options.crashes,
        "died": fleet.died,
        "ready": len(fleet.starts),
        "compilations": sum(made),
        "compilations_per_piece": sum(made) / options.pieces,
        "most_compilations_of_a_piece": max(made),
        "start_s_median": round(statistics.median(fleet.starts), 1),
        "start_s_worst": round(max(fleet.starts), 1),
        "start_s_alone": round(alone, 1),
        "compile_s_saved": round(alone * len(fleet.starts) - sum(fleet.seconds), 1),
        "bytes_fetched": fleet.bucket.fetched,
        "bytes_kept": sum(map(len, fleet.bucket.objects.values())),
        "requests": fleet.bucket.requests,
        "counters": dict(fleet.counters),
        "virtual_s": round(fleet.time.now, 1),
        "seconds": round(time.monotonic() - real, 1),
        "seed": options.seed,
    }


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--workers", type=int, default=512)
    made.add_argument("--pieces", type=int, default=24)
    made.add_argument("--crashes", type=float, default=0.0, help="share of compilations")
    made.add_argument("--failures", type=float, default=0.002, help="share of requests")
    made.add_argument("--latency", type=float, default=0.04, help="seconds of a request, mean")
    made.add_argument("--bandwidth", type=float, default=50e6, help="bytes a second")
    made.add_argument("--bytes", type=int, default=100_000, help="of an artifact")
    made.add_argument("--spread", type=float, default=30.0, help="seconds over which all start")
    made.add_argument("--seed", type=int, default=0)
    return made


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    print(json.dumps(simulate(parser().parse_args())))
