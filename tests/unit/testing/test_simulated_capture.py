from __future__ import annotations

import gc
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import piecewise_core as pw
from piecewise_core.plugins.contract import check_platform
from piecewise_core.testing import SimulatedPlatform


@pytest.fixture(params=[torch.inference_mode, torch.no_grad], autouse=True)
def mode(request):
    with request.param():
        yield


class Block(torch.nn.Module):
    """A bit of everything: views, in-place writes, several results, a cache."""

    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.Linear(8, 24)
        self.down = torch.nn.Linear(8, 8)
        self.norm = torch.nn.LayerNorm(8)
        self.register_buffer("cache", torch.zeros(4, 8))

    def forward(self, x):
        q, k, v = self.up(self.norm(x)).chunk(3, -1)
        self.cache.add_(k)
        y = F.scaled_dot_product_attention(q[None], self.cache[None], v[None])[0]
        values, places = y.topk(2, -1)
        y = y.masked_fill(y > 1, 0.5).transpose(0, 1).reshape(4, 8)
        return self.down(y) + x, values, places, y[1:].t(), torch.stack([y, x])


def test_the_platform_keeps_the_contract():
    check_platform(SimulatedPlatform(), "simulated")
    check_platform(SimulatedPlatform(weak_refs=False, generators=False), "simulated")


def test_a_replay_equals_eager_on_fresh_inputs(bench):
    block, x = Block(), torch.randn(4, 8)
    graph, out = bench.capture(lambda: block(x))
    for _ in range(3):
        x.copy_(torch.randn(4, 8))
        before = block.cache.clone()
        bench.driver.replay(graph)
        after, got = block.cache.clone(), [t.clone() for t in out]
        block.cache.copy_(before)
        for have, want in zip(got, block(x), strict=True):
            assert torch.equal(have, want)
        assert torch.equal(block.cache, after)


def test_a_capture_executes_nothing(bench):
    x, y = torch.ones(3), torch.ones(3)
    state = torch.default_generator.get_state()

    def run():
        y.add_(x)
        z = torch.rand(3) + y
        z.mul_(2)
        x[1:].zero_()
        return z

    _, out = bench.capture(run)
    assert (x.tolist(), y.tolist()) == ([1, 1, 1], [1, 1, 1])
    assert out.isnan().all()
    assert torch.equal(torch.default_generator.get_state(), state)


def test_results_that_are_inputs_or_views_of_them_stay_so(bench):
    x = torch.ones(4)
    graph, (same, written, view) = bench.capture(lambda: (x, x.add_(1), x.view(2, 2)[0]))
    assert same is x
    assert written is x
    assert view.data_ptr() == x.data_ptr()
    bench.driver.replay(graph)
    assert x.tolist() == [2, 2, 2, 2]
    assert view.tolist() == [2, 2]


def test_addresses_stay_from_replay_to_replay(bench):
    x = torch.ones(4)
    graph, out = bench.capture(lambda: x * 2)
    address = out.data_ptr()
    for value in range(5):
        x.fill_(value)
        bench.driver.replay(graph)
        assert out.data_ptr() == address
        assert out.tolist() == [2 * value] * 4


def test_layouts_are_those_of_eager(bench):
    x = torch.randn(2, 6)

    def run():
        return x.t() * 2, (x + 1).t(), x.expand(3, 2, 6) + 0, torch.view_as_complex(x.view(2, 3, 2))

    graph, out = bench.capture(run)
    bench.driver.replay(graph)
    for have, want in zip(out, run(), strict=True):
        assert (have.shape, have.stride(), have.dtype) == (want.shape, want.stride(), want.dtype)
        assert torch.equal(have, want)


def test_conjugate_views_are_read_as_such(bench):
    x = torch.randn(3, dtype=torch.complex64)
    y = x.conj()
    graph, out = bench.capture(lambda: y * 2j)
    bench.driver.replay(graph)
    assert torch.equal(out, y * 2j)


