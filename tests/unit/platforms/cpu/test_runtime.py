from __future__ import annotations

import torch

from piecewise_core.plugins.contract import differences
from piecewise_core.protocols import DeviceRuntime
from piecewise_cpu.runtime import CpuRuntime


def test_the_runtime_keeps_the_contract():
    assert differences(CpuRuntime(), DeviceRuntime, DeviceRuntime) == []


def test_a_stream_changes_nothing():
    runtime = CpuRuntime()
    x = torch.arange(3.0)
    with runtime.stream(runtime.new_stream()):
        y = x + 1
    with runtime.stream(runtime.current_stream()):
        z = y * 2
    runtime.synchronize()
    assert z.tolist() == [2, 4, 6]


def test_memory_is_told_in_bytes():
    free, total = CpuRuntime().memory_info()
    assert 2**20 < free <= total


def test_the_generator_is_the_one_that_torch_seeds():
    torch.manual_seed(7)
    first = torch.rand(3)
    CpuRuntime().rng().manual_seed(7)
    assert torch.equal(first, torch.rand(3))
