"""Counters: how they add up, and that a compiled model's tell exactly what happened."""

from __future__ import annotations

import dataclasses
import gc
import threading
import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import piecewise_core as pw
from piecewise_core.counters import CALL_KINDS, Counters, ProcessCounters, Stats

LIBRARY = "unit_counters"
ROWS = pw.Dim("rows", 0, 64)


@torch.library.custom_op(f"{LIBRARY}::attend", mutates_args=())
def attend(x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x)


@attend.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(8, 8)
        self.after = nn.Linear(8, 8)

    def forward(self, x):
        return x + self.after(attend(self.before(x)))


class Decoder(nn.Module):
    """As many layers as asked for, each cut at its attention."""

    def __init__(self, layers: int = 12) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(layers))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def compiled(model, **config):
    settings = {
        "dynamic": {"x": {0: ROWS}},
        "splitting_ops": (f"{LIBRARY}::attend",),
        "compiler": "eager",
        **config,
    }
    return pw.compile(model, pw.Config(**settings), "cpu")


# How they add up -----------------------------------------------------------------------------


def test_fresh_stats_are_zero_for_every_counter_and_kind_of_call():
    stats = Stats()
    assert {f.name for f in dataclasses.fields(Stats)} == set(stats.to_dict())
    assert all(not v for k, v in stats.to_dict().items() if k != "calls")
    assert stats.calls == dict.fromkeys(CALL_KINDS, 0)
    assert CALL_KINDS == ("replayed", "compiled_size", "compiled_range", "general", "eager")


