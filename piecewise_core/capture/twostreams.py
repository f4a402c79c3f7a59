"""Two streams of one capture: the one that captures, and a side stream that forks from it.

Both have what they allocate to themselves, so kernels of one never take memory that the other may
still be using. That holds only while plans hold what crosses over until the join
(``runtime.forking``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from piecewise_core.plugins import Declared

__all__ = ["TwoStreams", "beside"]

_STREAMS = 64
"""More than torch has of one device, which it hands out in turn."""


def beside(device: Any, stream: Any) -> Any:
    """Another stream than ``stream``; the same where the device makes no other."""
    made = (device.new_stream() for _ in range(_STREAMS))
    return next((other for other in made if other != stream), stream)


class TwoStreams:
    """``forks``: how many there were since ``begin``."""

    def __init__(self, platform: Declared, main: Any, other: Any) -> None:
        if platform.wait_stream is None:
            raise ValueError("the platform has no wait_stream")
        self._wait: Callable[[Any, Any], None] = platform.wait_stream
        self._current, self._main, self._other = platform.device.stream, main, other
        self._open = False
        self.forks = 0

    def begin(self) -> None:
        """A run begins."""
        self.forks, self._open = 0, False

    def fork(self) -> None:
        """Have the side stream begin behind all that the main one was given."""
        self._wait(self._other, self._main)
        self._open = True
        self.forks += 1

    @contextlib.contextmanager
    def side(self) -> Iterator[None]:
        """The side stream is current."""
        with self._current(self._other):
            yield

    def join(self) -> None:
        """Have the main stream go on behind all that the side stream was given."""
        self._wait(self._main, self._other)
        self._open = False

    def leave(self) -> None:
        """Join what an error has left forked: no capture ends otherwise. Raises nothing."""
        if self._open:
            with contextlib.suppress(Exception):
                self.join()
            self._open = False
