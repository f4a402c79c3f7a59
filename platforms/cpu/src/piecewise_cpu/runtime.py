"""Streams and memory of the CPU. Work is done when the call returns, so streams do nothing."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import Any

import torch

__all__ = ["CpuRuntime"]


class CpuRuntime:
    """The DeviceRuntime of the CPU."""

    def current_stream(self) -> Any:
        """Torch's stand-in for a stream."""
        return torch.cpu.current_stream()

    def new_stream(self) -> Any:
        """Another stand-in."""
        return torch.cpu.Stream()

    def stream(self, stream: Any) -> AbstractContextManager[Any]:
        """A context that changes nothing."""
        return torch.cpu.stream(stream)

    def synchronize(self) -> None:
        """Return at once: CPU work is never pending."""

    def stream_order(self) -> None:
        """Nothing has to wait: work is done when the call returns."""

    def memory_info(self) -> tuple[int, int]:
        """(free, total) physical memory of the machine in bytes; a container may allow less.

        Where the system does not tell what is free (macOS), free is total.
        """
        page = os.sysconf("SC_PAGE_SIZE")
        total = os.sysconf("SC_PHYS_PAGES") * page
        known = "SC_AVPHYS_PAGES" in os.sysconf_names
        return (os.sysconf("SC_AVPHYS_PAGES") * page if known else total, total)

    def rng(self) -> torch.Generator:
        """The generator behind ``torch.rand`` and friends; ``torch.manual_seed`` seeds it."""
        return torch.default_generator
