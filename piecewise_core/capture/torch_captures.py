"""Captures of torch's graphs: how one begins and ends, and how one that failed is left."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from piecewise_core.capture.device_module import function_of
from piecewise_core.capture.torch_memory import TorchPool
from piecewise_core.torch_compat.graphs import leave_pool, mode_keyword

__all__ = ["OpenCapture", "TorchCaptures"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenCapture:
    """A capture that runs."""

    graph: Any
    pool: TorchPool
    stream: Any


class TorchCaptures:
    """Those of one torch device module. ``make``: an empty graph; the rest as TorchGraphDriver."""

    def __init__(
        self,
        module: Any,
        device_type: str,
        make: Callable[[], Any],
        error_mode: str,
        leave: Callable[[int, Any], None] | None = None,
    ) -> None:
        self._module = module
        self._device_type = device_type
        self._make = make
        self._leave = leave or partial(leave_pool, device_type)
        self.mode = mode_keyword(make, error_mode)
        # Torch's host allocator keeps a pointer to each graph whose capture never ended.
        self._kept: list[Any] = []

    def begin(self, opened: OpenCapture) -> None:
        """Start recording. When it fails the graph is empty."""
        try:
            opened.graph.capture_begin(pool=opened.pool.handle, **self.mode)
        except BaseException:
            self._forget(opened.graph, opened.pool.handle, opened.stream)
            raise

    def end(self, graph: Any) -> None:
        """Stop recording. An empty graph is no error: one would leave generators capturing."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph.capture_end()

    def recover(self, opened: OpenCapture) -> None:
        """Make torch end a capture that the driver has ended already.

        ``capture_end`` of an invalidated capture raises before it tells the allocators and the
        generators, which then refuse to serve. So a helper's capture is begun on the stream, into
        a pool of its own, and the graph ends that one instead.
        """
        helper, handle = self._make(), self._module.graph_pool_handle()
        try:
            helper.capture_begin(pool=handle, **self.mode)
            self.end(opened.graph)
        except RuntimeError as exc:
            logger.debug("a failed capture was left without its graph's help: %s", exc)
            self._forget(opened.graph, opened.pool.handle, opened.stream)
        opened.graph.reset()
        self._forget(helper, handle, opened.stream)

    def keep(self, pool: TorchPool, stream: Any) -> None:
        """Have the allocator keep a pool: it gets an anchor, unless it has one."""
        if pool.anchor is None:
            if pool.captured:
                # The memory of graphs that are gone goes by the pool's old name: nothing takes it.
                function_of(self._module, "empty_cache")()
            pool.anchor = self._anchor(pool, stream)

    def _anchor(self, pool: TorchPool, stream: Any) -> Any:
        """A graph that does next to nothing, and the memory that it does it to."""
        device = getattr(stream, "device", None) or self._device_type
        scratch = torch.zeros(1, device=device)
        graph = self._make()
        graph.capture_begin(pool=pool.handle, **self.mode)
        try:
            scratch.zero_()
        finally:
            self.end(graph)
        return graph, scratch

    def _forget(self, graph: Any, handle: Any, stream: Any) -> None:
        """Make a graph empty whose capture never ended."""
        index = getattr(getattr(stream, "device", None), "index", None) or 0
        self._leave(index, handle)
        graph.reset()
        self._kept.append(graph)
