"""Streams and memory of the simulated device."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

from piecewise_core.testing.simulated.device import Device

__all__ = ["SimulatedRuntime"]

_ROOMY = 1 << 40


class SimulatedRuntime:
    """The DeviceRuntime of a simulated device; work is done when the call returns."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def current_stream(self) -> Any:
        """The stream that this thread's work goes to."""
        return self._device.stream

    def new_stream(self) -> Any:
        """A stream that nothing else uses."""
        return self._device.new_stream()

    def stream(self, stream: Any) -> AbstractContextManager[Any]:
        """A context in which ``stream`` is current."""
        return self._device.using(stream)

    def synchronize(self) -> None:
        """Return; an error while a capture runs, which it spoils."""
        self._device.forbid_in_capture("synchronize", "Do not wait for the device in a capture.")

    def memory_info(self) -> tuple[int, int]:
        """(free, total) bytes; only pools count as used. Total is 1 TiB without a limit."""
        memory = self._device.memory
        total = _ROOMY if memory.limit is None else memory.limit
        return total - memory.used, total

    def memory_stats(self) -> dict[str, int]:
        """``reserved_bytes``: what all pools of this device hold."""
        return {"reserved_bytes": self._device.memory.used}

    def empty_cache(self) -> None:
        """Return: nothing is cached outside of pools; an error while a capture runs."""
        self._device.forbid_in_capture("empty_cache", "Empty caches before a capture.")

    def rng(self) -> torch.Generator:
        """The generator behind ``torch.rand`` and friends."""
        return torch.default_generator