def test_empty_tensors_and_empty_graphs_are_fine(bench):
    x = torch.empty(0, 4)
    graph, out = bench.capture(lambda: (x @ torch.ones(4, 4)).relu())
    bench.driver.replay(graph)
    assert out.shape == (0, 4)
    graph, _ = bench.capture(lambda: None)
    bench.driver.replay(graph)


def test_an_allocation_is_no_work(bench):
    x = torch.ones(3)
    graph, (buffer, out) = bench.capture(lambda: (torch.empty_strided((3,), (1,)), x + 1))
    assert buffer.isnan().all()
    buffer.fill_(7)
    bench.driver.replay(graph)
    assert (buffer.tolist(), out.tolist()) == ([7, 7, 7], [2, 2, 2])


def test_what_one_graph_writes_the_next_one_reads(bench):
    x = torch.arange(4)
    table = torch.randn(9, 2)
    first, ids = bench.capture(lambda: x * 2)
    second, out = bench.capture(lambda: table[ids])
    for start in (0, 1):
        x.copy_(torch.arange(4) + start)
        bench.driver.replay(first)
        bench.driver.replay(second)
        assert torch.equal(out, table[x * 2])


def test_a_capture_after_a_replay_sees_what_the_replay_wrote(bench):
    x = torch.tensor([1])
    first, ids = bench.capture(lambda: x + 1)
    bench.driver.replay(first)
    x.fill_(7)
    bench.driver.replay(first)
    table = torch.arange(9)
    second, out = bench.capture(lambda: table[ids])
    bench.driver.replay(second)
    assert out.tolist() == [8]


# Memory ---------------------------------------------------------------------------


def test_intermediates_share_memory_within_a_graph(bench):
    x = torch.randn(128)

    def run():
        y = x
        for _ in range(20):
            y = y + 1
        return y

    graph, out = bench.capture(run)
    bench.driver.replay(graph)
    assert torch.allclose(out, x + 20)
    assert bench.driver.pool_bytes(bench.pool) == 2 * 512


def test_smaller_captures_fit_in_the_memory_of_the_largest(bench):
    block = Block()
    sizes = [torch.randn(64, 8), torch.randn(32, 8), torch.randn(16, 8)]
    graphs, held = [], []
    for x in sizes:
        graph, out = bench.capture(lambda x=x: block.down(block.up(x)[:, :8].relu()))
        graphs.append((graph, bench.driver.weak_ref(out), x))
        del out
        held.append(bench.driver.pool_bytes(bench.pool))
    assert held[0] == held[-1]
    for graph, out, x in graphs:
        bench.driver.replay(graph)
        assert torch.equal(out, block.down(block.up(x)[:, :8].relu()))


def test_an_output_dropped_too_early_is_overwritten_by_the_next_capture(bench):
    x = torch.ones(4)
    first, out = bench.capture(lambda: x + 1)
    weak = bench.driver.weak_ref(out)
    del out
    second, other = bench.capture(lambda: x * 100)
    bench.driver.replay(first)
    assert weak.tolist() == [2, 2, 2, 2]
    bench.driver.replay(second)
    assert weak.tolist() == other.tolist() == [100] * 4


def test_an_intermediate_is_poison_after_a_replay(bench):
    x = torch.ones(4)
    seen = []

    def run():
        y = x + 1
        seen.append(bench.driver.weak_ref(y))
        return y * 2

    graph, out = bench.capture(run)
    bench.driver.replay(graph)
    assert out.tolist() == [4, 4, 4, 4]
    assert seen[0].isnan().all()


def test_an_input_that_was_freed_is_read_as_poison(bench):
    held = [torch.ones(4)]
    graph, out = bench.capture(lambda: held[0] + 1)
    bench.driver.replay(graph)
    assert out.tolist() == [2, 2, 2, 2]
    held.clear()
    gc.collect()
    bench.driver.replay(graph)
    assert out.isnan().all()


