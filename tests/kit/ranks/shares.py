"""Stand-ins for symmetric memory: what notes which way was taken, and one of the host's."""

from __future__ import annotations

import torch
import torch.distributed._functional_collectives as functional

__all__ = ["HostShares", "Noting"]


class HostShares:
    """Sums by the library, in memory of its own. ``fails``: the method that raises."""

    def __init__(self, fails=""):
        self.fails = fails

    def _maybe(self, method):
        if self.fails == method:
            raise RuntimeError(f"{method} failed, so it was arranged")

    def allocate(self, nbytes):
        self._maybe("allocate")
        return torch.zeros(nbytes, dtype=torch.uint8)

    def connect(self, memory, group_name):
        self._maybe("connect")

    def total(self, memory, x, group_name, *, one_shot):
        share = memory[: x.numel() * x.element_size()].view(x.dtype).view(x.shape)
        share.copy_(x)
        return functional.all_reduce(share.clone(), "sum", group_name).clone()

    def takes(self, dtype, nbytes):
        return dtype == torch.float32


class Noting:
    """``of``, with a list of the ways that were taken."""

    def __init__(self, of):
        self.of, self.ways = of, []

    def __getattr__(self, name):
        return getattr(self.of, name)

    def total(self, memory, x, group_name, *, one_shot):
        self.ways.append("one-shot" if one_shot else "two-shot")
        return self.of.total(memory, x, group_name, one_shot=one_shot)
