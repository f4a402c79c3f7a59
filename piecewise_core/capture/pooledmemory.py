"""The graph memory of several models: one pool and one budget.

What one model alone may count on does not hold here. Its results would be overwritten by another
model's replay, of which its caller knows nothing: results are copied before callers get them. A
model may be let go while the others stay: its graphs go then, since they keep its weights.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable

import torch

from piecewise_core.capture.captured import Owner
from piecewise_core.capture.evicting import make_room
from piecewise_core.capture.graphmemory import GraphMemory
from piecewise_core.capture.output_ownership import OutputOwnership
from piecewise_core.counters import Counters
from piecewise_core.errors import ConfigError
from piecewise_core.plugins import Declared

__all__ = ["PooledMemory"]


class PooledMemory(GraphMemory):
    """``counters``: of the pool. ``when_idle(step)``: does ``step`` unless a call is under way.

    Call everything under the lock that all models of the pool share.
    """

    shared = True

    def __init__(
        self,
        platform: Declared,
        counters: Counters,
        when_idle: Callable[[Callable[[], None]], None],
    ) -> None:
        super().__init__(platform, counters, None, OutputOwnership(cloning=True))
        self._when_idle = when_idle
        self._device: torch.device | None = None

    def keep_to(self, limit: int | None) -> None:
        """Have the budget be ``limit`` bytes from now on; what does not fit is evicted."""
        self.limit = limit
        if limit is not None and self.callers.may_overwrite():
            make_room(self, None, limit)
            self.measure()

    def begins(self, devices: Iterable[torch.device]) -> None:
        """Graphs of calls with tensors on ``devices`` are to lie here. Raises ConfigError."""
        kind = self.platform.device_type
        for device in sorted((d for d in devices if d.type == kind), key=str):
            self._device = self._device or device
            if device != self._device:
                raise ConfigError(
                    f"pool: its graphs are on {self._device}, and this model is called with "
                    f"tensors on {device}; make a pw.Pool for each device"
                )

    # Models that are let go ------------------------------------------------------------

    def _weakly(self, owner: Owner) -> weakref.ref[Owner]:
        memory, idle = weakref.WeakMethod(self._sweep), self._when_idle

        def gone(owner: object) -> None:
            sweep = memory()
            if sweep is not None:
                idle(sweep)

        return weakref.ref(owner, gone)

    def _sweep(self) -> None:
        if not self.platform.graphs.is_capturing() and self.settle():
            self.emptied()

    def settle(self) -> bool:
        """Free what nothing serves any more, plans without an owner too."""
        if self.callers.may_overwrite():
            for plan in [plan for owner, plan in self.plans() if owner is None]:
                self.retire(plan)
        return super().settle()
