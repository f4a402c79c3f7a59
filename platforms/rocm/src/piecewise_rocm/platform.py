"""The ROCm platform: Inductor's Triton kernels, HIP graphs."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from piecewise_core.building_blocks import TorchRuntime
from piecewise_core.errors import PlatformError
from piecewise_core.protocols import Capabilities, CompilerAdaptor, DeviceRuntime, GraphDriver
from piecewise_rocm.compiler import RocmInductor
from piecewise_rocm.driver import RocmGraphDriver

__all__ = ["RocmPlatform"]


class RocmPlatform:
    """Everything core needs to run on the current HIP device."""

    name = "rocm"
    device_type = "cuda"
    # Inductor's kernels read 16 bytes at once from tensors that were aligned when compiled.
    capabilities = Capabilities(alignment=16)

    def __init__(self) -> None:
        self.device: DeviceRuntime = TorchRuntime(
            torch.cuda, lambda: {"hip": str(torch.version.hip)}
        )
        self.graphs: GraphDriver | None = RocmGraphDriver()
        self.compiler: CompilerAdaptor = RocmInductor()

    def self_check(self) -> Mapping[str, str]:
        """Facts about the device, which this initialises. Raises PlatformError if it cannot."""
        if torch.version.hip is None:
            raise PlatformError(
                f"torch {torch.__version__} is built without ROCm; install a ROCm build of torch"
            )
        try:
            found = torch.cuda.get_device_properties()
            free, total = torch.cuda.mem_get_info()
        except (RuntimeError, AssertionError) as exc:
            raise PlatformError(f"torch cannot use the HIP device: {exc}") from exc
        return {
            "device": found.name,
            "chip": str(getattr(found, "gcnArchName", "unknown")),
            "free memory": f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB",
            "HIP of torch": torch.version.hip,
        }
