"""Static plans of the CPU platform: captured sizes are served by bound kernel calls."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from torch import nn

import piecewise_core as pw
from piecewise_cpu import kernels
from piecewise_cpu.native import NativeSequence
from piecewise_cpu.platform import CpuPlatform

N = pw.Dim("n", 1, 16)
SIZES = (2, 8)


@torch.library.custom_op("pwcpu::mix", mutates_args=(), tags=(torch.Tag.pointwise,))
def mix(x: torch.Tensor) -> torch.Tensor:
    return x.cumsum(0)


@mix.register_fake
def _(x):
    return torch.empty_like(x)


@torch.library.custom_op("pwcpu::put", mutates_args=("out",))
def put(x: torch.Tensor, out: torch.Tensor) -> None:
    out.copy_(x.cos())


@torch.library.custom_op("pwcpu::swap", mutates_args=("state",))
def swap(state: torch.Tensor, new: torch.Tensor) -> None:
    state.data = new.clone()


class Swaps(nn.Module):
    """An operator gives a buffer other memory, and no tag says that it does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("state", torch.zeros(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        swap(self.state, self.state * 0.5 + x.sum(0))
        return x + self.state


class Model(nn.Module):
    """Norms, products, views, and two operators to cut at."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.inner = nn.Linear(8, 32)
        self.outer = nn.Linear(32, 8)
        self.register_buffer("seen", torch.zeros(8))

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        out = torch.empty_like(x)
        put(self.norm(x), out)
        hidden = nn.functional.gelu(self.inner(out * scale)).view(-1, 4, 8)
        mixed = mix(hidden.transpose(1, 2).reshape(-1, 32))
        self.seen += mixed.mean() * 0 + 1
        return {"y": self.outer(mixed).softmax(-1) + x, "all": mixed[:, :2]}


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def config(**settings) -> pw.Config:
    given = {
        "dynamic": {"x": {0: N}, "scale": {0: N}},
        "splitting_ops": ("pwcpu::mix", "pwcpu::put"),
    }
    return pw.Config(**{**given, "capture_sizes": SIZES, "compiler": "eager", **settings})


def call(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, 8), torch.rand(rows, 1)


def check(fast, model, sizes=(2, 8, 2, 3, 16, 8, 1)) -> None:
    for rows in sizes:
        given = call(rows)
        before = model.seen.clone()
        want = model(*given)
        written = model.seen.clone()
        model.seen.copy_(before)
        got = fast(*given)
        assert list(got) == list(want)
        for name in want:
            torch.testing.assert_close(got[name], want[name])
        assert torch.equal(model.seen, written)


@pytest.mark.parametrize("mode", ["piecewise", "full", "full_and_piecewise"])
def test_replays_equal_the_model_and_write_once(mode):
    model = Model()
    fast = pw.compile(model, config(graph_mode=mode), platform=CpuPlatform())
    fast.warmup(*call(3), progress=False)
    assert torch.equal(model.seen, torch.zeros(8))
    fast.seal()
    check(fast, model)
    stats = fast.stats()
    # The maximum is a capture size too.
    assert stats.calls["replayed"] == 5
    assert stats.captures == (3 if mode != "piecewise" else 9)


@pytest.mark.inductor
@pytest.mark.parametrize("mode", ["piecewise", "full"])
def test_compiled_pieces_are_replayed_as_their_kernels(mode, caplog):
    model, platform = Model(), CpuPlatform()
    fast = pw.compile(model, config(graph_mode=mode, compiler="inductor"), platform=platform)
    with caplog.at_level(logging.DEBUG, "piecewise_cpu"):
        fast.warmup(*call(3), progress=False)
    assert not [r for r in caplog.records if "as a whole" in r.getMessage()]
    fast.seal()
    check(fast, model)
    for sizes in ((2,), (8,), (16,)):
        for graph in fast._pw_session.forms[0].capturing.plans.get(sizes).graphs:
            assert graph.steps
            if platform.native:
                native = [isinstance(step, NativeSequence) for step in graph.steps]
                assert any(native)
                assert (True, True) not in pairwise(native)
    assert fast.stats().pool_bytes > 0


@pytest.mark.inductor
def test_a_piece_that_is_no_list_of_kernel_calls_is_replayed_as_a_whole(monkeypatch, caplog):
    def cannot(*args):
        raise kernels.NotFlat("asked for")

    monkeypatch.setattr("piecewise_cpu.recording.flat_call", cannot)
    model = Model()
    fast = pw.compile(model, config(compiler="inductor"), platform=CpuPlatform())
    with caplog.at_level(logging.DEBUG, "piecewise_cpu"):
        fast.warmup(*call(3), progress=False)
    assert [r for r in caplog.records if "asked for" in r.getMessage()]
    check(fast, model)


def test_calls_without_inference_mode_are_served_too():
    with torch.inference_mode(False):
        model = Model().requires_grad_(False)
        fast = pw.compile(model, config(), platform=CpuPlatform())
        fast.warmup(*call(3), progress=False)
        with torch.no_grad():
            check(fast, model)
        check(fast, model)
    assert fast.stats().calls["replayed"] > 0


def test_padded_calls_are_cut_back():
    class Rows(nn.Module):
        def forward(self, x, scale):
            return torch.softmax(x * scale, -1) + mix(x * 0)

    settings = config(padding="capture_sizes", splitting_ops=("pwcpu::mix",))
    fast = pw.compile(Rows(), settings, platform=CpuPlatform())
    fast.warmup(*call(3), progress=False)
    for rows in (1, 2, 5, 8, 11):
        given = call(rows)
        torch.testing.assert_close(fast(*given), Rows()(*given))
    assert fast.stats().calls["replayed"] == 5
    assert fast.stats().padded_rows == 1 + 3 + 5


@pytest.mark.parametrize(("front", "around_a_mask"), [(pw.compile, 2), (pw.record, 0)])
def test_an_index_of_whole_numbers_is_captured_and_a_mask_is_not(front, around_a_mask):
    """A program with a mask is captured around it, where it is traced."""

    def by_number(x, scale):
        return x[torch.arange(x.shape[0]).flip(0)] * scale

    def by_mask(x, scale):
        return (x[x > 0].sum() * scale).sum(0)

    for fn, replays in ((by_number, 2), (by_mask, around_a_mask)):
        fast = front(fn, config(splitting_ops=()), platform=CpuPlatform())
        for _ in range(2):
            given = call(8)
            torch.testing.assert_close(fast(*given), fn(*given))
        assert fast.stats().calls["replayed"] == replays


def test_recorded_functions_replay():
    model = Model()
    fast = pw.record(model, config(compiler=None), platform=CpuPlatform())
    fast.warmup(*call(3), progress=False)
    check(fast, model)
    assert fast.stats().calls["replayed"] > 0


def test_random_numbers_differ_from_call_to_call_and_follow_the_seed():
    def noisy(x, scale):
        return torch.rand_like(x) * scale

    fast = pw.compile(noisy, config(splitting_ops=()), platform=CpuPlatform())
    given = torch.zeros(8, 8), torch.ones(8, 1)
    fast.warmup(*given, progress=False)
    torch.manual_seed(7)
    got = [fast(*given).clone() for _ in range(3)]
    torch.manual_seed(7)
    want = [noisy(*given) for _ in range(3)]
    assert fast.stats().calls["replayed"] == 3
    assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))
    assert not torch.equal(got[0], got[1])


@pytest.mark.inductor
def test_sizes_share_their_memory():
    def pool(sizes):
        # A recursive sum over many buffers that no later kernel is fused with.
        def fn(x, scale):
            for _ in range(6):
                x = torch.softmax(x @ x.mT.contiguous() @ x, -1) * scale
            return x

        fast = pw.compile(
            fn,
            config(splitting_ops=(), capture_sizes=sizes, capture_max=False, compiler="inductor"),
            platform=CpuPlatform(),
        )
        fast.warmup(*call(3), progress=False)
        return fast.stats().pool_bytes

    assert pool((2, 3, 4, 8, 16)) <= 1.1 * pool((16,))


@pytest.mark.parametrize("front", ["compiled", "recorded"])
def test_sizes_of_operators_share_their_memory_too(front):
    def fn(x, scale):
        for _ in range(6):
            x = torch.softmax(x @ x.mT @ x, -1) * scale
        return x

    def made(sizes):
        settings = config(splitting_ops=(), capture_sizes=sizes, capture_max=False)
        if front == "compiled":
            return pw.compile(fn, settings, platform=CpuPlatform())
        return pw.record(fn, settings, platform=CpuPlatform())

    alone, several = made((16,)), made((2, 3, 4, 8, 16))
    for fast in (alone, several):
        fast.warmup(*call(3), progress=False)
    assert 0 < several.stats().pool_bytes <= 1.1 * alone.stats().pool_bytes
    for rows in (2, 16, 3, 8, 16, 4):
        given = call(rows)
        torch.testing.assert_close(several(*given), fn(*given))


@pytest.mark.inductor
def test_what_stays_inside_a_piece_shares_memory_with_what_stays_inside_the_next():
    class Wide(nn.Module):
        """Narrow between the cuts, and wide inside of pieces."""

        def __init__(self, layers: int) -> None:
            super().__init__()
            self.wide = nn.ModuleList(nn.Linear(8, 4096) for _ in range(layers))
            self.narrow = nn.ModuleList(nn.Linear(4096, 8) for _ in range(layers))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for wide, narrow in zip(self.wide, self.narrow, strict=True):
                x = x + narrow(wide(mix(x)).sin())
            return x

    def pool(layers: int) -> int:
        model = Wide(layers)
        settings = config(compiler=None, dynamic={"x": {0: N}}, splitting_ops=("pwcpu::mix",))
        fast = pw.compile(model, settings, platform=CpuPlatform())
        for rows in (8, 2, 8, 2, 5):
            x = torch.randn(rows, 8)
            torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)
        assert fast.stats().calls["replayed"] == 4
        return fast.stats().pool_bytes

    inside = 8 * 4096 * 4
    assert inside <= pool(1)
    assert pool(6) - pool(1) < inside


def test_release_and_restore():
    model = Model()
    fast = pw.compile(model, config(), platform=CpuPlatform())
    fast.warmup(*call(3), progress=False)
    fast.release()
    assert fast.stats().pool_bytes == 0
    check(fast, model, (2, 8))
    assert fast.stats().calls["replayed"] == 0
    fast.restore()
    check(fast, model, (2, 8))
    assert fast.stats().calls["replayed"] == 2


def test_threads_capture_and_replay_models_of_their_own():
    wrong: list[BaseException] = []
    platform = CpuPlatform()

    def work(seed: int) -> None:
        try:
            with torch.inference_mode():
                model = Model()
                fast = pw.compile(model, config(), platform=platform)
                fast.warmup(*call(3), progress=False)
                check(fast, model, (2, 8) * 10)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_size_whose_operator_gives_a_tensor_other_memory_is_not_captured():
    model, plain = Swaps(), Swaps()
    config = pw.Config(dynamic={0: {0: N}}, capture_sizes=SIZES, compiler="eager")
    fast = pw.compile(model, config, CpuPlatform())
    for rows in (2, 2, 8, 5, 2):
        x = torch.randn(rows, 8)
        torch.testing.assert_close(fast(x), plain(x), rtol=0, atol=0)
    assert fast.stats().calls["replayed"] == 0
    assert "gives a tensor other memory" in str(fast.explain().dropped)
