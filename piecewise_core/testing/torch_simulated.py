"""A torch device module with CUDA-style graphs and no device: everything is on CPU tensors.

It stands for what a vendor ships beside torch (torch_npu, torch.xpu), so that the tutorial and a
scaffold with ``--device-module piecewise_core.testing.torch_simulated --device-type cpu`` run
anywhere. Like those, it is one device for the whole process.
"""

from __future__ import annotations

from piecewise_core.testing.simulated import torch_module

__all__ = [
    "CPUGraph",
    "Stream",
    "current_device",
    "current_stream",
    "default_generators",
    "empty_cache",
    "graph_pool_handle",
    "init",
    "is_current_stream_capturing",
    "is_initialized",
    "mem_get_info",
    "memory_reserved",
    "memory_snapshot",
    "memory_stats",
    "stream",
    "synchronize",
]

_MODULE = torch_module.TorchModule()


class CPUGraph(torch_module.CPUGraph):
    """A graph of this module's device."""

    def __init__(self) -> None:
        super().__init__(_MODULE)


Stream = _MODULE.new_stream
current_device = _MODULE.current_device
current_stream = _MODULE.current_stream
default_generators = _MODULE.default_generators
empty_cache = _MODULE.empty_cache
graph_pool_handle = _MODULE.graph_pool_handle
init = _MODULE.init
is_current_stream_capturing = _MODULE.is_current_stream_capturing
is_initialized = _MODULE.is_initialized
mem_get_info = _MODULE.mem_get_info
memory_reserved = _MODULE.memory_reserved
memory_snapshot = _MODULE.memory_snapshot
memory_stats = _MODULE.memory_stats
stream = _MODULE.stream
synchronize = _MODULE.synchronize
