"""The CUDA platform: Inductor's Triton kernels, CUDA graphs."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping

import torch

from piecewise_core.building_blocks import TorchRuntime, torch_symmetric_memory
from piecewise_core.errors import PlatformError
from piecewise_core.protocols import Capabilities, CompilerAdaptor, DeviceRuntime, GraphDriver
from piecewise_cuda.compiler import CudaInductor
from piecewise_cuda.driver import CudaGraphDriver
from piecewise_cuda.nvml import ask_driver

__all__ = ["CudaPlatform"]


class CudaPlatform:
    """Everything core needs to run on the current CUDA device."""

    name = "cuda"
    device_type = "cuda"
    # Inductor's kernels read 16 bytes at once from tensors that were aligned when compiled.
    capabilities = Capabilities(alignment=16, symmetric_memory=torch_symmetric_memory())

    def __init__(self) -> None:
        self.device: DeviceRuntime = TorchRuntime(torch.cuda, _versions)
        self.graphs: GraphDriver | None = CudaGraphDriver()
        self.compiler: CompilerAdaptor = CudaInductor()

    def self_check(self) -> Mapping[str, str]:
        """Facts about the device, which this initialises. Raises PlatformError if it cannot."""
        try:
            found = torch.cuda.get_device_properties()
            free, total = torch.cuda.mem_get_info()
        except (RuntimeError, AssertionError) as exc:
            raise PlatformError(f"torch cannot use the CUDA device: {exc}") from exc
        return {
            "device": found.name,
            "capability": f"{found.major}.{found.minor}",
            "free memory": f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB",
            "CUDA of torch": str(torch.version.cuda),
            "Triton": _version("triton"),
        }


def _versions() -> Mapping[str, str]:
    """What compiled kernels depend on beside the device."""
    try:
        driver = ask_driver().version
    except (OSError, AttributeError):  # a container may hide it
        driver = "unknown"
    return {"driver": driver, "cuda": str(torch.version.cuda)}


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed; pieces run uncompiled with compiler='eager' only"
