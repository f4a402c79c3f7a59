"""Replays over the same buffers, called on several streams."""

from __future__ import annotations

import contextlib

import pytest

from piecewise_core.capture.streamorder import stream_order
from piecewise_core.capture.torch_runtime import TorchRuntime
from piecewise_core.plugins import declared
from piecewise_core.protocols import NoStreams
from piecewise_core.testing import SimulatedPlatform


@pytest.fixture
def platform():
    return SimulatedPlatform()


def test_the_host_waits_where_the_stream_is_another_than_before(platform, monkeypatch):
    waits, streams = [], iter("aabba")
    monkeypatch.setattr(platform.device, "synchronize", lambda: waits.append(1))
    monkeypatch.setattr(platform.device, "current_stream", lambda: next(streams))
    in_order, seen = stream_order(declared(platform)), []
    for _ in range(5):
        in_order()
        seen.append(len(waits))
    assert seen == [0, 0, 1, 1, 2]


def test_nothing_waits_in_a_capture_and_its_stream_is_not_the_last(platform, monkeypatch):
    waits, streams = [], iter("abab")
    monkeypatch.setattr(platform.device, "synchronize", lambda: waits.append(1))
    monkeypatch.setattr(platform.device, "current_stream", lambda: next(streams))
    in_order = stream_order(declared(platform))
    in_order()
    monkeypatch.setattr(platform.graphs, "is_capturing", lambda: True)
    in_order()
    monkeypatch.setattr(platform.graphs, "is_capturing", lambda: False)
    in_order()
    assert waits == []
    in_order()
    assert waits == [1]


def test_a_device_without_streams_is_asked_nothing(platform):
    class Board(NoStreams):
        """Its work is done when the call returns."""

    platform.device = Board()
    assert stream_order(declared(platform)) is None


def test_a_runtime_s_own_way_comes_first(platform):
    platform.device.stream_order = lambda: print
    assert stream_order(declared(platform)) is print


class Module:
    """A torch device module whose streams note for whom they wait."""

    __name__ = "torch.acme"

    def __init__(self, kind):
        self.Stream, self.now, self.capturing, self.waits = kind, None, set(), []

    def current_stream(self):
        return self.now

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.now = self.now, stream
        yield
        self.now = before

    def is_current_stream_capturing(self):
        return self.now in self.capturing

    def synchronize(self):
        self.waits.append("all")


class Stream:
    def __init__(self, name, waits):
        self.name, self.waits = name, waits

    def wait_stream(self, other):
        self.waits.append(f"{self.name} for {other.name}")


def test_a_torch_device_has_streams_wait_for_each_other():
    module = Module(Stream)
    a, b = (Stream(name, module.waits) for name in "ab")
    in_order = TorchRuntime(module).stream_order()
    for module.now in (a, a, b, b, a):
        in_order()
    assert module.waits == ["b for a", "a for b"]
    assert module.now is a


def test_neither_a_capturing_stream_waits_nor_any_for_it():
    module = Module(Stream)
    a, b = (Stream(name, module.waits) for name in "ab")
    in_order = TorchRuntime(module).stream_order()
    module.now = a
    in_order()
    module.capturing = {b}
    module.now = b
    in_order()
    module.capturing = {a}
    in_order()
    assert module.waits == []
    module.capturing, module.now = set(), a
    in_order()
    assert module.waits == ["a for b"]


def test_streams_that_cannot_wait_have_the_host_wait():
    module = Module(object)
    a, b = object(), object()
    in_order = TorchRuntime(module).stream_order()
    for module.now in (a, b, b):
        in_order()
    assert module.waits == ["all"]
