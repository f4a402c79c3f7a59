"""The CPU platform: Inductor's C++ kernels, no static graphs."""

from __future__ import annotations

from collections.abc import Mapping

from piecewise_core.compile.inductor import InductorCompiler
from piecewise_core.protocols import Capabilities, CompilerAdaptor, DeviceRuntime, GraphDriver
from piecewise_cpu.runtime import CpuRuntime
from piecewise_cpu.toolchain import CppToolchain

__all__ = ["CpuPlatform"]


class CpuPlatform:
    """Everything core needs to run on a CPU.

    Changes no thread setting: kernels are compiled for the ``torch.get_num_threads()`` in force.
    """

    name = "cpu"
    device_type = "cpu"
    graphs: GraphDriver | None = None
    # Inductor's vectorised C++ loads and stores unaligned.
    capabilities = Capabilities(alignment=1)

    def __init__(self, toolchain: CppToolchain | None = None) -> None:
        self._toolchain = toolchain or CppToolchain()
        self.device: DeviceRuntime = CpuRuntime()
        self.compiler: CompilerAdaptor = InductorCompiler(prepare=self._toolchain.require)

    def self_check(self) -> Mapping[str, str]:
        """Facts about the C++ compiler. Raises CompilerUnavailable saying what is missing."""
        found = self._toolchain.check()
        compiler = found.compiler
        return {
            "C++ compiler": f"{compiler.path} ({compiler.version})",
            "builds in": found.directory,
        }
