"""Streams and memory of the CPU. Work is done when the call returns, so streams do nothing."""

from __future__ import annotations

import os

import torch

from piecewise_core.protocols import NoStreams

__all__ = ["CpuRuntime"]


class CpuRuntime(NoStreams):
    """The DeviceRuntime of the CPU."""

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
