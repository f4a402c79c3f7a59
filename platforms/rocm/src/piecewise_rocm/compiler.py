"""Inductor as the ROCm platform uses it: Triton kernels, graphs left to piecewise."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

import torch

from piecewise_core.building_blocks import InductorCompiler
from piecewise_core.errors import CompilerUnavailable

__all__ = ["RocmInductor"]

_SETTINGS = {
    # Two layers of graphs would capture each other.
    "triton.cudagraphs": False,
    "graph_partition": False,
}


class RocmInductor(InductorCompiler):
    """Inductor for the current HIP device."""

    def __init__(self) -> None:
        super().__init__(prepare=require_triton, settings=_SETTINGS)

    def hash_factors(self) -> Mapping[str, str]:
        """Inductor's own, and the chip that kernels are made for."""
        found = torch.cuda.get_device_properties()
        return {
            **super().hash_factors(),
            "hip": str(torch.version.hip),
            "chip": str(getattr(found, "gcnArchName", found.name)),
        }


def require_triton() -> None:
    """Raise CompilerUnavailable unless Triton is installed."""
    if importlib.util.find_spec("triton") is None:
        raise CompilerUnavailable(
            "Inductor needs Triton for ROCm and it is not installed; pip install the "
            'pytorch-triton-rocm that this torch asks for, or set compiler="eager"'
        )
