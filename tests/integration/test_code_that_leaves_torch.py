"""Code of a vendor's compiler passes no dispatcher: captures of operators must not freeze it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import piecewise_core as pw
from piecewise_core.plugins import declared
from piecewise_core.protocols import CompiledGraph
from piecewise_core.protocols.lowering import lower
from piecewise_core.testing import SimulatedPlatform
from piecewise_core.testing.simulated.driver import SimulatedDriver
from piecewise_cpu.platform import CpuPlatform


class Leaves:
    """Hands the results over as arrays of another library would be."""

    name = "leaves"

    def compile(self, graph, example_inputs, *, key, config):
        lowered = lower(graph, example_inputs)

        def compute(*inputs):
            found = lowered.graph(*inputs)
            return [torch.from_numpy(value.numpy().copy()) for value in found]

        return CompiledGraph(lowered.results.around(compute))

    def hash_factors(self):
        return {}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 8)
        self.register_buffer("seen", torch.zeros(8))

    def forward(self, x):
        self.seen.add_(x.sum(0))
        x = torch.softmax(torch.relu(self.inner(x)), -1)
        return x.t(), x * 2 + self.seen


def on_cpu():
    platform = CpuPlatform()
    platform.compiler = Leaves()
    return platform


@pytest.mark.parametrize("cuts", [(), ("torch.softmax",)])
@torch.inference_mode()
def test_static_plans_of_the_cpu_repeat_it_as_a_whole(cuts):
    model, twin = Model(), Model()
    twin.load_state_dict(model.state_dict())
    config = pw.Config(
        dynamic={"x": {0: pw.Dim("rows", 0, 32)}},
        splitting_ops=cuts,
        capture_sizes=(4, 8),
    )
    fast = pw.compile(model, config, platform=on_cpu())
    fast.warmup(torch.ones(4, 8))
    model.seen.zero_()
    for rows in (4, 8, 4, 8, 1, 0, 4):
        x = torch.randn(rows, 8)
        for ours, right in zip(fast(x), twin(x), strict=True):
            torch.testing.assert_close(ours, right)
        torch.testing.assert_close(model.seen, twin.seen)
    model.inner.weight.mul_(2)
    twin.inner.weight.mul_(2)
    x = torch.randn(4, 8)
    torch.testing.assert_close(fast(x)[0], twin(x)[0])
    assert fast.stats().calls["replayed"] == 6


def test_captures_that_see_operators_only_take_it_as_written():
    class Own(SimulatedPlatform):
        def __init__(self, name):
            super().__init__()
            self.compiler = type("Own", (Leaves,), {"name": name})()

    own = declared(Own("own"))
    assert own.captures("own")
    assert own.captures("eager")
    assert not own.captures("another")
    assert not declared(Own("inductor")).captures("inductor")


def test_captures_of_devices_see_all_that_runs_on_them():
    class Real(SimulatedDriver):
        operators_only = False

    platform = SimulatedPlatform()
    platform.graphs = Real(platform.graphs._device)
    assert declared(platform).captures("another")
