"""Inputs of the simulated device, put into their buffers in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

__all__ = ["stager"]


def stager(buffers: Sequence[torch.Tensor]) -> Callable[[Sequence[torch.Tensor]], None] | None:
    """What fills ``buffers``; None for some that are not on the CPU."""
    if any(b.device.type != "cpu" for b in buffers):
        return None
    flat = [b.as_strided((b.numel(),), (1,)) for b in buffers]

    def stage(tensors: Sequence[torch.Tensor]) -> None:
        for buffer, tensor in zip(flat, tensors, strict=True):
            given = tensor.as_strided((tensor.numel(),), (1,))
            buffer[: len(given)] = given
            buffer[len(given) :] = 0

    return stage
