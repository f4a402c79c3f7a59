"""What goes wrong with static graphs, and that the rest goes on. Rows of FAULTS in brackets."""

from __future__ import annotations

import copy
import gc
import logging
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import piecewise_core as pw
from piecewise_core.errors import CaptureFailed
from piecewise_core.testing import SimulatedPlatform

N = pw.Dim("n", 1, 16)
SIZES = (1, 4, 8, 16)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.b = nn.Linear(8, 8)
        self.register_buffer("cache", torch.zeros(16, 8))

    def forward(self, x):
        x = self.a(x)
        self.cache[: x.shape[0]].add_(x)
        return self.b(torch.softmax(x, -1)) * 2


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def compiled(model, platform, **config):
    settings = {
        "dynamic": {"x": {0: N}},
        "splitting_ops": ("torch.softmax",),
        "capture_sizes": SIZES,
        "compiler": "eager",
        **config,
    }
    return pw.compile(model, pw.Config(**settings), platform=platform)


def serves(fast, model, sizes=(*SIZES, 3)):
    for size in sizes:
        x = torch.randn(size, 8)
        torch.testing.assert_close(fast(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("nth", range(1, 9))
def test_a_failed_capture_drops_its_size_and_nothing_else(nth):
    """[20] Each size has two graphs, the largest comes first."""
    platform = SimulatedPlatform(fail_capture_at=nth)
    model = Block()
    reference = copy.deepcopy(model)
    fast = compiled(model, platform)
    stream = platform.device.current_stream()
    report = fast.warmup(torch.randn(3, 8), progress=False)
    lost = sorted(SIZES, reverse=True)[(nth - 1) // 2]
    assert report.captured == tuple((s,) for s in sorted(SIZES, reverse=True) if s != lost)
    (why,) = report.dropped
    assert why.startswith(f"({lost},)")
    assert "region 0 piece" in why
    assert platform.device.current_stream() is stream
    assert not platform.graphs.is_capturing()
    assert platform.graphs.live_graphs == 6
    torch.testing.assert_close(model.cache, reference.cache)
    serves(fast, reference)
    assert fast.stats().calls["replayed"] == 3
    assert f"not captured: n {lost}: " in str(fast.explain())


def test_a_dropped_size_is_captured_by_restore():
    """[20]"""
    model = Block()
    fast = compiled(model, SimulatedPlatform(fail_capture_at=1))
    fast.warmup(torch.randn(3, 8), progress=False)
    fast.release()
    fast.restore()
    assert len(fast.explain().captured) == 4
    assert not fast.explain().dropped


class Wide(nn.Module):
    """Its captures hold 8 KiB for each row."""

    def forward(self, x):
        return torch.softmax((x[:, :, None] * torch.ones(256)).sin(), -1).sum((1, 2))


def test_out_of_memory_keeps_the_sizes_that_have_room():
    """[20]"""
    model = Wide()
    roomy = compiled(model, SimulatedPlatform(), capture_sizes=(8,), capture_max=False)
    roomy.warmup(torch.randn(3, 8), progress=False)
    room = roomy.stats().pool_bytes
    platform = SimulatedPlatform(memory_bytes=int(room * 1.2))
    fast = compiled(model, platform)
    report = fast.warmup(torch.randn(3, 8), progress=False)
    assert report.captured == ((8,), (4,), (1,))
    (why,) = report.dropped
    assert "(16,)" in why
    assert "bytes wanted" in why
    assert "memory" in why
    assert platform.device.memory_stats()["reserved_bytes"] <= int(room * 1.2)
    serves(fast, model)
    assert fast.stats().calls["replayed"] == 3


@pytest.mark.parametrize("told", [True, False])
def test_graph_handles_that_run_out_leave_what_there_is(told):
    """[21] Asked beforehand the first and last size are kept; else the largest are."""
    platform = SimulatedPlatform(max_graphs=4)
    platform.graphs.tells_budget = told
    model = Block()
    fast = compiled(model, platform)
    report = fast.warmup(torch.randn(3, 8), progress=False)
    assert report.captured == (((16,), (1,)) if told else ((16,), (8,)))
    assert len(report.dropped) == 2
    again = fast.warmup(progress=False)
    assert again.captured == report.captured
    assert again.dropped == report.dropped
    serves(fast, copy.deepcopy(model))
    assert fast.stats().calls["replayed"] == 2


def test_a_full_graph_needs_one_handle_a_size():
    """[21]"""
    fast = compiled(Block(), SimulatedPlatform(max_graphs=4), graph_mode="full")
    assert len(fast.warmup(torch.randn(3, 8), progress=False).captured) == 4


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("nth", [None, 1])
def test_the_collector_is_as_it_was(enabled, nth):
    """[22]"""
    fast = compiled(Block(), SimulatedPlatform(fail_capture_at=nth))
    try:
        (gc.enable if enabled else gc.disable)()
        fast.warmup(torch.randn(3, 8), progress=False)
        assert gc.isenabled() is enabled
    finally:
        gc.enable()


def inside_a_capture(platform, work):
    """Run ``work`` while a capture of the user's own runs."""
    driver, device = platform.graphs, platform.device
    graph, stream = driver.new_graph(), device.new_stream()
    with device.stream(stream):
        driver.capture_begin(graph, driver.new_pool(), stream)
        try:
            return work()
        finally:
            driver.capture_end(graph)


def test_a_capture_inside_a_capture_is_refused_and_drops_nothing():
    """[23] The outer capture is not spoiled: its end succeeds."""
    platform, model = SimulatedPlatform(), Block()
    fast = compiled(model, platform)
    fast(torch.randn(3, 8))
    x = torch.randn(4, 8)
    with pytest.raises(CaptureFailed, match=r"\(4,\).*inside of a capture"):
        inside_a_capture(platform, lambda: fast(x))
    assert not fast.explain().dropped
    serves(fast, copy.deepcopy(model))
    assert fast.stats().calls["replayed"] == 4


@pytest.mark.parametrize("traced", [False, True])
def test_a_trace_or_compilation_inside_a_capture_is_refused(traced):
    """[23]"""
    platform, model = SimulatedPlatform(), Block()
    fast = compiled(model, platform, compile_ranges_endpoints=(8,))
    if traced:
        fast(torch.randn(3, 8))
        fast(torch.randn(3, 8))
    x = torch.randn(9, 8)
    with pytest.raises(CaptureFailed, match=r"would be (traced|compiled).*inside of a capture"):
        inside_a_capture(platform, lambda: fast.warmup(x, progress=False))
    serves(fast, copy.deepcopy(model), (9, 3))


def test_an_operator_that_waits_for_the_device_names_piece_op_and_advice():
    """[24]"""

    def fn(x):
        kept = x.clone()
        kept[x > 0] = x.sum()
        return torch.softmax(x, -1) + kept.sum()

    fast = compiled(fn, SimulatedPlatform(), capture_sizes=(4,), capture_max=False)
    report = fast.warmup(torch.randn(3, 8), progress=False)
    (why,) = report.dropped
    assert "region 0 piece" in why
    assert "index_put" in why
    assert "splitting_ops" in why


def test_random_numbers_advance_at_every_replay():
    """[25] With generators, and as splitting ops on a device that cannot advance them."""

    def fn(x):
        return torch.softmax(x.sin(), -1) + torch.rand_like(x)

    for generators, graphs in ((True, 2), (False, 3)):
        fast = compiled(
            fn, SimulatedPlatform(generators=generators), capture_sizes=(4,), capture_max=False
        )
        state = torch.get_rng_state()
        fast.warmup(torch.zeros(3, 8), progress=False)
        assert torch.equal(torch.get_rng_state(), state)
        x = torch.randn(4, 8)
        torch.manual_seed(6)
        got = [fast(x).clone() for _ in range(3)]
        torch.manual_seed(6)
        for each in got:
            torch.testing.assert_close(each, fn(x))
        assert fast.stats().calls["replayed"] == 3
        assert fast.stats().captures <= graphs


def test_dropout_that_is_off_is_no_splitting_op():
    """[25]"""

    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            return torch.softmax(self.drop(x.sin()), -1) + 1

    for train, pieces in ((False, 2), (True, 3)):
        fast = compiled(Dropping().train(train), SimulatedPlatform(generators=False))
        fast(torch.randn(4, 8))
        splitting = [p for p in fast.explain().regions[0].pieces if p.kind == "splitting"]
        ops = {op for piece in splitting for op in piece.ops}
        assert any("dropout" in op for op in ops) is train
        assert fast.stats().compilable_pieces <= pieces


def test_a_full_graph_with_random_numbers_is_refused_where_they_would_repeat():
    """[25]"""

    def fn(x):
        return torch.softmax(x.sin(), -1) + torch.rand_like(x)

    whole = compiled(fn, SimulatedPlatform(generators=False), graph_mode="full")
    report = whole.warmup(torch.randn(3, 8), progress=False)
    assert report.captured == ()
    assert "same" in report.dropped[0]
    both = compiled(fn, SimulatedPlatform(generators=False), graph_mode="full_and_piecewise")
    assert len(both.warmup(torch.randn(3, 8), progress=False).captured) == 4


def test_a_memory_limit_frees_the_sizes_used_longest_ago():
    """[19]"""
    model = Block()
    whole = compiled(model, SimulatedPlatform())
    report = whole.warmup(torch.randn(3, 8), progress=False)
    limit = report.graph_bytes - 2 * 4096  # one size's graphs less
    fast = compiled(model, SimulatedPlatform(), memory_limit=limit)
    reference = copy.deepcopy(model)
    serves(fast, reference, (16, 8, 4, 16, 1, 16, 8, 4, 1))
    assert fast.explain().captured == ("n 1", "n 4", "n 16")
    (why,) = fast.explain().dropped
    assert why.startswith("n 8: evicted")
    assert "memory_limit" in why
    stats = fast.stats()
    assert stats.pool_bytes + stats.driver_bytes <= limit
    assert stats.calls["replayed"] == 8


def test_a_limit_with_room_for_nothing_serves_without_graphs():
    """[19]"""
    model = Block()
    fast = compiled(model, SimulatedPlatform(), memory_limit=100)
    report = fast.warmup(torch.randn(3, 8), progress=False)
    assert (report.captured, report.graph_bytes) == ((), 0)
    serves(fast, copy.deepcopy(model))
    assert fast.stats().calls["replayed"] == 0


def test_memory_that_is_kept_from_a_capture_is_told(caplog):
    """FAULTS 4."""
    keep: list[torch.Tensor] = []
    runs: list[int] = []

    def fn(x):
        made = x * 2
        runs.append(1)
        if len(runs) % 2 == 0:  # warm-up is the first run, capture the second
            keep.append(made)
        return made + 1

    config = pw.Config(dynamic={"x": {0: N}}, capture_sizes=(4,), capture_max=False)
    fast = pw.record(fn, config, platform=SimulatedPlatform())
    with caplog.at_level(logging.WARNING, "piecewise_core"):
        fast.warmup(torch.randn(4, 8), progress=False)
    (told,) = [r.getMessage() for r in caplog.records]
    assert "(4,)" in told
    assert "Allocate it before capture" in told
    assert "splitting_ops" in told
    keep.clear()


def test_a_driver_may_change_its_graphs_before_every_replay():
    platform = SimulatedPlatform()
    told = []
    platform.graphs.before_replay = lambda graph, call: told.append((graph, call))
    fast = compiled(Block(), platform=platform)
    fast.warmup(torch.randn(3, 8), progress=False)
    x = torch.randn(4, 8)
    fast(x)
    plan = fast._pw_session.forms[0].capturing.plans.get((4,))
    assert [graph for graph, _ in told] == list(plan.graphs)
    assert {(call.captured, call.sizes) for _, call in told} == {((4,), (4,))}
    assert all(call.inputs[0] is x for _, call in told)
