"""Whole models on a GPU: served by replay, and equal to what runs without graphs."""

from __future__ import annotations

import copy
import gc
import threading

import pytest
import torch
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import piecewise_core as pw
from piecewise_core.errors import AddressChanged, Sealed

pytestmark = pytest.mark.gpu

SIZES = (1, 8, 32, 64)
MODES = ["piecewise", "full", "full_and_piecewise"]
WIDTH = 32


class Deep(nn.Module):
    """Three pieces around two functional splitting ops."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(3))

    def forward(self, x):
        for i, layer in enumerate(self.layers):
            x = layer(x).sin()
            x = torch.softmax(x, -1) if i < 2 else x
        return x


class Cached(nn.Module):
    """Writes to buffers at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.register_buffer("cache", torch.zeros(64, WIDTH))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        x = self.a(x)
        self.cache[: x.shape[0]].add_(x)
        self.calls.add_(1)
        return self.b(torch.softmax(x, -1)) + self.cache[: x.shape[0]]


class Seen:
    """What a splitting op reads anew at every call: Python that no graph can hold."""

    calls: int = 0
    factor: float = 1.0


SEEN = Seen()


@torch.library.custom_op("pwgpu::stateful", mutates_args=())
def stateful(x: torch.Tensor) -> torch.Tensor:
    SEEN.calls += 1
    return x * SEEN.factor


@stateful.register_fake
def _(x):
    return torch.empty_like(x)


@torch.library.custom_op("pwgpu::fill", mutates_args=("out",))
def fill(x: torch.Tensor, out: torch.Tensor) -> None:
    out.copy_(x.cos())


@pytest.fixture(autouse=True)
def _as_new():
    SEEN.calls, SEEN.factor = 0, 1.0


def same(got, wanted):
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)


def close(got, wanted):
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def on(gpu, model):
    return model.to(gpu.device).eval()


def warm(gpu, fast, *example):
    return fast.warmup(*(example or (gpu.randn(3, WIDTH),)), progress=False)


# Same numbers -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_replay_equals_the_uncaptured_plan_bit_for_bit(gpu, mode):
    model = on(gpu, Deep())
    fast, slow = gpu.compile(model, graph_mode=mode), gpu.compile(model, capture_sizes=())
    report = warm(gpu, fast)
    assert report.captured == ((64,), (32,), (8,), (1,))
    assert fast.stats().captures == 4 * (1 if mode != "piecewise" else 3)
    for size in (*SIZES, 5, *reversed(SIZES)):
        x = gpu.randn(size, WIDTH)
        same(fast(x), slow(x))
    assert fast.stats().calls["replayed"] == 8


@pytest.mark.inductor
@pytest.mark.parametrize("mode", MODES)
def test_compiled_code_is_captured_and_close_to_eager(gpu, mode):
    model = on(gpu, Deep())
    fast = gpu.compile(model, graph_mode=mode, compiler=None)
    warm(gpu, fast)
    for size in (*SIZES, 5, 63):
        x = gpu.randn(size, WIDTH)
        close(fast(x), model(x))
    assert fast.stats().calls["replayed"] == 4


@pytest.mark.inductor
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_products_of_one_row_are_kernels_of_inductor_s(gpu, dtype):
    model = on(gpu, Deep(256)).to(dtype)
    fast = gpu.compile(model, compiler=None, graph_mode="none", compile_sizes=(1,))
    x = gpu.randn(1, 256).to(dtype)
    fast(x)
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as seen:
        found = fast(x)
        torch.cuda.synchronize()
    kernels = [e.name for e in seen.events() if e.device_type == DeviceType.CUDA]
    assert [k for k in kernels if "softmax" in k.lower()]
    assert not [k for k in kernels if any(w in k.lower() for w in ("gemm", "gemv", "nvjet"))]
    exact = copy.deepcopy(model).double()(x.double())
    torch.testing.assert_close(
        found.double(), exact, rtol=0, atol=2**-6 if dtype.itemsize == 2 else 1e-5
    )


