"""What static graphs take, known before they are captured; and a limit that is kept."""

from __future__ import annotations

import gc
import json

import pytest
import torch
from torch import nn

import piecewise_core as pw
from piecewise_core.capture.buffers import OwnedInputs
from piecewise_core.errors import ConfigError, NotTraced
from piecewise_core.frontend import estimating
from piecewise_core.testing import SimulatedPlatform


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x, mask=None):
        self.calls.add_(1)
        y = self.down(torch.softmax(self.up(x), -1))
        return y if mask is None else y * mask


def made(platform, model=None, **config):
    settings = {
        "dynamic": {0: {0: pw.Dim("rows", max=64)}},
        "splitting_ops": ("torch.softmax",),
        "capture_sizes": (1, 2, 4, 8, 16, 32),
        "compiler": "eager",
        **config,
    }
    return pw.compile(model or Block(), pw.Config(**settings), platform)


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


PLATFORMS = pytest.mark.parametrize("platform", ["cpu", SimulatedPlatform()], ids=["cpu", "sim"])


def taken(fast):
    stats = fast.stats()
    return stats.pool_bytes, stats.driver_bytes


@PLATFORMS
@pytest.mark.parametrize("mode", ["piecewise", "full"])
def test_what_is_estimated_is_what_is_taken(platform, mode):
    model = Block()
    splits = ("torch.softmax",) if mode == "piecewise" else ()
    fast = made(platform, model, graph_mode=mode, splitting_ops=splits)
    fast(torch.randn(3, 8))
    before, process = fast.stats(), pw.counters.captures
    found = fast.estimate()
    assert (found.error_bytes, found.dropped) == (0, ())
    assert fast.stats() == before  # nothing of it is left
    assert pw.counters.captures == process
    assert float(model.calls) == 1
    report = fast.warmup(progress=False)
    assert taken(fast) == (found.pool_bytes, found.driver_bytes)
    assert report.graph_bytes == found.bytes == sum(size.bytes for size in found.sizes)
    assert sum(size.graphs for size in found.sizes) == fast.stats().captures
    assert [size.sizes for size in found.sizes] == [(64,), (32,), (16,), (8,), (4,), (2,), (1,)]


@PLATFORMS
def test_other_sizes_may_be_asked_for_at_any_time(platform):
    fast = made(platform)
    fast.warmup(torch.randn(3, 8), progress=False)
    kept = fast(torch.full((4, 8), 0.5))
    expected, held = kept.clone(), taken(fast)
    found = fast.estimate((5, 48))
    assert torch.equal(kept, expected)  # lies in the model's own pool
    assert taken(fast) == held
    other = made(platform, capture_sizes=(5, 48), capture_max=False)
    other.warmup(torch.randn(3, 8), progress=False)
    assert taken(other) == (found.pool_bytes, found.driver_bytes)
    assert other.estimate().bytes == found.bytes
    x = torch.randn(4, 8)
    torch.testing.assert_close(fast(x), Block()(x))


def test_all_forms_of_calls_are_in_it_and_share_the_pool():
    fast = made(SimulatedPlatform())
    fast(torch.randn(3, 8))
    fast(torch.randn(3, 8), torch.ones(8))
    found = fast.estimate()
    assert {size.form for size in found.sizes} == {0, 1}
    assert "  form 1, 64: 2 graphs" in str(found)
    fast.warmup(progress=False)
    assert taken(fast) == (found.pool_bytes, found.driver_bytes)


@pytest.mark.parametrize("samples", [2, 4, 7])
def test_where_some_are_captured_the_truth_lies_within_the_bound(monkeypatch, samples):
    fast = made(SimulatedPlatform())
    fast(torch.randn(3, 8))
    truth = fast.estimate()
    monkeypatch.setattr(estimating, "_ALL", ())
    monkeypatch.setattr(estimating, "_SAMPLES", samples)
    found = fast.estimate()
    assert sum(size.measured for size in found.sizes) == samples
    assert abs(found.bytes - truth.bytes) <= found.error_bytes
    assert found.error_bytes >= estimating._GRAIN  # drivers give memory out in blocks
    assert [size.sizes for size in found.sizes] == [size.sizes for size in truth.sizes]
    assert found.input_bytes == truth.input_bytes
    assert ("worked out" in str(found)) == (samples < 7)


def as_on_a_gpu(monkeypatch):
    """Estimate for the simulated device what is estimated for one that has a driver."""
    monkeypatch.setattr(estimating, "_ALL", ())


class Keeps(SimulatedPlatform):
    """Its driver keeps the memory of graphs that are gone for those that come later."""

    def __init__(self) -> None:
        super().__init__()
        graphs = self.graphs
        asked, reset = graphs.driver_bytes, graphs.reset
        self.most = self.kept = 0

        def driver_bytes(pool):
            held = asked(pool)
            self.most = max(self.most, held)
            return max(held - self.kept, 0)

        def resets(graph):
            self.kept = self.most
            reset(graph)

        graphs.driver_bytes, graphs.reset = driver_bytes, resets


def test_what_the_driver_keeps_of_the_trial_is_not_counted_again(monkeypatch):
    as_on_a_gpu(monkeypatch)
    platform = Keeps()
    fast = made(platform)
    fast(torch.randn(3, 8))
    found = fast.estimate()
    assert platform.kept
    fast.warmup(progress=False)
    assert taken(fast) == (found.pool_bytes, found.driver_bytes)
    assert found.driver_bytes == 0


