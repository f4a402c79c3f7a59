"""Which sizes are kept when not all can be."""

from __future__ import annotations

import gc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from piecewise_core.capture.graphmemory import GraphMemory
from piecewise_core.capture.plans import CapturedPlans
from piecewise_core.capture.source import Source
from piecewise_core.counters import Counters
from piecewise_core.errors import CaptureFailed
from piecewise_core.plugins import declared
from piecewise_core.testing import SimulatedPlatform

SIZES = [(16,), (8,), (4,), (2,), (1,)]


def plans(mode="piecewise", limit=None, **knobs):
    return CapturedPlans(GraphMemory(declared(SimulatedPlatform(**knobs)), Counters(), limit), mode)


def source(size, work=torch.sin):
    x = torch.randn(size)

    def build(recorder):
        piece = recorder.piece("the piece", lambda t: (work(t),))
        return lambda tensors, bound, *sizes: piece(tensors[0])

    return Source(build, (x,), (), (), lambda tensors, sizes: x.copy_(tensors[0]))


def test_without_a_bound_all_sizes_are_kept():
    held = plans()
    assert held.budget(3, SIZES) == SIZES
    assert not held.dropped


@given(st.integers(0, 40), st.integers(1, 4), st.integers(1, 12))
def test_what_is_kept_fits_and_holds_both_ends(handles, each, count):
    sizes = [(n,) for n in range(count, 0, -1)]
    held = plans(max_graphs=handles)
    kept = held.budget(each, sizes)
    assert len(kept) == min(count, handles // each)
    assert len(set(kept)) == len(kept)
    assert set(kept) | set(held.dropped) == set(sizes)
    assert not set(kept) & set(held.dropped)
    if kept:
        assert kept[0] == sizes[0]
    if len(kept) > 1:
        assert kept[-1] == sizes[-1]


def test_captured_sizes_need_no_further_handles():
    held = plans(max_graphs=2)
    for sizes in held.budget(1, SIZES):
        held.capture(sizes, lambda: source(16))
    dropped = dict(held.dropped)
    assert held.budget(1, SIZES) == []
    assert held.dropped == dropped


def test_a_plan_is_captured_once_and_run():
    held = plans()
    plan = held.capture((4,), lambda: source(4))
    assert held.capture((4,), lambda: source(4)) is plan is held.get((4,))
    x = torch.randn(4)
    plan.prepare([x], (4,))
    plan.replay()
    torch.testing.assert_close(plan.outputs[0], x.sin())
    assert ((4,) in held, (8,) in held, len(held)) == (True, False, 1)


def test_an_error_that_is_not_captures_own_is_passed_on():
    def broken():
        raise KeyError("mine")

    with pytest.raises(KeyError):
        plans().capture((4,), broken)


def test_a_capture_in_a_capture_is_refused_and_not_noted():
    platform = SimulatedPlatform()
    held = CapturedPlans(GraphMemory(declared(platform), Counters(), None))
    driver, stream = platform.graphs, platform.device.new_stream()
    graph = driver.new_graph()
    with platform.device.stream(stream):
        driver.capture_begin(graph, driver.new_pool(), stream)
        with pytest.raises(CaptureFailed, match="inside of a capture"):
            held.capture((4,), lambda: source(4))
        driver.capture_end(graph)
    assert not held.dropped
    assert held.capture((4,), lambda: source(4)) is not None


def test_release_frees_everything_and_forgets_failures():
    held = plans(fail_capture_at=1)
    held.capture((8,), lambda: source(8))
    held.capture((4,), lambda: source(4))
    assert (set(held.dropped), len(held)) == ({(8,)}, 1)
    assert held.memory.bytes() > 0
    assert held.release() == [(4,)]
    assert (held.dropped, len(held), held.memory.bytes()) == ({}, 0, 0)


def test_the_limit_frees_what_was_used_longest_ago():
    one = plans()
    one.capture((4,), lambda: source(4))
    held = plans(limit=one.memory.bytes() + 4096)
    for size in (4, 3):
        held.capture((size,), lambda size=size: source(size))
    held.get((4,))
    held.capture((2,), lambda: source(2))
    assert ((4,) in held, (3,) in held, (2,) in held) == (True, False, True)
    assert "memory_limit" in held.dropped[3,]


def test_memory_that_is_out_before_the_capture_drops_the_size_too():
    def none():
        raise torch.OutOfMemoryError("no room for buffers")

    held = plans()
    assert held.capture((4,), none) is None
    assert "no room for buffers" in held.dropped[4,]


@pytest.fixture
def generations():
    """The generations that are collected, in order."""
    seen = []

    def note(phase, info):
        if phase == "start":
            seen.append(info["generation"])

    gc.callbacks.append(note)
    yield seen
    gc.callbacks.remove(note)


def test_old_garbage_is_collected_only_when_memory_runs_out_and_once(generations):
    plans().capture((4,), lambda: source(4))
    assert 2 not in generations
    tight = plans(memory_bytes=512)
    for size in (4096, 2048):
        tight.capture((size,), lambda size=size: source(size))
    assert generations.count(2) == 1
    assert set(tight.dropped) == {(4096,), (2048,)}


def test_a_release_walks_old_garbage_only_if_that_is_asked_for(generations):
    held = plans()
    held.capture((4,), lambda: source(4))
    assert held.release(later=True) == [(4,)]
    assert held.release() == []
    assert 2 not in generations
    held.release(collect=True)
    assert generations.count(2) == 1


def test_memory_held_by_garbage_is_had_back():
    platform = SimulatedPlatform(memory_bytes=4096)
    one = CapturedPlans(GraphMemory(declared(platform), Counters(), None))
    one.capture((1024,), lambda: source(1024))
    ring = [one]
    ring.append(ring)
    gc.collect()  # what survives is old
    del one, ring
    another = CapturedPlans(GraphMemory(declared(platform), Counters(), None))
    assert another.capture((1024,), lambda: source(1024)) is not None
    assert not another.dropped


def watched(monkeypatch, **knobs):
    """Plans, and the pools that are made and times that the cache is emptied, as they come."""
    platform = SimulatedPlatform(**knobs)
    seen = []
    new_pool, begin = platform.graphs.new_pool, platform.graphs.capture_begin

    def begun(*args):
        seen.append("capture")
        return begin(*args)

    monkeypatch.setattr(platform.graphs, "new_pool", lambda: seen.append("pool") or new_pool())
    monkeypatch.setattr(platform.graphs, "capture_begin", begun)
    monkeypatch.setattr(platform.device, "empty_cache", lambda: seen.append("empty"), raising=False)
    return CapturedPlans(GraphMemory(declared(platform), Counters(), None)), seen


def test_what_a_failed_capture_left_in_the_pool_goes_back_before_the_next(monkeypatch):
    """FAULTS 20. An allocator keeps a pool's free memory for that pool."""
    held, seen = watched(monkeypatch, memory_bytes=4096)
    assert held.capture((2048,), lambda: source(2048)) is None
    assert held.capture((64,), lambda: source(64)) is not None
    first = ["pool", "capture", "empty"]
    assert seen == [*first, "pool", "empty", "capture", "empty", "pool", "empty", "capture"]


def test_a_pool_that_graphs_use_stays_when_a_later_size_has_no_room(monkeypatch):
    held, seen = watched(monkeypatch, memory_bytes=4096)
    plan = held.capture((64,), lambda: source(64))
    assert held.capture((2048,), lambda: source(2048)) is None
    assert held.capture((32,), lambda: source(32)) is not None
    assert seen.count("pool") == 1
    x = torch.randn(64)
    plan.prepare([x], (64,))
    plan.replay()
    torch.testing.assert_close(plan.outputs[0], x.sin())


def test_with_memory_enough_no_cache_is_emptied(monkeypatch):
    held, seen = watched(monkeypatch)
    for size in (64, 32, 8):
        held.capture((size,), lambda size=size: source(size))
    assert seen == ["pool", "capture", "capture", "capture"]