def test_a_recording_equals_eager_bit_for_bit(gpu):
    model = on(gpu, Deep())
    fast = gpu.record(model)
    warm(gpu, fast)
    for size in (*SIZES, 5, *reversed(SIZES)):
        x = gpu.randn(size, WIDTH)
        same(fast(x), model(x))
    assert fast.stats().calls["replayed"] == 8


@pytest.mark.inductor
@pytest.mark.parametrize("compiler", ["eager", None])
def test_attention_under_a_boolean_mask_is_what_eager_makes_of_it(gpu, compiler):
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(3))

        def forward(self, x, keep):
            mask = keep[:, None, None, :].expand(keep.shape[0], 1, x.shape[1], x.shape[1])
            for layer in self.layers:
                q, k, v = layer(x).view(*x.shape[:2], 2, -1).transpose(1, 2).chunk(3, dim=-1)
                y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
                x = x + y.transpose(1, 2).reshape(x.shape)
            return x

    import piecewise_core as pw

    rows = pw.Dim("rows", 1, 8)
    model = on(gpu, Attends())
    fast = gpu.compile(
        model,
        dynamic={"x": {0: rows}, "keep": {0: rows}},
        splitting_ops=("torch.nn.functional.scaled_dot_product_attention",),
        capture_sizes=(1, 4, 8),
        compiler=compiler,
    )
    for size in (1, 4, 8, 3, 4):
        x, keep = gpu.randn(size, 16, WIDTH), torch.rand(size, 16, device=gpu.device) > 0.4
        keep[:, 0] = True
        torch.testing.assert_close(fast(x, keep), model(x, keep), rtol=1e-3, atol=1e-3)
    assert fast.stats().calls["replayed"] == 4


@pytest.mark.inductor
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_heads_that_attention_can_share_are_not_repeated(gpu, mode, dtype):
    heads, groups, width, length = 8, 2, 64, 128

    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            size = (heads + 2 * groups) * width
            self.layers = nn.ModuleList(nn.Linear(heads * width, size) for _ in range(2))

        def forward(self, x, keep):
            for layer in self.layers:
                parts = layer(x).view(*x.shape[:2], heads + 2 * groups, width).transpose(1, 2)
                q, k, v = parts.split([heads, groups, groups], dim=1)
                k, v = (
                    t[:, :, None].expand(-1, -1, heads // groups, -1, -1).reshape(q.shape)
                    for t in (k, v)
                )
                y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=keep)
                x = x + y.transpose(1, 2).reshape(x.shape)
            return x

    import piecewise_core as pw

    rows = pw.Dim("rows", 1, 8)
    model = on(gpu, Grouped()).to(dtype)
    fast = gpu.compile(
        model,
        dynamic={"x": {0: rows}, "keep": {0: rows}},
        splitting_ops=("torch.nn.functional.scaled_dot_product_attention",),
        capture_sizes=(1, 4, 8),
        graph_mode=mode,
        compiler=None,
    )
    exact = copy.deepcopy(model).double()
    for size in (1, 4, 8, 3, 4):
        x = gpu.randn(size, length, heads * width).to(dtype)
        keep = torch.rand(size, 1, length, length, device=gpu.device) > 0.4
        found = fast(x, keep).double() - exact(x.double(), keep)
        own = model(x, keep).double() - exact(x.double(), keep)
        assert found.norm() < 2 * own.norm()
    assert fast.stats().calls["replayed"] == 4
    q, k = (torch.empty(4, n, length, width, dtype=dtype, device=gpu.device) for n in (8, 2))
    mask = torch.empty(4, 1, length, length, dtype=dtype, device=gpu.device)
    kernel = torch._fused_sdp_choice(q, k, k, mask, 0.0, False, scale=None, enable_gqa=True)
    assert ("torch.Tensor.expand" in str(fast.explain())) is (kernel <= 0)


