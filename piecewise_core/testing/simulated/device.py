"""What the parts of one simulated device share: its memory, its streams, the capture that runs."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator
from typing import Protocol

from piecewise_core.testing.simulated.pool import Memory

__all__ = ["Device", "DeviceFault", "Running", "Stream"]


class DeviceFault(RuntimeError):
    """An error as a driver gives it. ``advice``: what ``explain`` makes of it."""

    def __init__(self, what: str, advice: str) -> None:
        super().__init__(f"simulated device: {what}")
        self.advice = advice


class Stream:
    """A queue of work, which on this device is done at once. ``number``: 0 is the default."""

    def __init__(self, number: int, device: Device) -> None:
        self.number = number
        self._device = device

    def wait_stream(self, other: Stream) -> None:
        """Go on behind what ``other`` was given; in its capture, if it is in one."""
        if self._device.capture is not None:
            self._device.capture.wait(self, other)

    def __repr__(self) -> str:
        return f"stream {self.number}"


class Running(Protocol):
    """A capture that runs, on ``stream``; ``spoiled`` ones cannot be replayed.

    ``takes``: whether it records what a stream is given.
    """

    spoiled: bool
    stream: Stream

    def wait(self, stream: Stream, other: Stream) -> None: ...

    def takes(self, stream: Stream) -> bool: ...


class Device:
    """One simulated device. ``capture``: the one that runs, whichever thread began it."""

    def __init__(self, memory_bytes: int | None) -> None:
        self.memory = Memory(memory_bytes)
        self.capture: Running | None = None
        self._numbers = itertools.count(1)
        self._default = Stream(0, self)
        self._current = threading.local()

    def new_stream(self) -> Stream:
        """A stream that nothing else uses."""
        return Stream(next(self._numbers), self)

    @property
    def stream(self) -> Stream:
        """The current stream of this thread."""
        found: Stream = getattr(self._current, "stream", self._default)
        return found

    @contextlib.contextmanager
    def using(self, stream: Stream) -> Iterator[Stream]:
        """Make ``stream`` current in this thread."""
        before = self.stream
        self._current.stream = stream
        try:
            yield stream
        finally:
            self._current.stream = before

    def forbid_in_capture(self, what: str, advice: str) -> None:
        """Refuse ``what`` while a capture runs, and spoil that capture, as drivers do."""
        if self.capture is not None:
            self.capture.spoiled = True
            raise DeviceFault(
                f"{what} is not permitted while {self.capture.stream} is capturing", advice
            )
