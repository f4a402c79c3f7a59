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


def test_another_device_is_refused_and_the_cpu_s_tensors_are_not(platform):
    platform.device_type = "cuda"
    memory = PooledMemory(declared(platform), Counters(), lambda step: step())
    memory.begins([torch.device("cpu")])
    memory.begins([torch.device("cuda:0"), torch.device("cpu")])
    memory.begins([torch.device("cuda:0")])
    with pytest.raises(ConfigError, match=r"on cuda:0, and this model is called with .*cuda:1"):
        memory.begins([torch.device("cuda:1")])