# Splitting ops ------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["compile", "record"])
def test_a_splitting_op_is_called_at_every_replay(gpu, how):
    def fn(x):
        return stateful(x + 1) * 2

    fast = getattr(gpu, how)(fn, splitting_ops=("pwgpu::stateful",), graph_mode="piecewise")
    warm(gpu, fast)
    x = gpu.randn(8, WIDTH)
    before = SEEN.calls
    for factor in (1.0, 3.0, -2.0):
        SEEN.factor = factor
        same(fast(x), (x + 1) * factor * 2)
    assert SEEN.calls == before + 3
    assert fast.stats().calls["replayed"] == 3


@pytest.mark.parametrize("how", ["compile", "record"])
def test_a_splitting_op_that_writes_its_result_needs_no_copy(gpu, how):
    def fn(x):
        out = torch.empty_like(x)
        torch.ops.pwgpu.fill(x * 2, out)
        return out + 1

    fast = getattr(gpu, how)(fn, splitting_ops=("pwgpu::fill",))
    warm(gpu, fast)
    for size in SIZES:
        x = gpu.randn(size, WIDTH)
        same(fast(x), (x * 2).cos() + 1)
    assert fast.stats().calls["replayed"] == 4


# Writes and ownership -----------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_warm_up_leaves_buffers_as_they_were_and_a_call_writes_once(gpu, mode):
    model = on(gpu, Cached())
    reference = copy.deepcopy(model)
    fast = gpu.compile(model, graph_mode=mode)
    warm(gpu, fast)
    same(model.cache, reference.cache)
    assert model.calls.item() == 0
    for size in (8, 64, 8, 5, 1):
        x = gpu.randn(size, WIDTH)
        close(fast(x), reference(x))
        close(model.cache, reference.cache)
    assert model.calls.item() == 5
    assert fast.stats().calls["replayed"] == 4


def test_an_output_is_overwritten_by_the_next_replay_unless_cloned(gpu):
    model = on(gpu, Deep())
    x, y = gpu.randn(8, WIDTH), gpu.randn(8, WIDTH)
    for clone in (False, True):
        fast = gpu.compile(model, clone_outputs=clone)
        warm(gpu, fast)
        kept = fast(x)
        was = kept.clone()
        fast(y)
        assert torch.equal(kept, was) is clone


def test_static_inputs_are_read_where_they_are_and_checked(gpu):
    model = on(gpu, Deep())
    fast = gpu.compile(model, inputs="static", capture_sizes=(8,), capture_max=False)
    x = gpu.randn(8, WIDTH)
    fast(x)
    for _ in range(3):
        x.normal_()
        same(fast(x), model(x))
    assert fast.stats().calls["replayed"] >= 3
    with pytest.raises(AddressChanged, match='argument "x" was at'):
        fast(x.clone())


# Padding ------------------------------------------------------------------------------------


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e30])
def test_padded_rows_never_leak(gpu, garbage):
    model = on(gpu, Deep())
    fast = gpu.compile(model, padding="capture_sizes")
    warm(gpu, fast)
    for size in range(1, 65, 3):
        fast(torch.full((64, WIDTH), garbage, device=gpu.device))
        x = gpu.randn(size, WIDTH)
        got = fast(x)
        assert got.shape == (size, WIDTH)
        close(got, model(x))
    stats = fast.stats()
    assert stats.calls["replayed"] == sum(stats.calls.values())
    assert stats.padded_rows > 0


# Parameters ---------------------------------------------------------------------------------


def test_new_weights_are_seen_in_place_and_recaptured_when_replaced(gpu):
    model = on(gpu, Deep())
    fast = gpu.compile(model)
    warm(gpu, fast)
    x = gpu.randn(8, WIDTH)
    for parameter in model.parameters():
        parameter.mul_(1.5)
    close(fast(x), model(x))
    replayed = fast.stats().calls["replayed"]
    model.layers[1].weight.data = gpu.randn(WIDTH, WIDTH)
    close(fast(x), model(x))
    assert fast.stats().calls["replayed"] == replayed
    fast.restore()
    close(fast(x), model(x))
    assert fast.stats().calls["replayed"] == replayed + 1


