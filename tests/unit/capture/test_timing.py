"""Seconds by the device's timer where it has one, else by the clock."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from piecewise_core.capture.timing import seconds_of
from piecewise_core.capture.torch_runtime import TorchRuntime


class Module:
    """A torch device module whose clock moves by what runs. ``log``: what was asked of it."""

    __name__ = "torch.stand"

    def __init__(self):
        self.log, self.now = [], 0.0
        module = self

        class Event:
            def __init__(self, *, enable_timing):
                assert enable_timing

            def record(self):
                module.log.append("record")
                self.at = module.now

            def synchronize(self):
                module.log.append("wait")

            def elapsed_time(self, end):
                return end.at - self.at

        self.Event = Event

    def current_stream(self): ...
    def stream(self, stream): ...
    def synchronize(self): ...

    Stream = None


def test_a_torch_device_tells_seconds_by_its_events():
    module = Module()

    def run():
        module.log.append("run")
        module.now += 6.0  # milliseconds

    assert TorchRuntime(module).elapsed(run) == pytest.approx(0.006)
    assert module.log == ["record", "run", "record", "wait"]


def test_a_module_without_events_has_no_timer():
    module = Module()
    del module.Event
    assert not hasattr(TorchRuntime(module), "elapsed")


def test_times_are_of_one_run():
    ran = []
    device = SimpleNamespace(synchronize=lambda: ran.append("wait"))
    timed = SimpleNamespace(device=device, elapsed=lambda run: (run(), 8.0)[1])
    assert seconds_of(timed, lambda: ran.append("run"), 4) == 2.0
    assert ran == ["wait", *["run"] * 4]
    clocked = SimpleNamespace(device=device, elapsed=None)
    assert seconds_of(clocked, lambda: None) >= 0
