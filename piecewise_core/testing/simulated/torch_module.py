"""The simulated device as the module that torch has for a device: ``torch.cuda``'s functions."""

from __future__ import annotations

import itertools
import weakref
from contextlib import AbstractContextManager
from typing import Any

import torch

from piecewise_core.testing.simulated.device import Device
from piecewise_core.testing.simulated.driver import SimulatedDriver
from piecewise_core.testing.simulated.graph import SimulatedGraph
from piecewise_core.testing.simulated.pool import Pool
from piecewise_core.testing.simulated.runtime import SimulatedRuntime

__all__ = ["CPUGraph", "TorchModule"]


class TorchModule:
    """One simulated device, behind the functions that TorchGraphDriver and TorchRuntime use."""

    def __init__(self) -> None:
        device = Device(None)
        self.driver = SimulatedDriver(device)
        self.runtime = SimulatedRuntime(device)
        self._device = device
        self._numbers = itertools.count(1)
        self._pools: dict[tuple[int, int], Pool] = {}
        self.default_generators = (torch.default_generator,)

    # Streams --------------------------------------------------------------------------

    def init(self) -> None:
        """Nothing: there is no hardware to wake."""

    def is_initialized(self) -> bool:
        """False: nothing can be."""
        return False

    def current_device(self) -> int:
        """The only one."""
        return 0

    def current_stream(self) -> Any:
        """The stream that this thread's work goes to."""
        return self.runtime.current_stream()

    def new_stream(self) -> Any:
        """``Stream()`` of a torch module."""
        return self.runtime.new_stream()

    def stream(self, stream: Any) -> AbstractContextManager[Any]:
        """A context in which ``stream`` is current."""
        return self.runtime.stream(stream)

    def synchronize(self) -> None:
        """Wait for all work."""
        self.runtime.synchronize()

    def is_current_stream_capturing(self) -> bool:
        """Whether the current stream is recording."""
        return self.driver.is_capturing()

    # Memory ---------------------------------------------------------------------------

    def mem_get_info(self) -> tuple[int, int]:
        """(free, total) bytes."""
        return self.runtime.memory_info()

    def memory_reserved(self) -> int:
        """Bytes that pools hold."""
        return self._device.memory.used

    def memory_stats(self) -> dict[str, int]:
        """The allocator's counts."""
        return self.runtime.memory_stats()

    def empty_cache(self) -> None:
        """Give memory back that nobody uses."""
        self.runtime.empty_cache()

    def memory_snapshot(self, mempool_id: Any = None) -> list[dict[str, Any]]:
        """The segments of one pool, as torch's allocators list them."""
        pool = self._pools.get(tuple(mempool_id or ()))
        if pool is None:
            return []
        return [
            {
                "address": base,
                "total_size": nbytes,
                "allocated_size": live,
                "segment_pool_id": tuple(mempool_id),
            }
            for base, nbytes, live in pool.segments()
        ]

    def graph_pool_handle(self) -> tuple[int, int]:
        """The name of a pool, which is made when a graph is captured into it."""
        return (0, next(self._numbers))

    def pool(self, handle: tuple[int, int]) -> Pool:
        """The pool of that name."""
        if handle not in self._pools:
            self._pools[handle] = self.driver.new_pool()
        return self._pools[handle]


class CPUGraph:
    """What ``torch.cuda.CUDAGraph`` is to CUDA, for the simulated device behind ``module``."""

    def __init__(self, module: TorchModule) -> None:
        self._module = module
        self._graph: SimulatedGraph = module.driver.new_graph()
        weakref.finalize(self, _freed, module, self._graph)

    def capture_begin(self, pool: tuple[int, int]) -> None:
        """Start recording the current stream."""
        module = self._module
        module.driver.capture_begin(self._graph, module.pool(pool), module.current_stream())

    def capture_end(self) -> None:
        """Stop recording."""
        self._module.driver.capture_end(self._graph)

    def replay(self) -> None:
        """Run what was recorded."""
        self._graph.replay()

    def reset(self) -> None:
        """Free the graph; with the last of a pool, its memory too."""
        _freed(self._module, self._graph)

    def register_generator_state(self, generator: torch.Generator) -> None:
        """Let replays advance ``generator``."""
        self._module.driver.register_generator(self._graph, generator)


def _freed(module: TorchModule, graph: SimulatedGraph) -> None:
    pool = graph.pool
    module.driver.reset(graph)
    if pool is not None and not pool.graph_count:
        pool.trim()
