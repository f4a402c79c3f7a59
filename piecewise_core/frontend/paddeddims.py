"""In which dims the calls of each region are padded, and why not in the others."""

from __future__ import annotations

import logging
from weakref import WeakKeyDictionary

from piecewise_core.config import Config
from piecewise_core.frontend.region import Region
from piecewise_core.graph.padding.program import unpadded_dims
from piecewise_core.runtime.cutback import can_cut

__all__ = ["PaddedDims"]

logger = logging.getLogger(__name__)


class PaddedDims:
    """Decides once per region, by the rules of ``graph.padding``; tells once why not.

    ``reasons``: region -> why dims of it are not padded. ``refuse`` has a region's calls served
    without padding from now on, whatever the rules say.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._asked = config.padding == "capture_sizes" and config.inputs == "copy"
        # By the region itself: one that is traced anew may have the number of an old one.
        self._dims: WeakKeyDictionary[Region, frozenset[int]] = WeakKeyDictionary()
        self.reasons: WeakKeyDictionary[Region, tuple[str, ...]] = WeakKeyDictionary()

    def of(self, region: Region) -> frozenset[int]:
        """Places of the dims in which calls of ``region`` are padded."""
        if not self._asked:
            return frozenset()
        if region not in self._dims:
            self._decide(region)
        return self._dims[region]

    def refuse(self, region: Region, why: str) -> None:
        """Pad no call of ``region`` any more, and say why."""
        self._dims[region] = frozenset()
        self.reasons[region] = (why,)
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


def _hindrance(region: Region) -> str:
    """What keeps every dim from being padded, whatever operators do."""
    if region.program.mutated or region.written_bound:
        return (
            "calls are not padded: the model writes to memory of the caller's or its own, and what "
            "rows of padding write could not be taken back"
        )
    if not can_cut(region.program):
        return (
            "calls are not padded: a dim of a result is computed from sizes, so rows of padding "
            "may lie between a call's own"
        )
    return ""
