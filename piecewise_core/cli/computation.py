"""A small computation whose answer is known without a device."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from piecewise_core.errors import PlatformError
from piecewise_core.protocols import CompilerAdaptor, Platform

if TYPE_CHECKING:
    import torch

__all__ = ["compute"]

# Small whole numbers: every float format of every device holds them and their sums exactly.
_X = [[(3 * i + j) % 5 - 2 for j in range(16)] for i in range(12)]
_W = [[(i - 2 * j) % 7 - 3 for j in range(8)] for i in range(16)]


def compute(platform: Platform, device_type: str, compiler: CompilerAdaptor) -> str:
    """Compile and run ``relu(x @ w) + 1`` on the platform's device and compare with plain Python.

    Returns a sentence with the times. Raises PlatformError if the numbers differ, and whatever
    the platform or the compiler raises.
    """
    import torch
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    from piecewise_core.config import Config
    from piecewise_core.torch_compat.fakes import FakeTensorMode, TracingContext, tracing

    inputs = [torch.tensor(rows, dtype=torch.float32).to(device_type) for rows in (_X, _W)]
    graph, mode = _graph(), FakeTensorMode(shape_env=ShapeEnv())
    fakes = [mode.from_tensor(tensor, static_shapes=True) for tensor in inputs]
    for node, fake in zip(graph.graph.find_nodes(op="placeholder"), fakes, strict=True):
        node.meta["example_value"] = fake
    with torch.inference_mode():
        begin = time.perf_counter()
        # Compilers look the fake mode up in the tracing context.
        with tracing(TracingContext(mode)):
            run = compiler.compile(graph, fakes, key="doctor", config=Config()).run
        compiled = time.perf_counter()
        with platform.device.stream(platform.device.new_stream()):
            (out,) = run(*inputs)
            platform.device.synchronize()
        end = time.perf_counter()
    _compare(out.cpu().tolist(), out.shape)
    return (
        f"relu(x @ w) + 1 on {device_type} is right "
        f"(compiled in {compiled - begin:.2f} s, ran in {1000 * (end - compiled):.1f} ms)"
    )


def _expected() -> list[list[float]]:
    columns = list(zip(*_W, strict=True))
    return [
        [
            float(max(0, sum(a * b for a, b in zip(row, column, strict=True))) + 1)
            for column in columns
        ]
        for row in _X
    ]


def _compare(got: list[list[float]], shape: Any) -> None:
    expected = _expected()
    if len(got) != len(expected) or len(got[0]) != len(expected[0]):
        raise PlatformError(
            f"the result has shape {list(shape)}, not [{len(expected)}, {len(expected[0])}]; "
            "the device or its compiler computes wrongly"
        )
    pairs = [
        (g, e)
        for grow, erow in zip(got, expected, strict=True)
        for g, e in zip(grow, erow, strict=True)
    ]
    wrong = [(g, e) for g, e in pairs if not abs(g - e) <= 1e-3]
    if wrong:
        raise PlatformError(
            f"{len(wrong)} of {len(pairs)} numbers are wrong, the first {wrong[0][0]:g} instead "
            f"of {wrong[0][1]:g}; the device or its compiler computes wrongly"
        )


def _graph() -> torch.fx.GraphModule:
    """``relu(x @ w) + 1`` as the graph of a piece: flat placeholders, a tuple as output."""
    import torch

    graph = torch.fx.Graph()
    x, w = graph.placeholder("x"), graph.placeholder("w")
    product = graph.call_function(torch.matmul, (x, w))
    graph.output(
        (graph.call_function(torch.add, (graph.call_function(torch.relu, (product,)), 1)),)
    )
    return torch.fx.GraphModule(torch.nn.Module(), graph)
