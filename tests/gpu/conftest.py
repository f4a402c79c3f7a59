"""Tests that need a CUDA or HIP device; elsewhere each is skipped with this reason."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch

NEEDS = "needs a CUDA device and a torch built for it; this machine has none"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.path.parts:
                item.add_marker(pytest.mark.skip(reason=NEEDS))


class Bench:
    """A driver, one pool and one stream; ``capture(fn)`` gives (graph, what fn returned)."""

    def __init__(self, driver: Any, device: Any) -> None:
        self.driver, self.device = driver, device
        self.pool, self.stream = driver.new_pool(), device.new_stream()

    def capture(self, fn: Callable[[], Any], graph: Any = None, warm: bool = True) -> Any:
        graph = graph or self.driver.new_graph()
        self.device.synchronize()
        prepared = getattr(self.driver, "capture_context", nullcontext)
        with self.device.stream(self.stream), prepared():
            if warm:
                fn()
            self.driver.capture_begin(graph, self.pool, self.stream)
            try:
                out = fn()
            except BaseException:
                self.driver.abort_capture(graph)
                raise
            self.driver.capture_end(graph)
        self.device.synchronize()
        return graph, out


@pytest.fixture
def make_bench():
    from piecewise_core.capture.torch_runtime import TorchRuntime

    with torch.inference_mode():
        yield lambda driver: Bench(driver, TorchRuntime(torch.cuda))
    torch.cuda.synchronize()


@pytest.fixture(params=["cuda", "rocm"])
def bench(request, make_bench):
    """On NVIDIA, the ROCm driver is the CUDA driver with another warm-up, so both run here."""
    from piecewise_cuda.driver import CudaGraphDriver
    from piecewise_rocm.driver import RocmGraphDriver

    return make_bench(CudaGraphDriver() if request.param == "cuda" else RocmGraphDriver())
