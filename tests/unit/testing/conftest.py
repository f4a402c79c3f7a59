"""A small way to capture one function on a simulated platform, as core would."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from piecewise_core.testing import SimulatedPlatform


class Bench:
    """A platform, one pool and one stream; ``capture(fn)`` gives (graph, what fn returned)."""

    def __init__(self, platform: SimulatedPlatform) -> None:
        self.platform = platform
        self.driver: Any = platform.graphs
        self.device = platform.device
        self.pool = self.driver.new_pool()
        self.stream = self.device.new_stream()

    def capture(self, fn: Callable[[], Any], graph: Any = None) -> tuple[Any, Any]:
        graph = graph or self.driver.new_graph()
        with self.device.stream(self.stream):
            self.driver.capture_begin(graph, self.pool, self.stream)
            try:
                out = fn()
            except BaseException:
                self.driver.abort_capture(graph)
                raise
            self.driver.capture_end(graph)
        return graph, out


@pytest.fixture
def bench() -> Bench:
    return Bench(SimulatedPlatform())


@pytest.fixture
def make_bench() -> Callable[..., Bench]:
    return lambda **knobs: Bench(SimulatedPlatform(**knobs))
