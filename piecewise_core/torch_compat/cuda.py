"""What a launch on a CUDA device asks for; known in 2.11 to 2.13, no fallback."""

from __future__ import annotations

from collections.abc import Callable

import torch

from piecewise_core.torch_compat.lookup import needed

__all__ = ["current_device", "raw_stream", "triton_cache_dir"]


def current_device() -> Callable[[], int]:
    """The C function that gives the index of the current device."""
    with needed():
        return torch._C._cuda_getDevice


def raw_stream() -> Callable[[int], int]:
    """The C function that gives the address of a device's current stream."""
    with needed():
        return torch._C._cuda_getCurrentRawStream


def triton_cache_dir(device: int) -> str:
    """Where Inductor has Triton keep what it builds."""
    with needed():
        from torch._inductor.runtime.cache_dir_utils import triton_cache_dir as found
    return found(device)
