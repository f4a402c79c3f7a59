"""The demo's steady rounds: all contenders in turn, and how far others disturbed each round.

A round is kept by how much processor time processes outside the demo took while it ran, never by
what it measured.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

__all__ = ["Round", "kept", "measure"]

WANTED = 7
"""Rounds that medians are taken of, where more were run."""

QUIET = 0.1
"""Share of the processors that others may take in an undisturbed round."""

_CALLS = 60
"""Calls of the small shape in a round."""


class Worker(Protocol):
    """A contender that can be asked to do something."""

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Do it and answer."""
        ...


@dataclass(frozen=True)
class Round:
    """One round. ``steady``, ``small``: seconds by contender. ``others``: share of the processors
    that processes outside the demo took, 0 to 1; 0 where the system does not tell.
    """

    steady: Mapping[str, float]
    small: Mapping[str, float]
    others: float


def kept(rounds: list[Round]) -> list[Round]:
    """The least disturbed ones."""
    return sorted(rounds, key=lambda one: one.others)[:WANTED]


def measure(
    workers: Mapping[str, Worker],
    count: int,
    patience: float,
    step: Callable[[str], AbstractContextManager[None]],
) -> list[Round]:
    """At least ``count`` rounds; for ``patience`` seconds more while too few were quiet."""
    rounds: list[Round] = []
    limit = 0.0
    while len(rounds) < count or (
        sum(one.others <= QUIET for one in rounds) < count and time.perf_counter() < limit
    ):
        with step(f"round {len(rounds) + 1} of {max(count, len(rounds) + 1)}"):
            rounds.append(_round(workers))
        if len(rounds) == count:
            limit = time.perf_counter() + patience
    return rounds


def _round(workers: Mapping[str, Worker]) -> Round:
    begun, busy = time.perf_counter(), _busy()
    steady = {name: worker.ask("steady") for name, worker in workers.items()}
    small = {name: worker.ask("small", calls=_CALLS) for name, worker in workers.items()}
    wall, busy = time.perf_counter() - begun, _busy() - busy
    own = sum(answer["cpu"] for answer in (*steady.values(), *small.values()))
    return Round(
        {name: answer["seconds"] for name, answer in steady.items()},
        {name: answer["seconds"] for name, answer in small.items()},
        max(0.0, (busy - own) / (wall * (os.cpu_count() or 1))),
    )


def _busy() -> float:
    """Seconds that all processors together have worked since the machine started; 0 if unknown."""
    try:
        first = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()
    except OSError:
        return 0.0
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, first[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