def test_a_model_moved_to_another_dtype_is_traced_and_captured_anew(gpu):
    model = on(gpu, Deep())
    fast = gpu.compile(model)
    warm(gpu, fast)
    model.to(torch.bfloat16)
    x = gpu.randn(8, WIDTH).to(torch.bfloat16)
    fast(x)
    torch.testing.assert_close(fast(x), model(x))


# Memory -------------------------------------------------------------------------------------


def test_many_sizes_share_the_memory_of_the_largest(gpu):
    model = on(gpu, Deep(1024))
    example = gpu.randn(3, 1024)
    one = gpu.compile(model, capture_sizes=(64,))
    warm(gpu, one, example)
    many = gpu.compile(model, capture_sizes=tuple(range(4, 65, 4)))
    warm(gpu, many, example)
    assert len(many.explain().captured) == 16
    assert many.stats().pool_bytes <= 1.1 * one.stats().pool_bytes


@pytest.mark.parametrize("mode", ["piecewise", "full"])
def test_nothing_grows_over_thousands_of_replays_and_twenty_rounds_of_release(gpu, mode):
    model = on(gpu, Deep())
    fast = gpu.compile(model, graph_mode=mode)
    warm(gpu, fast)
    xs = [gpu.randn(size, WIDTH) for size in SIZES]

    def held():
        gc.collect()
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated(), fast.stats().pool_bytes

    for x in xs:
        fast(x)
    fast.release()
    fast.restore()
    before = held()
    for _ in range(2500):
        for x in xs:
            fast(x)
    assert held() == before
    for _ in range(20):
        fast.release()
        fast.restore()
        same(fast(xs[1]), fast(xs[1]))
    assert held() == before


def test_released_memory_goes_back_to_the_device(gpu):
    model = on(gpu, Deep(2048))
    fast = gpu.compile(model, dynamic={"x": {0: _wide()}}, capture_sizes=(4096,))
    warm(gpu, fast, gpu.randn(3, 2048))
    fast(gpu.randn(5, 2048))
    held = torch.cuda.memory_reserved()
    pool = fast.stats().pool_bytes
    assert pool > 2048 * 4096 * 4
    fast.release()
    assert torch.cuda.memory_reserved() <= held - pool // 2
    x = gpu.randn(4096, 2048)
    close(fast(x), model(x))
    fast.restore()
    close(fast(x), model(x))


def test_a_memory_limit_with_room_for_nothing_serves_without_graphs_and_says_so(gpu):
    model = on(gpu, Deep())
    fast = gpu.compile(model, memory_limit=100)
    warm(gpu, fast)
    for size in SIZES:
        x = gpu.randn(size, WIDTH)
        close(fast(x), model(x))
    assert fast.stats().calls["replayed"] == 0
    assert all("memory_limit" in why for why in fast.explain().dropped)
    assert len(fast.explain().dropped) == len(SIZES)


def _wide():
    import piecewise_core as pw

    return pw.Dim("rows", 1, 4096)


# Seal, threads, generators ------------------------------------------------------------------


def test_after_seal_an_uncaptured_size_is_an_error_and_captured_ones_serve(gpu):
    model = on(gpu, Deep())
    fast = gpu.compile(model)
    fast(gpu.randn(32, WIDTH))
    fast.seal()
    x = gpu.randn(32, WIDTH)
    close(fast(x), model(x))
    with pytest.raises(Sealed, match="captured after seal"):
        fast(gpu.randn(8, WIDTH))
    assert fast.stats().calls["replayed"] == 2


def test_two_threads_share_one_model(gpu):
    model = on(gpu, Deep())
    fast = gpu.compile(model, clone_outputs=True, padding="capture_sizes")
    warm(gpu, fast)
    wrong = []

    def work(seed):
        generator = torch.Generator().manual_seed(seed)
        with torch.inference_mode(), torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(100):
                size = int(torch.randint(1, 65, (), generator=generator))
                x = torch.randn(size, WIDTH, generator=generator).to(gpu.device)
                got, wanted = fast(x), model(x)
                torch.cuda.current_stream().synchronize()
                if not torch.allclose(got, wanted, atol=1e-4):
                    wrong.append(size)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert fast.stats().calls["replayed"] == 200


