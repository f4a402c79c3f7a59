"""What torch's caching allocators tell about the memory of a graph pool."""

from __future__ import annotations

import bisect
from collections.abc import Callable
from typing import Any

from piecewise_core.torch_compat.poolnames import PoolQuestion

__all__ = ["DriverMeter", "PoolMemory", "TorchPool"]


class PoolMemory:
    """The segments of graph pools. ``module``: a torch device module (``torch.cuda``)."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._snapshot: Callable[[Any], Any] | None = None
        self._starts: list[int] = []
        self._ends: list[int] = []

    def nbytes(self, handle: Any) -> int:
        """Bytes that a pool holds, in use or not."""
        return sum(int(segment["total_size"]) for segment in self._segments(handle))

    def live_bytes(self, handle: Any) -> int:
        """Bytes of a pool that tensors keep from being reused."""
        return sum(int(segment["allocated_size"]) for segment in self._segments(handle))

    def read(self, handle: Any) -> None:
        """Note where the segments of a pool lie, for ``holds``."""
        segments = self._segments(handle)
        spans = sorted((int(s["address"]), int(s["total_size"])) for s in segments)
        self._starts = [start for start, _ in spans]
        self._ends = [start + size for start, size in spans]

    def holds(self, address: int) -> bool:
        """Whether ``address`` lies in what was last read."""
        place = bisect.bisect_right(self._starts, address) - 1
        return place >= 0 and address < self._ends[place]

    def _segments(self, handle: Any) -> list[Any]:
        """Segments of that pool only; none where the allocator cannot tell pools apart."""
        if self._snapshot is None:
            self._snapshot = self._way_to_ask(handle)
        own = tuple(handle)
        return [s for s in self._snapshot(handle) if tuple(s.get("segment_pool_id", ())) == own]

    def _way_to_ask(self, handle: Any) -> Callable[[Any], Any]:
        """The cheapest form of ``memory_snapshot`` that this module has."""
        ask = getattr(self._module, "memory_snapshot", None)
        if ask is None:
            return lambda handle: ()
        ways: tuple[Callable[[Any], Any], ...] = (
            lambda handle: ask(mempool_id=handle, include_traces=False),
            lambda handle: ask(handle),
        )
        for way in ways:
            try:
                asked = PoolQuestion(way)
                asked(handle)
            except TypeError:
                continue
            return asked
        return lambda handle: ask()


class DriverMeter:
    """Estimates what the driver allocates for graphs: what went missing beyond torch's own.

    Other users of the device, and modules loaded meanwhile, are counted in.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        self._before: tuple[int, int] | None = None
        self.nbytes = 0

    def open(self) -> None:
        """Begin to measure, unless that has been done or the module has no such figures."""
        if self._before is None and hasattr(self._module, "mem_get_info"):
            self._before = self._now()

    def close(self) -> int:
        """End it; returns the bytes of all measurements together."""
        if self._before is not None:
            (free, reserved), (free_now, reserved_now) = self._before, self._now()
            self.nbytes += max(0, (free - free_now) - (reserved_now - reserved))
            self._before = None
        return self.nbytes

    def _now(self) -> tuple[int, int]:
        """(free bytes of the device, bytes that torch holds)."""
        free, _ = self._module.mem_get_info()
        return int(free), int(self._module.memory_reserved())


class TorchPool:
    """A graph pool. The allocator forgets a pool that no graph uses: ``anchor`` is one that stays
    while there are others. ``handle``: the allocator's name for it, another one after that.

    ``captured``: graphs ever captured into it. ``live``: those not reset since.
    """

    def __init__(self, handle: Any, meter: DriverMeter) -> None:
        self.handle = handle
        self.meter = meter
        self.anchor: Any = None
        self.captured = 0
        self.live = 0
