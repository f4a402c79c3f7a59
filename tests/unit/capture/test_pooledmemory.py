"""What several models' graph memory does beside one model's."""

from __future__ import annotations

import pytest
import torch

from piecewise_core.capture.pooledmemory import PooledMemory
from piecewise_core.counters import Counters
from piecewise_core.errors import ConfigError
from piecewise_core.plugins import declared
from piecewise_core.testing import SimulatedPlatform


@pytest.fixture
def platform():
    return SimulatedPlatform()


def test_replays_on_another_stream_wait_for_those_before(platform, monkeypatch):
    waits, streams = [], iter("aabba")
    monkeypatch.setattr(platform.device, "synchronize", lambda: waits.append(1))
    monkeypatch.setattr(platform.device, "current_stream", lambda: next(streams))
    memory = PooledMemory(declared(platform), Counters(), lambda step: step())
    seen = []
    for _ in range(5):
        memory.in_order()
        seen.append(len(waits))
    assert seen == [0, 0, 1, 1, 2]


def test_another_device_is_refused_and_the_cpu_s_tensors_are_not(platform):
    platform.device_type = "cuda"
    memory = PooledMemory(declared(platform), Counters(), lambda step: step())
    memory.begins([torch.device("cpu")])
    memory.begins([torch.device("cuda:0"), torch.device("cpu")])
    memory.begins([torch.device("cuda:0")])
    with pytest.raises(ConfigError, match=r"on cuda:0, and this model is called with .*cuda:1"):
        memory.begins([torch.device("cuda:1")])
