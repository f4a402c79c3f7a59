"""The CPU platform: Inductor's C++ kernels, and static plans of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from piecewise_core.building_blocks import cache_directory
from piecewise_core.protocols import Capabilities, CompilerAdaptor, DeviceRuntime, GraphDriver
from piecewise_cpu.driver import CpuGraphDriver
from piecewise_cpu.inductor import CpuInductor
from piecewise_cpu.native import Native
from piecewise_cpu.runtime import CpuRuntime
from piecewise_cpu.toolchain import CppToolchain, factors
from piecewise_cpu.vector import probe_vector_isas

__all__ = ["CpuPlatform"]


class CpuPlatform:
    """Everything core needs to run on a CPU.

    Changes no thread setting: kernels are compiled for the ``torch.get_num_threads()`` in force.
    """

    name = "cpu"
    device_type = "cpu"
    # Inductor's vectorised C++ loads and stores unaligned.
    capabilities = Capabilities(alignment=1)

    def __init__(self, toolchain: CppToolchain | None = None) -> None:
        self._toolchain = toolchain or CppToolchain()
        self.device: DeviceRuntime = CpuRuntime()
        self.native = Native()
        driver = CpuGraphDriver(self.native)
        self.graphs: GraphDriver | None = driver
        self.compiler: CompilerAdaptor = CpuInductor(driver, self._prepare, self.native)

    def _prepare(self) -> Mapping[str, Any]:
        """Prove the C++ compiler, then have the vector probes answered from earlier runs."""
        proved = self._toolchain.check()
        known = factors(proved)
        known.pop("directory")  # the probes are kept in one of ours, whatever Inductor uses
        known["torch"] = torch.__version__
        with ThreadPoolExecutor(1) as beside:  # both are runs of the compiler
            beside.submit(self.native.build, proved.compiler.path)
            return probe_vector_isas(cache_directory(os.environ), known)

    def self_check(self) -> Mapping[str, str]:
        """Facts about the C++ compiler. Raises CompilerUnavailable saying what is missing."""
        found = self._toolchain.check()
        compiler = found.compiler
        return {
            "C++ compiler": f"{compiler.path} ({compiler.version})",
            "builds in": found.directory,
        }
