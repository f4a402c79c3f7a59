"""Find out what captures take by making some in a pool of their own, which is then freed."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch

from piecewise_core.capture.captured import CapturedPlan, Owner
from piecewise_core.capture.graphmemory import GraphMemory
from piecewise_core.capture.thinning import largest_first
from piecewise_core.counters import Counters
from piecewise_core.errors import NotTraced
from piecewise_core.frontend.building import between_builds
from piecewise_core.frontend.estimate import Estimate, SizeEstimate
from piecewise_core.frontend.setup import Setup
from piecewise_core.ranges import Sizes
from piecewise_core.replay.replayable import Replayable
from piecewise_core.replay.replays import Replays

__all__ = ["Subject", "estimate"]

_SAMPLES = 64
"""Sizes that are captured at most: drivers take memory in blocks, so that a few tell little."""

_ALL = ("cpu",)
"""Devices on which every size is captured: there a capture is a run."""

_GRAIN = 4 << 20
"""Bytes by which allocators and drivers of devices round, twice."""


class _Metered(GraphMemory):
    """Graph memory that notes what it holds after each capture."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.marks: list[tuple[Sizes, int, int, int]] = []

    def hold(self, owner: Owner, plan: CapturedPlan) -> None:
        """Count a new plan, and what there is now."""
        super().hold(owner, plan)
        asked = dict(self._asked())
        graphs = len(plan.graphs)
        self.marks.append((plan.sizes, graphs, asked["pool_bytes"], asked["driver_bytes"]))


class Subject(Protocol):
    """One form of calls, whose sizes are captured in memory that is not its own."""

    def prepare(self, sizes: Sequence[Sizes]) -> None:
        """Trace and compile what capturing ``sizes`` needs; with no lock held."""

    def begin(self, setup: Setup, memory: GraphMemory) -> Replays:
        """Have replays in ``memory``, of which nothing is captured."""

    def programs(self) -> Mapping[Sizes, Replayable]:
        """What of the prepared sizes is captured."""

    def bound(self) -> Sequence[torch.Tensor]:
        """The tensors that the model holds."""


def estimate(
    setup: Setup, subjects: Sequence[Subject], sizes: Sequence[Any] | None, lock: threading.RLock
) -> Estimate:
    """What capturing ``sizes`` would take, for every form of calls; None: the capture sizes.

    ``lock``: of calls. Traces and compiles what it needs. On the CPU every size is captured,
    elsewhere at most 64 of them. Raises ConfigError for sizes that cannot be, and NotTraced.
    """
    if not subjects:
        raise NotTraced("estimate() needs a first call, or warmup(), to know what calls look like")
    declared, own = setup.platform.declared, setup.config
    asked = {} if sizes is None else {"capture_sizes": tuple(sizes), "capture_max": False}
    config = own.replace(memory_limit=None, on_event=None, inputs="copy", **asked)
    order = largest_first(config.captures)
    exact = declared.device_type in _ALL
    chosen = order if exact or len(order) <= _SAMPLES else _spread(order)
    for subject in subjects:  # before the lock: it may trace and compile
        subject.prepare(chosen)
    memory = _Metered(declared, Counters(), None)
    setup = replace(setup, config=config, pool=None)
    found: list[SizeEstimate] = []
    error = inputs = 0
    tried: list[Replays] = []
    dropped: list[str] = []
    with between_builds(lock):
        try:
            for place, subject in enumerate(subjects):
                tried.append(subject.begin(setup, memory))
                marks = _captured(subject, tried[-1], memory)
                made, off = _filled([s for s in order if s not in chosen], marks, place)
                found, error = found + made, error + off + (0 if exact else _GRAIN)
                inputs += tried[-1].reads.nbytes
                dropped += tried[-1].dropped()
        finally:
            for replays in tried:
                replays.release(collect=True)
    inputs = 0 if own.inputs == "static" else inputs
    return Estimate(tuple(found), error, inputs, tuple(dropped))


def _captured(subject: Subject, replays: Replays, memory: _Metered) -> list[SizeEstimate]:
    """Capture the prepared sizes: what each took on top of those before it."""
    pool, driver = memory.marks[-1][2:] if memory.marks else (0, 0)
    known = len(memory.marks)
    programs = [(program, sizes) for sizes, program in subject.programs().items()]
    replays.capture_all(programs, subject.bound())
    found = []
    for sizes, graphs, now, beside in memory.marks[known:]:
        found.append(SizeEstimate(sizes, graphs, now - pool, beside - driver))
        pool, driver = now, beside
    return found


def _filled(
    others: Sequence[Sizes], measured: Sequence[SizeEstimate], form: int
) -> tuple[list[SizeEstimate], int]:
    """Measured sizes and ``others``, which are worked out; and how far off that may be.

    The largest has the pool's first segments and what a library takes once: no other is like it.
    """
    alike = measured[1:] or measured
    found, error = [replace(one, form=form) for one in measured], 0
    for sizes in others if alike else ():
        above = [one for one in alike if _rows(one) >= math.prod(sizes)]
        below = [one for one in alike if _rows(one) <= math.prod(sizes)]
        one, off = _between(
            sizes, (above or alike[:1])[-1], (below or above[-1:] or alike)[0], form
        )
        found.append(one)
        error += off
    found.sort(key=lambda one: (_rows(one), one.sizes), reverse=True)
    return found, error


def _between(
    sizes: Sizes, above: SizeEstimate, below: SizeEstimate, form: int
) -> tuple[SizeEstimate, int]:
    """One size from those next to it, in proportion to its rows; and how far off it may be."""
    span = _rows(above) - _rows(below)
    part = (math.prod(sizes) - _rows(below)) / span if span else 1.0

    def mixed(low: int, high: int) -> int:
        return round(low + (high - low) * part)

    made = SizeEstimate(
        sizes,
        max(above.graphs, below.graphs),
        mixed(below.pool_bytes, above.pool_bytes),
        mixed(below.driver_bytes, above.driver_bytes),
        measured=False,
        form=form,
    )
    pools = abs(above.pool_bytes - below.pool_bytes)
    return made, pools + abs(above.driver_bytes - below.driver_bytes)


def _spread(order: Sequence[Sizes]) -> list[Sizes]:
    """Some of ``order``, the first and the last among them, evenly apart."""
    last = len(order) - 1
    return [order[round(place * last / (_SAMPLES - 1))] for place in range(_SAMPLES)]


def _rows(one: SizeEstimate) -> int:
    return math.prod(one.sizes)
