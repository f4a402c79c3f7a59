"""How long something on the device takes: by its own timer where it has one, else by the clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

from piecewise_core.plugins import Declared

__all__ = ["medians", "seconds_of"]


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


def medians(
    platform: Declared,
    runs: Sequence[Callable[[], object]],
    put_back: Callable[[], object],
    *,
    rounds: int,
    times: int = 1,
) -> list[float]:
    """Seconds of each of ``runs``, ``times`` in a row, in turns: the middle one of ``rounds``.

    ``put_back``: called after each turn and at the end, for what runs write to.
    """
    found: list[list[float]] = [[] for _ in runs]
    try:
        for _ in range(rounds):
            for seconds, run in zip(found, runs, strict=True):
                with torch.inference_mode():
                    seconds.append(seconds_of(platform, run, times))
                put_back()
    finally:
        platform.device.synchronize()
        put_back()
    return [statistics.median(seconds) for seconds in found]
