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


class Gpu:
    """Where whole models are compiled and run: the device's type and the platform's instance."""

    def __init__(self, device: str, platform: Any) -> None:
        self.device, self.platform = device, platform

    def randn(self, *shape: int) -> torch.Tensor:
        """Random numbers on the device."""
        return torch.randn(*shape, device=self.device)

    def config(self, **config: Any) -> Any:
        """Rows 1 to 64 of "x", captured at four sizes; uncompiled unless ``compiler`` is given."""
        import piecewise_core as pw

        settings = {
            "dynamic": {"x": {0: pw.Dim("rows", 1, 64)}},
            "splitting_ops": ("torch.softmax",),
            "capture_sizes": (1, 8, 32, 64),
            "compiler": "eager",
            **config,
        }
        return pw.Config(**settings)

    def compile(self, model: Any, **config: Any) -> Any:
        """``pw.compile`` for the device."""
        import piecewise_core as pw

        return pw.compile(model, self.config(**config), platform=self.platform)

    def record(self, fn: Any, **config: Any) -> Any:
        """``pw.record`` for the device."""
        import piecewise_core as pw

        settings = self.config(**config).replace(compiler=None)
        return pw.record(fn, settings, platform=self.platform)


@pytest.fixture
def gpu():
    from piecewise_core.plugins import select

    torch.manual_seed(0)
    with torch.inference_mode():
        yield Gpu("cuda", select(None, "cuda").platform)
    torch.cuda.synchronize()