def test_a_parameter_whose_storage_was_replaced_is_read_as_poison(bench):
    x, layer = torch.ones(2, 4), torch.nn.Linear(4, 4)
    graph, out = bench.capture(lambda: layer(x))
    bench.driver.replay(graph)
    assert torch.equal(out, layer(x))
    layer.weight.mul_(2)
    bench.driver.replay(graph)
    assert torch.equal(out, layer(x))
    layer.weight.data = layer.weight.data.clone()
    bench.driver.replay(graph)
    assert out.isnan().all()


def test_an_input_that_was_resized_is_read_as_poison(bench):
    x = torch.ones(4)
    graph, out = bench.capture(lambda: x + 1)
    address = x.data_ptr()
    kept = [torch.ones(4) for _ in range(8)]
    x.resize_(1 << 20)
    assert x.data_ptr() != address
    bench.driver.replay(graph)
    assert out.isnan().all()
    assert kept


def test_a_weak_tensor_outside_of_pools_is_the_tensor(bench):
    x = torch.ones(4)
    assert bench.driver.weak_ref(x) is x


def test_a_weak_tensor_has_the_layout_of_its_original(bench):
    x = torch.randn(4, 6)
    graph, out = bench.capture(lambda: (x + 1)[1:, ::2].t())
    weak = bench.driver.weak_ref(out)
    bench.driver.replay(graph)
    assert (weak.shape, weak.stride()) == (out.shape, out.stride())
    assert weak.storage_offset() == out.storage_offset()
    assert torch.equal(weak, out)


def test_reset_frees_the_memory_and_outputs_that_are_kept_stay_valid(bench):
    x = torch.ones(4)
    graph, out = bench.capture(lambda: x + 1)
    bench.driver.replay(graph)
    bench.driver.reset(graph)
    bench.driver.reset(graph)
    assert bench.driver.driver_bytes(bench.pool) == 0
    assert out.tolist() == [2, 2, 2, 2]
    assert bench.driver.live_bytes(bench.pool) == 512
    del out
    assert bench.driver.pool_bytes(bench.pool) == 0
    free, total = bench.device.memory_info()
    assert free == total


def test_a_graph_that_is_garbage_gives_its_memory_back(bench):
    x = torch.ones(4)
    graph, out = bench.capture(lambda: x + 1)
    assert bench.driver.live_graphs == 1
    assert bench.device.memory_stats()["reserved_bytes"] == 512
    del graph, out
    gc.collect()
    assert bench.driver.live_graphs == 0
    assert bench.driver.pool_bytes(bench.pool) == 0


def test_nothing_grows_over_replays_and_recaptures(bench):
    block, x = Block(), torch.randn(4, 8)
    held = set()
    for _ in range(20):
        graph, out = bench.capture(lambda: block(x))
        for _ in range(5):
            bench.driver.replay(graph)
            held.add(bench.driver.pool_bytes(bench.pool))
        bench.driver.reset(graph)
        del graph, out
        assert bench.driver.pool_bytes(bench.pool) == 0
    assert len(held) == 1


# Modes of others -------------------------------------------------------------------


