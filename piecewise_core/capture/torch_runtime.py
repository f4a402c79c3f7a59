"""Streams and memory of any torch device module: cuda, hip, xpu, npu."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch

from piecewise_core.capture.device_module import STREAMS, need, offered
from piecewise_core.torch_compat.streams import current_stream_of

__all__ = ["TorchRuntime"]


_PROPERTIES = ("name", "major", "minor", "gcnArchName", "multi_processor_count", "warp_size")


class TorchRuntime:
    """The DeviceRuntime over ``module`` (``torch.cuda``), which is initialised when first used.

    ``versions``: further facts for ``fingerprint``, such as the driver's version. Optional methods
    are there where the module has what they call. Raises TorchUnsupported for one without streams.
    """

    def __init__(
        self, module: Any, versions: Callable[[], Mapping[str, str]] | None = None
    ) -> None:
        need(
            module, STREAMS, "TorchRuntime", "write a DeviceRuntime of your own; it is four methods"
        )
        self._module = module
        self._versions = versions

    def current_stream(self) -> Any:
        """The stream that this thread's work goes to."""
        return self._module.current_stream()

    def new_stream(self) -> Any:
        """A stream of the current device."""
        return self._module.Stream()

    def stream(self, stream: Any) -> AbstractContextManager[Any]:
        """A context in which ``stream`` is current."""
        context: AbstractContextManager[Any] = self._module.stream(stream)
        return context

    def synchronize(self) -> None:
        """Wait for all work of the current device."""
        self._module.synchronize()

    @offered("mem_get_info")
    def memory_info(self) -> tuple[int, int]:
        """(free, total) bytes of the current device."""
        free, total = self._module.mem_get_info()
        return int(free), int(total)

    @offered("memory_stats")
    def memory_stats(self) -> Mapping[str, int]:
        """What the caching allocator counts, by its own names."""
        stats: Mapping[str, int] = self._module.memory_stats()
        return stats

    @offered("empty_cache")
    def empty_cache(self) -> None:
        """Give memory that no tensor uses back to the driver."""
        self._module.empty_cache()

    @offered("init", "default_generators", "current_device")
    def rng(self) -> torch.Generator:
        """The default generator of the current device."""
        self._module.init()
        generator: torch.Generator = self._module.default_generators[self._module.current_device()]
        return generator

    @offered("get_device_properties", "current_device")
    def fingerprint(self) -> Mapping[str, str]:
        """The current device's kind, by the names that torch has for it, and versions."""
        found = self._module.get_device_properties(self._module.current_device())
        facts = {n: str(getattr(found, n)) for n in _PROPERTIES if hasattr(found, n)}
        return {**facts, **(self._versions() if self._versions is not None else {})}

    def stream_order(self) -> Callable[[], None]:
        """Has a stream wait for the last one where they differ, without the host if it can."""
        module = self._module
        number_of, stream_of = current_stream_of(module)
        capturing = getattr(module, "is_current_stream_capturing", bool)
        known: Any = None
        last: Any = None

        def in_order() -> None:
            nonlocal known, last
            number = number_of()
            if number == known or capturing():
                return
            stream = stream_of()
            if last is not None:
                with module.stream(last):
                    begun = capturing()
                # An event of a stream that is capturing would draw this one into the capture.
                if not begun:
                    getattr(stream, "wait_stream", waited)(last)
            known, last = number, stream

        def waited(_: Any) -> None:
            module.synchronize()

        return in_order

    @offered("Event")
    def elapsed(self, run: Callable[[], object]) -> float:
        """Seconds between two events of the device around ``run()``."""
        begin, end = (self._module.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3
