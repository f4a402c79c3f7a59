"""Static graphs of whichever accelerator torch has, through ``torch.accelerator.Graph``."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

from piecewise_core.capture.torch_driver import TorchGraphDriver
from piecewise_core.errors import TorchUnsupported

__all__ = ["AcceleratorGraphDriver"]


class AcceleratorGraphDriver(TorchGraphDriver):
    """TorchGraphDriver over ``torch.accelerator``, for devices without a graph class of their own.

    ``device_type``: by default the current accelerator's. ``new_handle``: makes the handle of a
    pool, as ``graph_pool_handle()`` of a device's module does, which is the default. The rest as
    TorchGraphDriver; ``graph_class`` stands for torch.accelerator.Graph in tests. Graphs there know
    no generators: say ``generators="automatic"`` where replays advance them all the same. Raises
    TorchUnsupported for a torch without such graphs (before 2.12), or where no handle can be made.
    """

    def __init__(
        self,
        *,
        device_type: str | None = None,
        accelerator: Any = torch.accelerator,
        graph_class: Any = None,
        new_handle: Callable[[], Any] | None = None,
        generators: Any = "none",
        **options: Any,
    ) -> None:
        kind = device_type or _current(accelerator)
        base = graph_class or getattr(accelerator, "Graph", None)
        if base is None:
            raise TorchUnsupported(
                f"torch {torch.__version__} has no torch.accelerator.Graph; use a torch that has, "
                "or TorchGraphDriver over the module of the device"
            )
        module = _Accelerator(accelerator, _module_of(kind), new_handle)
        super().__init__(
            module,
            device_type=kind,
            graph_class=_graphs_of(base, module.capturing),
            generators=generators,
            **options,
        )


def _current(accelerator: Any) -> str:
    found = accelerator.current_accelerator()
    if found is None:
        raise TorchUnsupported("torch knows no accelerator here; name its type: device_type=")
    return str(found.type)


def _module_of(device_type: str) -> Any:
    return getattr(torch, device_type, None)


def _graphs_of(base: Any, capturing: threading.local) -> Any:
    """The class of graphs, begun as those of a device's module are."""

    class Graph(base):  # type: ignore[misc]
        def capture_begin(self, pool: Any = None, capture_error_mode: str = "thread_local") -> None:
            self.graph_pool, self.capture_error_mode = pool, capture_error_mode
            super().capture_begin()
            capturing.now = True

        def capture_end(self) -> None:
            capturing.now = False
            super().capture_end()

    return Graph


class _Accelerator:
    """What TorchGraphDriver asks of a device's module, of torch.accelerator.

    ``device``: the device's own module, where it has one, which is asked what the accelerator's
    has no word for. ``capturing.now``: whether this thread is in a capture of ours.
    """

    def __init__(self, accelerator: Any, device: Any, new_handle: Callable[[], Any] | None) -> None:
        self._accelerator, self._device = accelerator, device
        self.capturing = threading.local()
        handle = new_handle or getattr(device, "graph_pool_handle", None)
        if handle is None:
            raise TorchUnsupported(
                "the device's module has no graph_pool_handle(); give new_handle=, a function that "
                "makes the handle of a pool"
            )
        self.graph_pool_handle = handle
        if hasattr(device, "memory_snapshot"):
            self.memory_snapshot = device.memory_snapshot
        if hasattr(accelerator, "get_memory_info"):
            self.mem_get_info, self.memory_reserved = self._memory, accelerator.memory_reserved

    def current_stream(self) -> Any:
        """The stream that this thread's work goes to."""
        return self._accelerator.current_stream()

    @contextlib.contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        """A context in which ``stream`` is current; the old one is, behind it."""
        before = self._accelerator.current_stream()
        self._accelerator.set_stream(stream)
        try:
            yield
        finally:
            self._accelerator.set_stream(before)

    def is_current_stream_capturing(self) -> bool:
        """Whether this thread is in a capture, of ours where the device cannot say."""
        ask = getattr(self._device, "is_current_stream_capturing", None)
        return bool(ask()) if ask is not None else getattr(self.capturing, "now", False)

    def _memory(self) -> tuple[int, int]:
        free, total = self._accelerator.get_memory_info()
        return int(free), int(total)