class Names(TorchDispatchMode):
    def __init__(self, on_op=lambda func: None):
        super().__init__()
        self.names, self.on_op = [], on_op

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._schema.name)
        self.on_op(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("outside", [True, False])
def test_a_dispatch_mode_sees_operators_before_the_device_does(bench, outside):
    x, names = torch.ones(4), Names()
    with names if outside else nullcontext():
        graph, out = bench.capture(lambda: _in(nullcontext() if outside else names, lambda: x + 1))
    assert names.names == ["aten::add"]
    bench.driver.replay(graph)
    assert names.names == ["aten::add"]
    assert out.tolist() == [2, 2, 2, 2]


def _in(context, fn):
    with context:
        return fn()


def test_a_replay_is_seen_by_no_mode(bench):
    x, names = torch.ones(4), Names()
    graph, _ = bench.capture(lambda: x + 1)
    with names:
        bench.driver.replay(graph)
    assert names.names == []


def test_a_mode_may_end_one_capture_and_begin_the_next_in_the_middle_of_an_operator(bench):
    x, driver = torch.ones(4), bench.driver
    graphs = [driver.new_graph(), driver.new_graph()]

    def cut(func):
        if func._schema.name == "aten::mul":
            driver.capture_end(graphs[0])
            driver.capture_begin(graphs[1], bench.pool, bench.stream)

    with bench.device.stream(bench.stream), Names(cut):
        driver.capture_begin(graphs[0], bench.pool, bench.stream)
        out = (x + 1) * 3
        driver.capture_end(graphs[1])
    assert torch._C._len_torch_dispatch_stack() == 0
    steps = [len([s for s in g.recording.steps if hasattr(s, "function")]) for g in graphs]
    assert steps == [1, 1]
    for graph in graphs:
        driver.replay(graph)
    assert out.tolist() == [6, 6, 6, 6]


# Any program -------------------------------------------------------------------------

UNARY = [torch.relu, torch.exp, lambda t: t.t(), lambda t: t * 2, lambda t: t.softmax(0)]
WRITES = [lambda t, u: t.add_(u), lambda t, u: t[0].copy_(u[1]), lambda t, u: t.mul_(0.5)]


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(0, 7), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=25
    ),
    st.integers(0, 2**16),
)
def test_any_program_replays_as_it_runs_eagerly(program, seed):
    torch.manual_seed(seed)
    platform = SimulatedPlatform()
    driver, device = platform.graphs, platform.device
    start = torch.rand(3, 3)

    def run(x):
        values = [x + 0, x]
        for op, left, right in program:
            t, u = values[left % len(values)], values[right % len(values)]
            if op < len(UNARY):
                values.append(UNARY[op](t))
            else:
                WRITES[op - len(UNARY)](t, u.clone())
            if len(values) > 6:
                del values[2]
        return values

    x = start.clone()
    graph, pool, stream = driver.new_graph(), driver.new_pool(), device.new_stream()
    with device.stream(stream):
        driver.capture_begin(graph, pool, stream)
        got = run(x)
        driver.capture_end(graph)
    assert torch.equal(x, start)
    for _ in range(2):
        x.copy_(start)
        driver.replay(graph)
        mine = [t.clone() for t in got]
        y = start.clone()
        for have, want in zip(mine, run(y), strict=True):
            assert torch.equal(have.nan_to_num(), want.nan_to_num())
        assert torch.equal(x.nan_to_num(), y.nan_to_num())


def test_a_number_written_by_index_is_a_number_to_the_device(bench):
    x, index = torch.zeros(4), torch.tensor([0, 2])

    def fn():
        x[index] = 3.0
        return x + 1

    graph, out = bench.capture(fn)
    x.zero_()
    junk = [torch.tensor(7.0) for _ in range(50)]  # takes the memory that was freed
    bench.driver.replay(graph)
    assert len(junk) == 50
    assert out.tolist() == [4.0, 1.0, 4.0, 1.0]


@pytest.mark.parametrize("make", [pw.compile, pw.record])
def test_a_composite_operator_runs_as_a_device_runs_it(make):
    """A dropout that drops nothing is its input, which is written to afterwards."""

    def model(x):
        same = torch.nn.functional.dropout(x, 0.5, False)
        x.mul_(3)
        return same, x

    more = {} if make is pw.record else {"compiler": "eager"}
    config = pw.Config(dynamic={"x": {0: pw.Dim("rows", 1, 8)}}, capture_sizes=[4], **more)
    fast = make(model, config, SimulatedPlatform())
    for _ in range(2):
        x = torch.ones(4, 2)
        same, _ = fast(x)
        assert torch.equal(same, torch.full((4, 2), 3.0))
        assert torch.equal(x, same)