@pytest.mark.parametrize("mode", ["piecewise", "full"])
@pytest.mark.parametrize("recorded", [False, True])
def test_what_the_device_then_has_less_of(monkeypatch, mode, recorded):
    as_on_a_gpu(monkeypatch)
    platform = SimulatedPlatform()
    if recorded:
        settings = {"dynamic": {0: {0: pw.Dim("rows", max=64)}}, "capture_sizes": (1, 8, 32)}
        fast = pw.record(Block(), pw.Config(**settings), platform)
    else:
        splits = ("torch.softmax",) if mode == "piecewise" else ()
        fast = made(platform, graph_mode=mode, splitting_ops=splits)
    fast(torch.randn(3, 8))
    found = fast.estimate()
    free = platform.device.memory_info()[0]
    fast.warmup(progress=False)
    assert free - platform.device.memory_info()[0] == found.device_bytes > 0
    assert f"the device has {found.device_bytes} less" in str(found)


@pytest.mark.parametrize("recorded", [False, True])
def test_the_second_try_begins_without_the_buffers_of_the_first(monkeypatch, recorded):
    as_on_a_gpu(monkeypatch)
    platform, buffers = SimulatedPlatform(), []
    told = platform.device.memory_info

    def memory_info():
        buffers.append(sum(isinstance(each, OwnedInputs) for each in gc.get_objects()))
        return told()

    platform.device.memory_info = memory_info
    if recorded:
        settings = {"dynamic": {0: {0: pw.Dim("rows", max=64)}}, "capture_sizes": (1, 8, 32)}
        fast = pw.record(Block(), pw.Config(**settings), platform)
    else:
        fast = made(platform)
    fast(torch.randn(3, 8))
    buffers.clear()
    fast.estimate()
    none = buffers[0]
    assert buffers == [none, none + 1, none, none + 1]  # around each try


class Without:
    """``what``, but for a method that is optional."""

    def __init__(self, what, name):
        self.__what, self.__name = what, name

    def __getattr__(self, name):
        if name == self.__name:
            raise AttributeError(name)
        return getattr(self.__what, name)


def test_what_a_device_has_less_of_where_it_cannot_be_asked(monkeypatch):
    fast = made("cpu")
    fast(torch.randn(3, 8))
    assert fast.estimate().device_bytes is None
    as_on_a_gpu(monkeypatch)
    platform = SimulatedPlatform()
    platform.device = Without(platform.device, "memory_info")
    fast = made(platform)
    fast(torch.randn(3, 8))
    found = fast.estimate()
    assert found.device_bytes is None
    assert "less" not in str(found)


def test_input_buffers_are_told_apart_and_there_are_none_with_static_inputs():
    found = {}
    for inputs in ("copy", "static"):
        fast = made("cpu", inputs=inputs)
        fast(torch.randn(3, 8))
        found[inputs] = fast.estimate()
    assert found["copy"].input_bytes == 64 * 8 * 4
    assert found["static"].input_bytes == 0
    assert found["static"].bytes == found["copy"].bytes


def test_several_dims_and_none():
    two = made(
        "cpu",
        dynamic={0: {0: pw.Dim("rows", max=8), 1: pw.Dim("length", max=16)}},
        capture_sizes=((2, 4), (8, 16)),
        model=nn.Softmax(-1),
        splitting_ops=(),
    )
    two(torch.randn(3, 5))
    found = two.estimate([(2, 4), (4, 8)])
    assert [size.sizes for size in found.sizes] == [(4, 8), (2, 4)]
    one = made("cpu", dynamic={}, capture_sizes=(), graph_mode="full", splitting_ops=())
    one(torch.randn(3, 8))
    assert [size.sizes for size in one.estimate().sizes] == [()]
    assert "the one size: 1 graphs" in str(one.estimate())


def test_sizes_that_cannot_be_captured_are_named():
    fast = made(SimulatedPlatform(fail_capture_at=1))
    fast(torch.randn(3, 8))
    found = fast.estimate()
    assert len(found.dropped) == 1
    assert "not captured: " in str(found)
    assert len(json.loads(found.to_json())["sizes"]) == 6
    assert not fast.explain().dropped


@pytest.mark.parametrize(
    ("config", "sizes", "error", "said"),
    [
        ({}, (65,), ConfigError, "65 is above the max"),
        ({}, (0,), ConfigError, "capture_sizes"),
        ({}, ("4",), ConfigError, "capture_sizes"),
        ({}, ((4, 4),), ConfigError, "capture_sizes"),
        ({"graph_mode": "none"}, (4,), ConfigError, "captures no static graphs; set"),
        ({"capture_sizes": ()}, (4,), ConfigError, "captures no static graphs; set"),
    ],
)
def test_what_cannot_be_estimated_is_said(config, sizes, error, said):
    fast = made("cpu", **config)
    fast(torch.randn(3, 8))
    with pytest.raises(error, match=said):
        fast.estimate(sizes)


def test_before_a_first_call_nothing_is_known():
    with pytest.raises(NotTraced, match="estimate"):
        made("cpu").estimate()


@PLATFORMS
@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_a_memory_limit_is_kept_whatever_is_captured_when(platform, warm, share):
    whole = made(platform)
    whole(torch.randn(3, 8))
    limit = max(int(whole.estimate().bytes * share), 1)
    model = Block()
    fast = made(platform, model, memory_limit=limit)
    if warm:
        fast.warmup(torch.randn(3, 8), progress=False)
    for rows in (1, 64, 32, 2, 4, 8, 16, 1, 64):
        x = torch.randn(rows, 8)
        torch.testing.assert_close(fast(x), model(x))
        assert sum(taken(fast)) <= limit
    if share == 1.0 and warm:
        assert len(fast.explain().captured) == 7
    if share == 0.0:
        assert not fast.explain().captured
