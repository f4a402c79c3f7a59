"""A launch goes to its own device, whichever is current, and as directly as Triton permits."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch

from piecewise_cuda.launching import bare_launch

GRID = (7, 1, 1)


class Device:
    """Which device is current, and what was launched on which."""

    def __init__(self) -> None:
        self.current = 0
        self.seen = []

    def launch(self, *given):
        self.seen.append((self.current, given))

    @contextlib.contextmanager
    def switch(self, index):
        before, self.current = self.current, index
        yield
        self.current = before


class Compiled(dict):
    """A compiled kernel as Triton 3.6 has it; ``launcher`` is what launches it."""

    function, packed_metadata = "function", "packed"

    def __init__(self, device, **launcher) -> None:
        super().__init__({GRID: lambda *given: device.launch("forwarded", *given)})
        settings = {
            "launch": device.launch,
            "launch_cooperative_grid": "cooperative",
            "launch_pdl": "pdl",
            "global_scratch_size": 0,
            "profile_scratch_size": 0,
        }
        self.run = SimpleNamespace(**{**settings, **launcher})


@pytest.fixture
def device(monkeypatch):
    monkeypatch.setattr(
        torch._C, "_cuda_getCurrentRawStream", lambda index: f"stream {index}", raising=False
    )
    return Device()


def launch_of(compiled, device, index=1):
    return bare_launch(compiled, GRID, index, lambda: device.current, device.switch)


def test_another_current_device_is_left_for_the_launch_and_comes_back(device):
    launch = launch_of(Compiled(device), device)
    launch("a", 2)
    device.current = 1
    launch("b")
    assert [(where, given[-1]) for where, given in device.seen] == [(1, 2), (1, "b")]
    device.current = 0
    launch()
    assert device.current == 0


def test_the_c_function_is_called_with_all_that_triton_gives_it(device):
    launch_of(Compiled(device), device, index=0)("a", 2)
    front = (*GRID, "stream 0", "function", "cooperative", "pdl", None, None, "packed")
    assert device.seen == [(0, (*front, None, None, None, "a", 2))]


@pytest.mark.parametrize(
    "other", [{"global_scratch_size": 16}, {"profile_scratch_size": 16}, {"launch": None}]
)
def test_what_needs_more_goes_tritons_own_way(device, other):
    launch_of(Compiled(device, **other), device, index=0)("a", 2)
    assert device.seen == [(0, ("forwarded", "a", 2))]


def test_an_unknown_launcher_is_left_to_triton(device):
    compiled = Compiled(device)
    del compiled.run.launch_pdl
    launch_of(compiled, device, index=0)("a")
    assert device.seen == [(0, ("forwarded", "a"))]