def test_stats_are_frozen_and_do_not_follow_the_counters():
    counters = Counters()
    counters.add("graphs")
    stats = counters.stats()
    counters.add("graphs", 2)
    counters.unsized["eager"] += 1
    assert (stats.graphs, stats.calls["eager"]) == (1, 0)
    assert (counters.stats().graphs, counters.stats().calls["eager"]) == (3, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.graphs = 5


def test_stats_add_up_field_by_field_and_kind_by_kind():
    one = Stats(graphs=1, compilations=2, calls={**Stats().calls, "general": 3})
    two = Stats(graphs=10, pool_bytes=7, calls={**Stats().calls, "general": 1, "eager": 1})
    total = one + two
    assert (total.graphs, total.compilations, total.pool_bytes) == (11, 2, 7)
    assert (total.calls["general"], total.calls["eager"]) == (4, 1)
    assert one + Stats() == one


def test_threads_that_add_at_once_lose_nothing():
    counters = Counters()

    def work() -> None:
        for _ in range(2000):
            counters.add("compilations")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counters.stats().compilations == 8000


def test_the_process_counts_live_and_dead_models_alike():
    process = ProcessCounters()
    first, second = Counters(), Counters()
    process.watch(first)
    process.watch(second)
    first.add("graphs", 3)
    first.unsized["general"] += 2
    second.add("graphs", 4)
    assert process.graphs == 7
    del first
    gc.collect()
    assert process.graphs == 7
    assert process.stats().calls["general"] == 2
    second.add("graphs")
    assert process.graphs == 8


def test_the_process_counters_have_the_counters_as_attributes_and_no_others():
    assert ProcessCounters().compilations == 0
    assert ProcessCounters().calls == Stats().calls
    with pytest.raises(AttributeError):
        _ = ProcessCounters().nonsense
    with pytest.raises(AttributeError):
        _ = ProcessCounters()._hidden


def test_process_counters_include_a_compiled_model_and_keep_what_it_counted():
    before = pw.counters.stats()
    fast = compiled(Decoder(2))
    for size in (3, 4):
        fast(torch.randn(size, 8))
    between = pw.counters.stats()
    assert between.graphs == before.graphs + 1
    assert between.compilations == before.compilations + 3
    assert sum(between.calls.values()) == sum(before.calls.values()) + 2
    del fast
    gc.collect()
    assert pw.counters.stats() == between


def test_a_compiled_model_is_freed_with_its_traces_and_artifacts():
    fast = compiled(Decoder(2))
    fast(torch.randn(3, 8))
    session = fast._pw_session
    gone = [weakref.ref(session), weakref.ref(session.regions[0]), weakref.ref(session.scheduler)]
    del fast, session
    gc.collect()
    assert [ref() for ref in gone] == [None, None, None]


# What a model's tell ----------------------------------------------------------------------------


def test_a_decoder_of_12_layers_has_25_pieces_of_which_3_are_compiled():
    model = Decoder(12)
    fast = compiled(model)
    for size in (5, 0, 1, 64):
        x = torch.randn(size, 8)
        torch.testing.assert_close(fast(x), model(x))
    stats = fast.stats()
    assert (stats.graphs, stats.pieces, stats.compilable_pieces) == (1, 25, 13)
    assert (stats.unique_pieces, stats.compilations, stats.dedup_hits) == (3, 3, 10)


@pytest.mark.parametrize("layers", [4, 12, 24])
def test_compilations_do_not_grow_with_layers(layers):
    fast = compiled(Decoder(layers), compile_ranges_endpoints=(8, 32))
    fast.warmup(torch.randn(3, 8), progress=False)
    stats = fast.stats()
    assert stats.pieces == 2 * layers + 1
    assert (stats.unique_pieces, stats.compilations) == (3, 9)
    assert stats.dedup_hits == 3 * (layers + 1 - 3)


def test_three_compilations_per_range_and_exact_size():
    fast = compiled(Decoder(), compile_ranges_endpoints=(8, 32), compile_sizes=(1, 16))
    report = fast.warmup(torch.randn(3, 8), progress=False)
    assert report.targets == 5
    assert fast.stats().compilations == 15
    assert report.compilations == 15
    assert report.dedup_hits == fast.stats().dedup_hits == 50


def test_calls_are_counted_by_kind_and_sum_to_the_calls_made():
    fast = compiled(
        Decoder(2),
        compile_ranges_endpoints=(8, 32),
        compile_sizes=(4,),
        out_of_range="eager",
    )
    sizes = [5, 5, 4, 9, 33, 100, 4, 0, 65, 1]
    for size in sizes:
        fast(torch.randn(size, 8))
    assert fast.stats().calls == {
        "replayed": 0,
        "compiled_size": 2,
        "compiled_range": 5,
        "general": 1,
        "eager": 2,
    }


def test_refused_calls_are_not_calls_made():
    fast = compiled(Decoder(2))
    fast(torch.randn(3, 8))
    for wrong in (torch.randn(65, 8), torch.randn(3, 9), torch.randn(3, 8, device="meta")):
        with pytest.raises(pw.errors.PiecewiseError):
            fast(wrong)
    assert sum(fast.stats().calls.values()) == 1


def test_restrided_inputs_are_counted_one_by_one():
    fast = compiled(lambda x, y: attend(x + y), dynamic={"x": {0: ROWS}, "y": {0: ROWS}})
    rows, columns = torch.randn(5, 8), torch.randn(8, 5).t()
    for x, y, restrided in ((rows, rows, 0), (columns, rows, 1), (columns, columns, 3)):
        fast(x, y)
        assert fast.stats().restrided == restrided


def test_two_regions_count_twice():
    def fn(x):
        return attend(x * 2) + 1 if x.shape[0] < 10 else attend(x * 3) + 1

    fast = compiled(fn, compile_ranges_endpoints=(9,))
    fast.warmup(torch.randn(3, 8), progress=False)
    stats = fast.stats()
    assert (stats.graphs, stats.pieces, stats.compilable_pieces) == (2, 6, 4)


def test_a_piece_that_two_regions_share_is_distinct_once_and_compiled_per_range():
    def fn(x):
        y = attend(x * 2)
        return y + 1 if x.shape[0] < 10 else y * 3

    fast = compiled(fn, compile_ranges_endpoints=(9,))
    fast.warmup(torch.randn(3, 8), progress=False)
    stats = fast.stats()
    assert (stats.compilable_pieces, stats.unique_pieces, stats.compilations) == (4, 3, 4)
