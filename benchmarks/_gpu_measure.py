"""Host and wall time of contenders that take turns in one process."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from _place import Place

__all__ = ["Contender", "Times", "host_microseconds", "take_turns", "timed"]

WARM = 8
"""Calls before the first that counts; graph trees of torch need three."""


@dataclass(frozen=True)
class Contender:
    """``call``: one forward. ``context``: what a block of calls runs in.

    ``before``: runs ahead of each block, untimed.
    """

    name: str
    call: Callable[[], Any]
    context: Callable[[], contextlib.AbstractContextManager[Any]] = torch.inference_mode
    before: Callable[[], Any] = lambda: None


@dataclass(frozen=True)
class Times:
    """Median microseconds per call: ``host`` until it returns, ``wall`` with the device's work."""

    host: float
    wall: float


def take_turns(
    contenders: Sequence[Contender], place: Place, *, repeats: int | None = None
) -> dict[str, Times]:
    """Medians over rounds in which every contender has its turn, each time in another order.

    Host: the device is idle when the call begins. Wall: calls follow each other.
    """
    repeats = repeats or place.repeats
    host: dict[str, list[float]] = {c.name: [] for c in contenders}
    wall: dict[str, list[float]] = {c.name: [] for c in contenders}
    for contender in contenders:
        contender.before()
        with contender.context():
            for _ in range(min(WARM, repeats)):
                contender.call()
        place.synchronize()
    for number in range(place.rounds):
        shift = number % len(contenders)
        for contender in (*contenders[shift:], *contenders[:shift]):
            contender.before()
            with contender.context():
                host[contender.name].append(_host(contender.call, repeats, place))
            contender.before()
            with contender.context():
                wall[contender.name].append(_wall(contender.call, repeats, place))
    return {
        c.name: Times(statistics.median(host[c.name]), statistics.median(wall[c.name]))
        for c in contenders
    }


def host_microseconds(call: Callable[[], Any], repeats: int, place: Place) -> float:
    """Median microseconds until ``call`` returns, from an idle device."""
    for _ in range(min(WARM, repeats)):
        call()
    return _host(call, repeats, place)


@contextlib.contextmanager
def timed(into: dict[str, float], name: str, place: Place) -> Any:
    """Add the seconds that the block takes, the device's work included."""
    place.synchronize()
    begun = time.perf_counter()
    yield
    place.synchronize()
    into[name] = into.get(name, 0.0) + time.perf_counter() - begun


def _host(call: Callable[[], Any], repeats: int, place: Place) -> float:
    found = []
    for _ in range(repeats):
        place.synchronize()
        begun = time.perf_counter()
        call()
        found.append(time.perf_counter() - begun)
    place.synchronize()
    return statistics.median(found) * 1e6


def _wall(call: Callable[[], Any], repeats: int, place: Place) -> float:
    place.synchronize()
    begun = time.perf_counter()
    for _ in range(repeats):
        call()
    place.synchronize()
    return (time.perf_counter() - begun) / repeats * 1e6
