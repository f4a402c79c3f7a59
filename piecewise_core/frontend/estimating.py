"""Find out what captures take by making some in a pool of their own, which is then freed."""

from __future__ import annotations

import gc
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from piecewise_core.plugins import Declared
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

    def end(self) -> None:
        """Have them no more: their input buffers lend the next ones the block that they lie in."""

    def programs(self) -> Mapping[Sizes, Replayable]:
        """What of the prepared sizes is captured."""

    def bound(self) -> Sequence[torch.Tensor]:
        """The tensors that the model holds."""


def estimate(
    setup: Setup, subjects: Sequence[Subject], sizes: Sequence[Any] | None, lock: threading.RLock
) -> Estimate:
    """What capturing ``sizes`` would take, for every form of calls; None: the capture sizes.

    ``lock``: of calls. Traces and compiles what it needs. On the CPU every size is captured,
    elsewhere at most 64 of them, twice. Raises ConfigError for sizes that cannot be, and NotTraced.
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
    setup = replace(setup, config=config, pool=None)
    with between_builds(lock):
        known = first = _tried(setup, subjects)
    if not exact:
        # What a process captures first has the driver take memory, which it then keeps, and load
        # code: whatever is captured after that finds both there.
        with between_builds(lock):
            known = _tried(setup, subjects)
    found: list[SizeEstimate] = []
    error = 0
    others = [each for each in order if each not in chosen]
    for place, (marks, like) in enumerate(zip(known.marks, first.marks, strict=True)):
        made, off = _filled(others, marks, like, place)
        found, error = found + made, error + off + (0 if exact else _GRAIN)
    inputs = 0 if own.inputs == "static" else known.inputs
    device = known.device
    if device is not None:
        device += sum(one.bytes for one in found if not one.measured)
    return Estimate(tuple(found), error, inputs, tuple(known.dropped), device)


@dataclass
class _Trial:
    """Captures that are gone again: sizes by form, bytes of input buffers, what was not captured.

    ``device``: what the device had less of to give out, where it can be asked.
    """

    marks: list[list[SizeEstimate]] = field(default_factory=list)
    inputs: int = 0
    dropped: list[str] = field(default_factory=list)
    device: int | None = None


def _tried(setup: Setup, subjects: Sequence[Subject]) -> _Trial:
    """Capture the prepared sizes of every form in memory of their own, and free it."""
    declared = setup.platform.declared
    memory, trial, tried = _Metered(declared, Counters(), None), _Trial(), list[Replays]()
    before = _free(declared)
    try:
        for subject in subjects:
            tried.append(subject.begin(setup, memory))
            trial.marks.append(_captured(subject, tried[-1], memory))
            trial.inputs += tried[-1].reads.nbytes
            trial.dropped += tried[-1].dropped()
        if before is not None:
            trial.device = before - (_free(declared) or 0)
    finally:
        for replays in tried:
            replays.release(collect=True)
        for subject in subjects:
            subject.end()
    return trial


def _free(declared: Declared) -> int | None:
    """What the device can give out, the allocator's spare blocks too."""
    if declared.memory_info is None or declared.device_type in _ALL:
        return None
    gc.collect()  # what earlier captures read lies on circles, and would be taken for spare
    declared.device.synchronize()
    declared.empty_cache()
    return declared.memory_info()[0]


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
    others: Sequence[Sizes],
    measured: Sequence[SizeEstimate],
    like: Sequence[SizeEstimate],
    form: int,
) -> tuple[list[SizeEstimate], int]:
    """Measured sizes and ``others``, worked out from those ``like`` them; how far off that may be.

    The largest has the pool's first segments and what a library takes once: no other is like it.
    """
    alike = like[1:] or like
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
