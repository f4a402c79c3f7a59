"""In which dims the calls of each region are padded, and why not in the others."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch

from piecewise_core.config import Config
from piecewise_core.frontend.region import Region
from piecewise_core.graph.names import source_of
from piecewise_core.graph.padding.program import unpadded_dims
from piecewise_core.ranges import Sizes
from piecewise_core.replay.cutback import can_cut, cut_back
from piecewise_core.replay.replayable import Alone, Rebuild

__all__ = ["PaddedDims", "PaddedRegion"]

_CHECKED = 2
"""How many padded calls of a captured size are compared."""

logger = logging.getLogger(__name__)


class PaddedDims:
    """Decides once per region, by the rules of ``graph.padding``; reports once why not.

    ``checked``: how many calls of a captured size are compared, where they can be. ``reasons``:
    region -> why dims of it are not padded. ``refuse`` has a region's calls served
    without padding from now on, whatever the rules say.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._asked = config.padding == "capture_sizes" and config.inputs == "copy"
        self.checked = 0 if config.check == "off" else _CHECKED
        # By the region itself: one that is traced anew may have the number of an old one.
        self._dims: WeakKeyDictionary[Region, frozenset[int]] = WeakKeyDictionary()
        self.reasons: WeakKeyDictionary[Region, tuple[str, ...]] = WeakKeyDictionary()
        self._served: WeakKeyDictionary[Region, WeakSet[PaddedRegion]] = WeakKeyDictionary()

    def of(self, region: Region) -> frozenset[int]:
        """Places of the dims in which calls of ``region`` are padded."""
        if not self._asked:
            return frozenset()
        if region not in self._dims:
            self._decide(region)
        return self._dims[region]

    def serve(self, region: Region, calls: PaddedRegion) -> None:
        """Have ``calls`` ask again once the region is refused."""
        self._served.setdefault(region, WeakSet()).add(calls)

    def refuse(self, region: Region, why: str) -> None:
        """Pad no call of ``region`` any more, and say why."""
        self._dims[region] = frozenset()
        self.reasons[region] = (why,)
        for calls in self._served.get(region, ()):
            calls.asks = True
        logger.warning("%s", why)

    def _decide(self, region: Region) -> None:
        hindrance = _hindrance(region)
        if hindrance:
            dims, reasons = frozenset[int](), [hindrance]
        else:
            dims = region.paddable.dims
            reasons = list(unpadded_dims(region.paddable, self._config.dims))
        self._dims[region] = dims
        if region.box is None or not any(s in region.box for s in self._config.captures):
            return
        self.reasons[region] = tuple(reasons)
        for why in reasons:
            logger.log(logging.INFO if hindrance else logging.WARNING, "%s", why)


class PaddedRegion:
    """Calls of a region that are padded to ``captured``; none is compared if it draws numbers."""

    def __init__(self, region: Region, captured: Sizes, dims: PaddedDims) -> None:
        self._region = region
        self._dims = dims
        self._cut = cut_back(region.program, captured)
        self._rebuild: Rebuild = region.program.traced.output.serving(copies=True)
        self.checked = 0 if region.draws else dims.checked
        self.asks = False  # what the rules allow stays so until a call is found to be otherwise
        dims.serve(region, self)

    def allows(self, sizes: Sizes) -> bool:
        """By the rules, and while no call was found to be otherwise."""
        return bool(self._dims.of(self._region))

    def learns(self, sizes: Sizes) -> bool:
        """The trace says how to cut."""
        return False

    def alone(self, t: Any, b: Any, sizes: Sizes, args: Any, kwargs: Any) -> Alone:
        """Run one call without graphs."""
        region = self._region
        if sizes not in region.general_box:  # legal only where it is padded
            return Alone((), comparable=False, wild=False)
        box = region.fallback(sizes).box
        # What is not compiled yet is not compiled for this: as written it runs at once.
        plain = region.plan(box) if region.is_ready(box) else region.written_plan()
        return Alone(plain(t, b, *sizes), comparable=True, wild=not region.paddable.rounds)

    def made_at(self, place: int) -> str:
        """By the trace."""
        value = self._region.program.values[place]
        return source_of(value) if isinstance(value, torch.fx.Node) else ""

    def refuse(self, sizes: Sizes, why: str) -> None:
        """No call of the region is padded any more."""
        self._dims.refuse(self._region, why)

    def cut(self, outputs: Sequence[Any], sizes: Sizes) -> tuple[Sequence[Any], Rebuild]:
        """What a call of ``sizes`` would have given."""
        return self._cut(outputs, sizes), self._rebuild


def _hindrance(region: Region) -> str:
    """What keeps every dim from being padded, whatever operators do."""
    if region.program.mutated or region.program.mutated_bound:
        return (
            "calls are not padded: the model writes to memory of the caller's or its own, and what "
            "rows of padding write could not be taken back"
        )
    if region.program.returned:
        return (
            "calls are not padded: a result is a view of an argument, and has to be one of the "
            "call's own"
        )
    if not can_cut(region.program):
        return (
            "calls are not padded: a dim of a result is computed from sizes, so rows of padding "
            "may lie between a call's own"
        )
    return ""
