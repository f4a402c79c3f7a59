"""Inductor as the CUDA platform uses it: Triton kernels, graphs left to piecewise."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

import torch

from piecewise_core.compile.inductor import InductorCompiler
from piecewise_core.errors import CompilerUnavailable

__all__ = ["CudaInductor"]

_SETTINGS = {
    # Two layers of graphs would capture each other.
    "triton.cudagraphs": False,
    "graph_partition": False,
}


class CudaInductor(InductorCompiler):
    """Inductor for the current CUDA device."""

    def __init__(self) -> None:
        super().__init__(prepare=require_triton, settings=_SETTINGS)

    def hash_factors(self) -> Mapping[str, str]:
        """Inductor's own, and the device that kernels are made for."""
        major, minor = torch.cuda.get_device_capability()
        return {
            **super().hash_factors(),
            "cuda": str(torch.version.cuda),
            "device": torch.cuda.get_device_name(),
            "capability": f"{major}.{minor}",
        }


def require_triton() -> None:
    """Raise CompilerUnavailable unless Triton is installed."""
    if importlib.util.find_spec("triton") is None:
        raise CompilerUnavailable(
            "Inductor needs Triton for CUDA and it is not installed; pip install triton in the "
            'version that this torch asks for, or set compiler="eager"'
        )
