"""What static graphs are going to take, by size and in all, and how far that may be off."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from piecewise_core.ranges import Sizes

__all__ = ["Estimate", "SizeEstimate"]


@dataclass(frozen=True)
class SizeEstimate:
    """One capture size of one form of calls, the largest first.

    ``graphs``: static graphs. ``pool_bytes``: that the shared pool grows by when this size comes
    after those before it; ``driver_bytes``: that the driver takes beside. ``measured``: whether
    that was measured, not worked out from other sizes. ``form``: the place of its calls among the
    forms.
    """

    sizes: Sizes
    graphs: int
    pool_bytes: int
    driver_bytes: int
    measured: bool = True
    form: int = 0

    @property
    def bytes(self) -> int:
        """Both."""
        return self.pool_bytes + self.driver_bytes


@dataclass(frozen=True)
class Estimate:
    """Bytes that the capture of ``sizes`` takes. ``str()`` is a table.

    ``error_bytes``: how far ``bytes`` may be off, either way; 0 on a CPU.
    ``input_bytes``: of the buffers that graphs read inputs from; ``memory_limit`` does not count
    them. ``dropped``: sizes that cannot be captured, and why. ``device_bytes``: what the device
    has less of to give out in the end, input buffers and blocks that the allocator takes for them
    included, its spare blocks given back; None on a CPU, and where the platform cannot tell.

    All of it counts from the moment ``estimate()`` returns. The captures that it tried leave what
    drivers keep: memory for graphs, which later ones use again, and code that was loaded.
    """

    sizes: tuple[SizeEstimate, ...]
    error_bytes: int = 0
    input_bytes: int = 0
    dropped: tuple[str, ...] = ()
    device_bytes: int | None = None

    @property
    def pool_bytes(self) -> int:
        """Of the pool that all sizes share."""
        return sum(size.pool_bytes for size in self.sizes)

    @property
    def driver_bytes(self) -> int:
        """Of the driver, beside the pool."""
        return sum(size.driver_bytes for size in self.sizes)

    @property
    def bytes(self) -> int:
        """What ``memory_limit`` counts: the pool's and the driver's."""
        return self.pool_bytes + self.driver_bytes

    def to_json(self) -> str:
        """The estimate as a JSON object."""
        return json.dumps({**asdict(self), "bytes": self.bytes}, indent=2)

    def __str__(self) -> str:
        off = f", give or take {self.error_bytes}" if self.error_bytes else ""
        device = "" if self.device_bytes is None else f"; the device has {self.device_bytes} less"
        lines = [
            f"{len(self.sizes)} sizes take {self.bytes} bytes{off}: {self.pool_bytes} of the pool, "
            f"{self.driver_bytes} of the driver; input buffers {self.input_bytes} more{device}"
        ]
        several = len({size.form for size in self.sizes}) > 1
        for size in self.sizes:
            form = f"form {size.form}, " if several else ""
            how = "" if size.measured else " (worked out)"
            named = "x".join(map(str, size.sizes)) or "the one size"
            lines.append(f"  {form}{named}: {size.graphs} graphs, {size.bytes} bytes{how}")
        return "\n".join([*lines, *(f"  not captured: {why}" for why in self.dropped)])
