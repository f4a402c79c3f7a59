"""Replays over the same buffers come one after the other, whatever streams their calls are on.

A call returns before its replay is done. The next one writes to the same buffers: on another stream
it would do so while graphs still read them, and nothing would tell.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from piecewise_core.plugins import Declared
from piecewise_core.protocols import NoStreams

__all__ = ["stream_order"]


def stream_order(platform: Declared) -> Callable[[], None] | None:
    """What to call before each replay; None where work is done when a call returns."""
    if getattr(type(platform.device), "current_stream", None) is NoStreams.current_stream:
        return None
    if platform.stream_order is not None:
        return platform.stream_order()
    return _by_waiting(platform)


def _by_waiting(platform: Declared) -> Callable[[], None]:
    """Have the host wait for the device at each change of streams."""
    device, current = platform.device, platform.device.current_stream
    last: Any = None
    first = True

    def in_order() -> None:
        nonlocal last, first
        stream = current()
        if stream == last and not first:
            return
        if platform.graphs.is_capturing():  # a caller's: what it waits for, the caller orders
            return
        if not first:
            device.synchronize()
        last, first = stream, False

    return in_order
