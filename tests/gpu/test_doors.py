"""torch.compile's door on a GPU: graphs, their memory, and numbers next to eager's."""

from __future__ import annotations

import gc
import itertools

import pytest
import torch

import piecewise_core as pw

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch.manual_seed(0)
    torch._dynamo.reset()
    with torch.inference_mode():
        yield
    torch._dynamo.reset()


class Block(torch.nn.Module):
    """Attention and a product, with a residual."""

    def __init__(self, width=64):
        super().__init__()
        self.mix, self.out = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)

    def forward(self, x):  # [batch, length, width]
        q, k, v = (p.unflatten(-1, (4, -1)).transpose(1, 2) for p in self.mix(x).chunk(3, -1))
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.transpose(1, 2).flatten(2))


def blocks(n=2):
    with torch.inference_mode(False), torch.device("cuda"):
        return torch.nn.Sequential(*(Block() for _ in range(n))).eval()


def close(got, wanted):
    torch.testing.assert_close(got, wanted, rtol=2e-3, atol=2e-3)


def counted(before):
    after = pw.counters.stats()
    return after.captures - before.captures, after.calls["replayed"] - before.calls["replayed"]


@pytest.mark.parametrize("compiler", ["eager", "inductor"])
@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
def test_every_size_is_captured_at_its_second_call_as_one_graph(compiler, mode):
    model, before = blocks(), pw.counters.stats()
    options = {"compiler": compiler} | ({"mode": mode} if mode else {})
    fast = torch.compile(model, backend="piecewise", dynamic=True, options=options)
    inputs = [torch.randn(2, n, 64, device="cuda") for n in (5, 7, 5, 7, 5, 7)]
    for got, x in zip([fast(x) for x in inputs], inputs, strict=True):
        close(got, model(x))  # results are copies, so earlier ones still hold
    assert counted(before) == (2, 4)


def test_attention_is_cut_out_where_it_is_named():
    model, before = blocks(), pw.counters.stats()
    options = {
        "splitting_ops": ("torch.nn.functional.scaled_dot_product_attention",),
        "graph_mode": "piecewise",
    }
    fast = torch.compile(model, backend="piecewise", dynamic=False, options=options)
    for _ in range(4):
        x = torch.randn(2, 6, 64, device="cuda")
        close(fast(x), model(x))
    assert counted(before) == (3, 3)


def test_layers_of_one_code_replay_their_own_parameters():
    model = blocks(4)
    wanted = model(x := torch.randn(2, 6, 64, device="cuda"))
    before = pw.counters.stats()
    for layer in model:
        layer.compile(backend="piecewise", dynamic=False)
    for _ in range(4):
        close(model(x), wanted)
    assert counted(before) == (4, 12)


def test_moved_and_replaced_parameters_are_captured_anew():
    model = blocks()
    fast = torch.compile(model, backend="piecewise", dynamic=False)
    for change in (lambda p: p.data.clone() * 1.5, lambda p: p.data * 0.5):
        for _ in range(3):
            x = torch.randn(2, 6, 64, device="cuda")
            close(fast(x), model(x))
        with torch.inference_mode(False), torch.no_grad():
            for parameter in model.parameters():
                parameter.data = change(parameter)
    x = torch.randn(2, 6, 64, device="cuda")
    close(fast(x), model(x))


@pytest.mark.parametrize("width", [6, 300_000])
def test_writes_reach_the_callers_memory_once_a_call(width):
    def fn(x):
        x.add_(1)
        return x[1:3], x.sum()

    fast = torch.compile(fn, backend="piecewise", dynamic=False)
    x = torch.zeros(width, device="cuda")
    for turn in range(1, 6):
        part, total = fast(x)
        assert part.data_ptr() == x[1:].data_ptr()
        assert float(total) == turn * width
        assert float(x.max()) == turn


def test_random_numbers_are_new_at_every_replay():
    fast = torch.compile(
        lambda x: x + torch.rand_like(x), backend="piecewise", options={"compiler": "eager"}
    )
    seen = [fast(torch.zeros(64, device="cuda")) for _ in range(5)]
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(seen))


def test_graph_breaks_share_one_pool_and_lose_nothing():
    def fn(x):
        a = x.sin()
        torch._dynamo.graph_break()
        b = (a @ a.T).cos()
        torch._dynamo.graph_break()
        return a.sum() + b.sum() + a[0, 0]

    fast = torch.compile(fn, backend="piecewise", dynamic=False)
    for _ in range(5):
        x = torch.randn(64, 64, device="cuda")
        close(fast(x), fn(x))


def test_dropped_models_and_resets_give_all_memory_back():
    def run():
        model = blocks()
        fast = torch.compile(model, backend="piecewise", dynamic=False)
        for _ in range(3):
            fast(torch.randn(4, 64, 64, device="cuda"))
        torch._dynamo.reset()

    run()
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    for _ in range(3):
        run()
    gc.collect()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() <= before[0]
    assert torch.cuda.memory_reserved() <= before[1] + (2 << 20)


def test_calls_inside_of_somebody_elses_capture_are_served_and_capture_nothing():
    model, before = blocks(), pw.counters.stats()
    fast = torch.compile(model, backend="piecewise", dynamic=False)
    x = torch.randn(2, 6, 64, device="cuda")
    fast(x)
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        result = fast(x)
    x.copy_(torch.randn_like(x))
    graph.replay()
    close(result, model(x))
    assert counted(before)[0] == 0


@pytest.mark.parametrize("compiler", ["eager", "inductor"])
def test_graphs_of_a_cache_serve_the_next_one_in_its_memory_and_keep_none(compiler):
    model, before = blocks(1), pw.counters.stats()

    def step(x, cache):
        cache[:, 0] += x[:, 0]
        return model(cache)

    fast = torch.compile(step, backend="piecewise", dynamic=False, options={"compiler": compiler})
    memory = [torch.zeros(2, 6, 64, device="cuda") for _ in range(2)]
    for turn in range(8):
        cache, wanted = memory[turn % 2].detach(), torch.zeros(2, 6, 64, device="cuda")
        torch._dynamo.mark_static_address(cache.zero_())
        for _ in range(3):
            x = torch.randn(2, 6, 64, device="cuda")
            close(fast(x, cache), step(x, wanted))
        close(cache, wanted)
        del cache
    assert counted(before)[0] == 2
    held = torch.cuda.memory_allocated()
    nbytes = memory.pop().nbytes
    gc.collect()
    assert torch.cuda.memory_allocated() <= held - nbytes
