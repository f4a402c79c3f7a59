"""Graphs whose memory went, under pw.compile: what they keep, and when they are let go."""

from __future__ import annotations

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

import piecewise_core as pw
from piecewise_core.errors import CaptureFailed
from piecewise_core.testing import SimulatedPlatform


@pytest.fixture(autouse=True)
def _inference():
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


class Cache:
    def __init__(self, keys):
        self.keys = keys


KEPT = []


@torch.library.custom_op("resting_tests::register", mutates_args=("keys",))
def register(keys: torch.Tensor) -> None:
    keys += 1
    KEPT[:] = [keys]


register.register_fake(lambda keys: None)


def add(x, cache):
    cache.keys[:, 0] += x.sum()
    return x + cache.keys.sum(0)


def compiled(fn=add, platform=None, graph_mode="full", **config):
    rows = {"x": {0: pw.Dim("n", 1, 8)}}
    made = {"compiler": "eager", "capture_sizes": (4,), "capture_max": False, **config}
    config = pw.Config(dynamic=rows, graph_mode=graph_mode, **made)
    return pw.compile(fn, config, platform or SimulatedPlatform())


def check(fast, cache, times=2):
    wanted = Cache(cache.keys.clone())
    for _ in range(times):
        x = torch.randn(4, 5)
        torch.testing.assert_close(fast(x, cache), add(x, wanted))
        torch.testing.assert_close(cache.keys, wanted.keys)


def test_after_seal_another_object_gets_the_graphs_that_the_first_one_had():
    fast = compiled()
    fast.warmup(torch.randn(4, 5), Cache(torch.randn(3, 5)))
    fast.seal()
    check(fast, Cache(torch.randn(3, 5)))
    assert fast.stats().calls["replayed"] == 2


def test_what_rests_makes_room_for_a_capture():
    fast, caches = compiled(platform=SimulatedPlatform(max_graphs=2)), []
    for _ in range(5):
        caches.append(Cache(torch.randn(3, 5)))
        check(fast, caches[-1])
    assert fast.stats().calls["replayed"] == 10


def test_a_mode_that_fails_before_another_leaves_what_rests():
    def fn(x, cache):
        return add(x, cache) + torch.rand(1) * 0

    drawing = SimulatedPlatform(generators=False)
    fast = compiled(fn, graph_mode="full_and_piecewise", platform=drawing)
    memory = [torch.zeros(3, 5), torch.zeros(3, 5)]
    captures = []
    for place in (0, 1, 0, 1):
        check(fast, Cache(memory[place].detach()))
        captures.append(fast.stats().captures)
    assert captures[0] > 0
    assert captures[1:] == [2 * captures[0]] * 3


@pytest.mark.parametrize("mode", ["full", "piecewise"])
def test_memory_that_an_operator_of_others_is_given_is_kept(mode):
    def fn(x, cache):
        torch.ops.resting_tests.register(cache.keys)
        return x + cache.keys.sum(0)

    cuts = {"splitting_ops": ["resting_tests::register"]} if mode == "piecewise" else {}
    fast, cache = compiled(fn, graph_mode=mode, **cuts), Cache(torch.zeros(3, 5))
    for _ in range(2):
        fast(torch.randn(4, 5), cache)
    memory = StorageWeakRef(cache.keys.untyped_storage())
    del cache
    kept = list(KEPT)
    fast(torch.randn(4, 5), Cache(torch.zeros(3, 5)))
    assert not memory.expired()
    assert kept[0].tolist() == torch.full((3, 5), 2.0).tolist()


def test_graphs_that_read_a_calls_own_inputs_do_not_rest():
    fast, memory = compiled(inputs="static", platform="cpu"), [torch.zeros(3, 5), torch.zeros(3, 5)]
    for place in (0, 1, 0, 1):
        cache, x = Cache(memory[place].detach()), torch.randn(4, 5)
        wanted = Cache(cache.keys.clone())
        torch.testing.assert_close(fast(x, cache), add(x, wanted))
    assert fast.stats().captures == 4


INSIDE = []


@torch.library.custom_op("resting_tests::calls", mutates_args=())
def calls(x: torch.Tensor) -> torch.Tensor:
    while INSIDE:
        INSIDE.pop()()
    return x + 1


calls.register_fake(torch.empty_like)


def test_an_operator_that_calls_the_model_with_another_object_leaves_the_call_its_own():
    def fn(x, cache):
        cache.keys[:, 0] += x.sum()
        return torch.ops.resting_tests.calls(x), cache.keys[1:], cache

    cut = ["resting_tests::calls"]
    fast = compiled(fn, graph_mode="piecewise", splitting_ops=cut)
    one, two = Cache(torch.zeros(3, 5)), Cache(torch.zeros(3, 5))
    x, inside = torch.ones(4, 5), []
    for cache in (one, two, one):
        fast(x, cache)
        INSIDE.append(lambda: inside.append(fast(x, two)))
        result = fast(x, cache)
        assert result[1].data_ptr() == cache.keys[1:].data_ptr()
        assert result[2] is cache
        assert inside.pop()[2] is two
    assert one.keys[:, 0].tolist() == [80] * 3
    assert two.keys[:, 0].tolist() == [100] * 3


def test_an_operator_that_calls_the_changed_model_is_refused_and_the_next_call_traces_it_anew():
    class Model(torch.nn.Module):
        scale = 2

        def forward(self, x):
            return torch.ops.resting_tests.calls(x) * self.scale

    model = Model()
    model.scale = 2
    fast = compiled(model, graph_mode="piecewise", splitting_ops=["resting_tests::calls"])
    x = torch.ones(4, 5)
    fast(x)

    def change():
        model.scale = 3
        with pytest.raises(CaptureFailed, match="would be traced again inside of a call"):
            fast(x)

    INSIDE.append(change)
    fast(x)
    for _ in range(2):
        assert fast(x).tolist() == model(x).tolist()