@pytest.mark.parametrize("mode", ["piecewise", "full"])
def test_random_numbers_advance_at_every_replay_and_are_those_of_a_seed(gpu, mode):
    def fn(x):
        return torch.softmax(x.sin(), -1) + torch.rand_like(x)

    fast = gpu.compile(fn, graph_mode=mode)
    x = gpu.randn(8, WIDTH)
    state = torch.cuda.get_rng_state()
    warm(gpu, fast, x)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    torch.manual_seed(6)
    got = [fast(x).clone() for _ in range(3)]
    torch.manual_seed(6)
    for each in got:
        close(each, fn(x))
    assert not torch.equal(got[0], got[1])
    assert fast.stats().calls["replayed"] == 3


def test_a_thousand_replays_between_others_allocations_are_bit_equal(gpu):
    """The allocator is cut to pieces all the while: what graphs use must be nobody else's."""
    model = on(gpu, Deep(256))
    fast, slow = gpu.compile(model), gpu.compile(model, capture_sizes=())
    warm(gpu, fast, gpu.randn(3, 256))
    generator = torch.Generator().manual_seed(0)

    def number(most):
        return int(torch.randint(1, most, (), generator=generator))

    kept = {}
    for i in range(1000):
        kept[number(40)] = torch.full((number(1 << 18),), float("nan"), device=gpu.device)
        kept.pop(number(40), None)
        if i % 250 == 0:
            torch.cuda.empty_cache()
        x = gpu.randn(SIZES[i % 4], 256)
        same(fast(x), slow(x))
    assert fast.stats().calls["replayed"] == 1000


# Several models in one pool -----------------------------------------------------------------


def test_models_in_one_pool_take_less_and_keep_their_results(gpu):
    models = [on(gpu, Deep(256)) for _ in range(3)]
    x = gpu.randn(64, 256)

    def served(pool):
        made = [pw.compile(m, gpu.config(), platform=gpu.platform, pool=pool) for m in models]
        for fast in made:
            warm(gpu, fast, gpu.randn(3, 256))
        return made

    alone = sum(fast.stats().pool_bytes for fast in served(None))
    pool = pw.Pool()
    made = served(pool)
    assert 0 < pool.stats().pool_bytes < alone
    streams = [torch.cuda.Stream() for _ in made]
    kept = []
    for stream, fast in zip(streams * 4, made * 4, strict=True):
        with torch.cuda.stream(stream):
            kept.append(fast(x[: 32 if len(kept) % 2 else 64]))
    torch.cuda.synchronize()
    for place, got in enumerate(kept):
        close(got, models[place % 3](x[: 32 if place % 2 else 64]))
    assert [fast.stats().calls["replayed"] for fast in made] == [4, 4, 4]
    before = pool.stats().driver_bytes
    del made, fast
    gc.collect()
    assert pool.status().sizes == 0
    assert pool.stats().pool_bytes == 0 <= before


@pytest.mark.parametrize("front", ["compile", "record"])
def test_threads_call_models_of_one_pool(gpu, front):
    pool, wrong = pw.Pool(), []
    models = [on(gpu, Deep()) for _ in range(2)]
    config = gpu.config() if front == "compile" else gpu.config(compiler=None)
    made = [getattr(pw, front)(m, config, platform=gpu.platform, pool=pool) for m in models]
    for fast in made:
        warm(gpu, fast)

    def serve(fast, model):
        with torch.inference_mode(), torch.cuda.stream(torch.cuda.Stream()):
            for size in SIZES * 20:
                x = gpu.randn(size, WIDTH)
                wrong.append(not torch.allclose(fast(x), model(x), rtol=1e-4, atol=1e-4))

    threads = [threading.Thread(target=serve, args=p) for p in zip(made, models, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 160
    assert not any(wrong)
