"""How long something on the device takes: by its own timer where it has one, else by the clock."""

from __future__ import annotations

import time
from collections.abc import Callable

from piecewise_core.plugins import Declared

__all__ = ["seconds_of"]


def seconds_of(platform: Declared, run: Callable[[], object], times: int = 1) -> float:
    """Seconds of one ``run()``, of ``times`` in a row, after all that was issued before."""

    def repeated() -> None:
        for _ in range(times):
            run()

    platform.device.synchronize()
    if platform.elapsed is not None:
        return platform.elapsed(repeated) / times
    begun = time.perf_counter()
    repeated()
    platform.device.synchronize()
    return (time.perf_counter() - begun) / times
