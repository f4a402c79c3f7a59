"""Find out what captures take by making some in a pool of their own, which is then freed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from piecewise_core.capture.captured import CapturedPlan, Owner
from piecewise_core.capture.graphmemory import GraphMemory
from piecewise_core.capture.plans import largest_first
from piecewise_core.counters import Counters
from piecewise_core.errors import ConfigError, NotTraced
from piecewise_core.frontend.building import between_builds
from piecewise_core.frontend.capturing import Capturing
from piecewise_core.frontend.estimate import Estimate, SizeEstimate
from piecewise_core.frontend.form import Form
from piecewise_core.frontend.region import Region
from piecewise_core.frontend.session import Session
from piecewise_core.ranges import Sizes

__all__ = ["estimate"]

_SAMPLES = 4
"""Sizes that are captured to know the others, on a device whose memory is dear."""

_ALL = ("cpu",)
"""Devices on which every size is captured: there a capture is a run."""

_GRAIN = 4 << 20
"""Bytes by which allocators of devices round, twice."""


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


def estimate(session: Session, sizes: Sequence[Any] | None) -> Estimate:
    """What capturing ``sizes`` would take, for every form of calls; None: the capture sizes.

    Traces and compiles what they need. On the CPU each is captured, elsewhere the largest and
    three more. Raises ConfigError for sizes that cannot be, and NotTraced.
    """
    shared = session.shared
    if shared.memory is None:
        raise ConfigError(
            "estimate(): this model captures no static graphs; set capture_sizes, or graph_mode, "
            f"on a platform that has them (this is {session.setup.selected.info.name!r})"
        )
    if not session.forms:
        raise NotTraced("estimate() needs a first call, or warmup(), to know what calls look like")
    asked = {} if sizes is None else {"capture_sizes": tuple(sizes), "capture_max": False}
    config = shared.config.replace(memory_limit=None, on_event=None, inputs="copy", **asked)
    order = largest_first(config.captures)
    exact = shared.setup.platform.declared.device_type in _ALL or len(order) <= _SAMPLES
    chosen = order if exact else _spread(order)
    # Both before the lock: it may trace and compile.
    regions = [{s: form.region_for(s) for s in chosen} for form in session.forms]
    memory = _Metered(shared.setup.platform.declared, Counters(), None)
    setup = replace(shared.setup, config=config)
    found: list[SizeEstimate] = []
    error = inputs = 0
    tried: list[Capturing] = []
    dropped: list[str] = []
    with between_builds(shared.lock):
        try:
            for place, form in enumerate(session.forms):
                tried.append(Capturing(setup, Counters(), memory))
                marks = _captured(form, tried[-1], memory, regions[place])
                made, off = _filled([s for s in order if s not in regions[place]], marks, place)
                found, error = found + made, error + off
                inputs += tried[-1].replays.reads.nbytes
                dropped += tried[-1].replays.dropped()
        finally:
            for capturing in tried:
                capturing.replays.release()
    inputs = 0 if shared.config.inputs == "static" else inputs
    return Estimate(tuple(found), error, inputs, tuple(dropped))


def _captured(
    form: Form, capturing: Capturing, memory: _Metered, regions: Mapping[Sizes, Region]
) -> list[SizeEstimate]:
    """Capture the sizes of ``regions``: what each took on top of those before it."""
    capturing.replays.begin(form.binder)
    pool, driver = memory.marks[-1][2:] if memory.marks else (0, 0)
    known = len(memory.marks)
    programs = [(capturing.program(region), sizes) for sizes, region in regions.items()]
    capturing.replays.capture_all(programs, form.bound())
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
    return found, error + (_GRAIN if others else 0)


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
