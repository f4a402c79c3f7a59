"""Compiled models that serve captured sizes by replay, on the simulated device."""

from __future__ import annotations

import copy
import gc
import itertools
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import piecewise_core as pw
from piecewise_core.errors import AddressChanged, ConfigError, Sealed
from piecewise_core.testing import SimulatedPlatform

N = pw.Dim("n", 1, 16)
SPLIT = ("torch.softmax",)
SIZES = (1, 4, 8, 16)


@torch.library.custom_op("pwgraphs::scale", mutates_args=())
def scale(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@scale.register_fake
def _(x):
    return torch.empty_like(x)


@torch.library.custom_op("pwgraphs::pair", mutates_args=())
def pair(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x + 1, x.sum(-1)


@pair.register_fake
def _(x):
    return torch.empty_like(x), x.new_empty(x.shape[0])


@torch.library.custom_op("pwgraphs::listed", mutates_args=())
def listed(x: torch.Tensor) -> list[torch.Tensor]:
    return [x * 3, x - 1]


@listed.register_fake
def _(x):
    return [torch.empty_like(x), torch.empty_like(x)]


@torch.library.custom_op("pwgraphs::fill", mutates_args=("out",))
def fill(x: torch.Tensor, out: torch.Tensor) -> None:
    out.copy_(x.cos())


class State:
    """What a splitting op reads anew at every call: Python that no graph can hold."""

    seen: int = 0
    factor: float = 1.0


STATE = State()


@torch.library.custom_op("pwgraphs::stateful", mutates_args=())
def stateful(x: torch.Tensor) -> torch.Tensor:
    STATE.seen += 1
    return x * STATE.factor


@stateful.register_fake
def _(x):
    return torch.empty_like(x)


class Block(nn.Module):
    """Two compilable pieces around a functional splitting op."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.b = nn.Linear(8, 8)

    def forward(self, x):
        return self.b(torch.softmax(self.a(x).relu(), -1)) * 2


class Deep(nn.Module):
    """Three compilable pieces."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        for i, layer in enumerate(self.layers):
            x = layer(x).sin()
            if i < 2:
                x = torch.softmax(x, -1)
        return x


class Cached(Block):
    """Writes to a buffer at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cache", torch.zeros(16, 8))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        x = self.a(x)
        self.cache[: x.shape[0]].add_(x)
        self.calls.add_(1)
        return self.b(torch.softmax(x, -1)) + self.cache[: x.shape[0]]


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    torch.manual_seed(0)
    STATE.factor, STATE.seen = 1.0, 0
    with torch.inference_mode():
        yield


def compiled(model, platform=None, dynamic=None, **config):
    settings = {
        "dynamic": dynamic or {"x": {0: N}},
        "splitting_ops": SPLIT,
        "capture_sizes": SIZES,
        **config,
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    return pw.compile(
        model,
        pw.Config(compiler="eager", **settings),
        platform=platform or SimulatedPlatform(),
    )


def plain(model, **config):
    """The same without graphs."""
    return compiled(model, capture_sizes=(), padding=None, **config)


def same(got, wanted):
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)


def close(got, wanted):
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


# Same numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["piecewise", "full", "full_and_piecewise"])
def test_a_replay_equals_the_uncaptured_plan_bit_for_bit(mode):
    model = Deep()
    fast, slow = compiled(model, graph_mode=mode), plain(model)
    fast.warmup(torch.randn(3, 8), progress=False)
    for size in (*SIZES, *reversed(SIZES)):
        x = torch.randn(size, 8)
        same(fast(x), slow(x))
    assert fast.stats().calls["replayed"] == 8


ONE_SIZE = [
    ({"capture_sizes": ((),)}, 3),
    ({"capture_sizes": ((),), "compile_sizes": "capture_sizes"}, 3),
    ({"capture_sizes": ((),), "padding": "capture_sizes", "graph_mode": "piecewise"}, 3),
    ({"graph_mode": "piecewise"}, 3),
    ({"graph_mode": "full"}, 1),
    ({"graph_mode": "full_and_piecewise"}, 1),
]


@pytest.mark.parametrize(("asked", "graphs"), ONE_SIZE)
@pytest.mark.parametrize("ahead", [True, False], ids=["warmed up", "at the first call"])
def test_a_model_without_dims_is_captured_at_its_one_size(asked, graphs, ahead):
    model = Deep()
    config = pw.Config(compiler="eager", splitting_ops=SPLIT, **asked)
    fast = pw.compile(model, config, platform=SimulatedPlatform())
    if ahead:
        report = fast.warmup(torch.randn(3, 8), progress=False)
        assert report.captured == ((),)
        fast.seal()
    slow = pw.compile(model, pw.Config(compiler="eager", splitting_ops=SPLIT), "cpu")
    calls = 3
    for _ in range(calls):
        x = torch.randn(3, 8)
        same(fast(x), slow(x))
    stats = fast.stats()
    assert (stats.captures, stats.calls["replayed"]) == (graphs, calls)
    assert fast.explain().captured == ("every call",)
    fast.release()
    same(fast(x), slow(x))
    assert fast.stats().calls["replayed"] == calls
    fast.restore()
    same(fast(x), slow(x))
    assert fast.stats().calls["replayed"] == calls + 1


def test_without_dims_and_unasked_nothing_is_captured():
    fast = pw.compile(Deep(), pw.Config(compiler="eager"), platform=SimulatedPlatform())
    fast(torch.randn(3, 8))
    assert fast.stats().captures == 0


def test_graphs_are_counted_pieces_times_sizes():
    fast = compiled(Deep(), capture_sizes=(4, 16))
    fast.warmup(torch.randn(3, 8), progress=False)
    stats = fast.stats()
    assert (stats.compilable_pieces, stats.captures) == (3, 6)


def test_a_full_graph_is_one_per_size():
    fast = compiled(Deep(), capture_sizes=(4, 16), graph_mode="full")
    fast.warmup(torch.randn(3, 8), progress=False)
    assert fast.stats().captures == 2


def test_sizes_that_are_not_captured_are_served_by_ranges_and_calls_add_up():
    model = Block()
    fast = compiled(model, capture_sizes=(4, 16), compile_ranges_endpoints=(8,))
    fast.warmup(torch.randn(3, 8), progress=False)
    sizes = (4, 3, 16, 9, 4)
    for size in sizes:
        x = torch.randn(size, 8)
        close(fast(x), model(x))
    calls = fast.stats().calls
    assert (calls["replayed"], calls["compiled_range"]) == (3, 2)
    assert sum(calls.values()) == len(sizes)


def test_a_captured_size_with_its_own_code_replays_that_code():
    model = Block()
    fast = compiled(model, capture_sizes=(4, 16), compile_sizes="capture_sizes")
    fast.warmup(torch.randn(3, 8), progress=False)
    for size in (4, 16):
        x = torch.randn(size, 8)
        close(fast(x), model(x))
    assert fast.stats().calls["replayed"] == 2


def test_without_warmup_a_size_is_captured_at_its_first_use():
    model = Block()
    fast = compiled(model, capture_sizes=(4, 16))
    for expected, size in [(2, 4), (2, 4), (4, 16)]:
        x = torch.randn(size, 8)
        close(fast(x), model(x))
        assert fast.stats().captures == expected


def test_regions_are_captured_each_for_its_own_sizes():
    class Branching(Block):
        def forward(self, x):
            x = self.a(x)
            if x.shape[0] > 8:
                x = x * 3
            return self.b(torch.softmax(x, -1))

    model = Branching()
    fast = compiled(model, compile_ranges_endpoints=(8,))
    report = fast.warmup(torch.randn(3, 8), progress=False)
    assert report.regions == 2
    assert len(report.captured) == 4
    for size in SIZES:
        x = torch.randn(size, 8)
        close(fast(x), model(x))
    assert fast.stats().calls["replayed"] == 4


def test_two_dims_are_captured_by_pairs_of_sizes():
    class Pairs(nn.Module):
        def forward(self, x, mask):
            x = (x * mask[..., None]).sin()
            return torch.softmax(x, 1) + 1

    model = Pairs()
    batch, length = pw.Dim("batch", 1, 4), pw.Dim("length", 1, 8)
    dims = {0: batch, 1: length}
    fast = compiled(
        model, dynamic={"x": dims, "mask": dims}, capture_sizes=((1, 8), (2, 4)), capture_max=True
    )
    report = fast.warmup(torch.randn(2, 2, 3), torch.ones(2, 2), progress=False)
    assert set(report.captured) == {(1, 8), (2, 4), (4, 8)}
    assert report.captured[0] == (4, 8)
    for b, s in [(1, 8), (2, 4), (4, 8), (2, 8), (3, 3)]:
        x, mask = torch.randn(b, s, 3), torch.randn(b, s)
        close(fast(x, mask), model(x, mask))
    assert fast.stats().calls["replayed"] == 3


def test_the_largest_size_is_captured_first():
    fast = compiled(Block())
    report = fast.warmup(torch.randn(3, 8), progress=False)
    assert report.captured == ((16,), (8,), (4,), (1,))


def test_the_largest_of_several_dims_is_the_one_with_most_elements():
    def fn(x):
        return torch.softmax(x * 2, -1) + 1

    dims = {"x": {0: pw.Dim("b", 1, 64), 1: pw.Dim("s", 1, 512)}}
    sizes = ((1, 512), (2, 400), (8, 16))
    fast = compiled(fn, dynamic=dims, capture_sizes=sizes, capture_max=False)
    report = fast.warmup(torch.randn(2, 2), progress=False)
    assert report.captured == ((2, 400), (1, 512), (8, 16))


def test_a_device_that_leaves_an_operator_out_is_found_out():
    model = Block()
    liar = compiled(model, platform=SimulatedPlatform(drop_op="aten.relu.default"))
    liar.warmup(torch.randn(3, 8), progress=False)
    x = torch.randn(4, 8)
    assert not torch.allclose(liar(x), model(x))


def test_warmup_mode_captures_at_the_first_call():
    fast = compiled(Block(), compile_mode="warmup")
    fast(torch.randn(3, 8))
    assert fast.stats().captures == 8


def test_background_mode_serves_captured_sizes_too():
    model = Block()
    fast = compiled(model, compile_mode="background")
    for size in (4, 3, 4, 16, 4):
        x = torch.randn(size, 8)
        close(fast(x), model(x))
    fast.warmup(torch.randn(3, 8), progress=False)
    x = torch.randn(8, 8)
    close(fast(x), model(x))
    assert fast.stats().calls["replayed"] >= 1


def test_a_function_without_tensors_of_its_own_is_captured_again_by_a_second_warmup():
    fast = compiled(lambda x: torch.softmax(x.sin(), -1) + 1)
    for _ in range(2):
        report = fast.warmup(torch.randn(3, 8), progress=False)
        assert len(report.captured) == 4
    assert fast.stats().captures == 8


# Memory ---------------------------------------------------------------------------------------


def pool_bytes(sizes, **knobs):
    dim = pw.Dim("n", 1, 512)
    fast = compiled(
        Block(),
        platform=SimulatedPlatform(**knobs),
        dynamic={"x": {0: dim}},
        capture_sizes=sizes,
    )
    fast.warmup(torch.randn(3, 8), progress=False)
    assert fast.stats().captures == 2 * len(sizes)
    return fast.stats().pool_bytes


def test_many_sizes_share_the_memory_of_the_largest():
    largest, all_sizes = pool_bytes((512,)), pool_bytes((1, 2, *range(32, 513, 10)))
    assert 0 < all_sizes <= 1.1 * largest


def test_without_weak_references_results_are_right_and_memory_is_not_shared():
    model = Deep()
    fast = compiled(model, platform=SimulatedPlatform(weak_refs=False))
    fast.warmup(torch.randn(3, 8), progress=False)
    for size in SIZES:
        x = torch.randn(size, 8)
        close(fast(x), model(x))
    sizes = (256, 384, 512)
    assert pool_bytes(sizes, weak_refs=False) > 1.5 * pool_bytes(sizes)


def test_nothing_grows_over_thousands_of_replays():
    fast = compiled(Block(), capture_sizes=(4, 16))
    fast.warmup(torch.randn(3, 8), progress=False)
    inputs = [torch.randn(4, 8), torch.randn(16, 8)]

    def replay(times):
        for x in itertools.islice(itertools.cycle(inputs), times):
            fast(x)
        gc.collect()
        return len(gc.get_objects()), fast.stats().pool_bytes

    replay(10)
    before = replay(10)
    after = replay(1000)
    assert after[1] == before[1]
    assert after[0] - before[0] < 50


def test_twenty_rounds_of_release_and_restore_hold_the_same_memory():
    platform = SimulatedPlatform()
    model = Deep()
    fast = compiled(model, platform=platform)
    fast.warmup(torch.randn(3, 8), progress=False)
    first = fast.stats()
    objects = []
    for turn in range(20):
        fast.release()
        assert fast.stats().pool_bytes == fast.stats().driver_bytes == 0
        assert platform.device.memory_stats()["reserved_bytes"] == 0
        assert platform.graphs.live_graphs == 0
        x = torch.randn(4, 8)
        close(fast(x), model(x))
        fast.restore()
        close(fast(x), model(x))
        assert fast.stats().pool_bytes == first.pool_bytes
        if turn in (4, 19):
            gc.collect()
            objects.append(len(gc.get_objects()))
    assert objects[1] - objects[0] < 200
    assert fast.stats().calls["replayed"] == 20


def test_a_released_model_runs_uncaptured_until_it_is_restored():
    fast = compiled(Block())
    fast.warmup(torch.randn(3, 8), progress=False)
    x = torch.randn(4, 8)
    fast.release()
    fast(x)
    assert fast.stats().calls["replayed"] == 0
    assert fast.restore() is fast
    fast(x)
    assert fast.stats().calls["replayed"] == 1


def test_dropping_the_model_gives_its_graph_memory_back():
    platform = SimulatedPlatform()
    fast = compiled(Block(), platform=platform)
    fast.warmup(torch.randn(3, 8), progress=False)
    assert platform.device.memory_stats()["reserved_bytes"] > 0
    del fast
    gc.collect()
    assert platform.device.memory_stats()["reserved_bytes"] == 0


MODES = {"inference": torch.inference_mode, "no_grad": torch.no_grad}


@pytest.mark.parametrize("weak_refs", [True, False])
@pytest.mark.parametrize("inputs", ["copy", "static"])
@pytest.mark.parametrize("make", [pw.compile, pw.record])
@pytest.mark.parametrize("warm", MODES)
@pytest.mark.parametrize("serve", MODES)
def test_warm_up_and_calls_may_come_in_different_modes(warm, serve, make, inputs, weak_refs):
    """Memory made in inference mode could be written to in no other."""

    def fn(x):
        out = torch.empty_like(x)
        fill(x + 1, out)
        return torch.softmax(scale(out * 2), -1) + x

    config = pw.Config(
        dynamic={"x": {0: N}},
        splitting_ops=("torch.softmax", "pwgraphs::fill", "pwgraphs::scale"),
        capture_sizes=(4,),
        capture_max=False,
        inputs=inputs,
        compiler="eager" if make is pw.compile else None,
    )
    with torch.inference_mode(False):
        fast = make(fn, config, platform=SimulatedPlatform(weak_refs=weak_refs))
        x = torch.randn(4, 8)
        with MODES[warm]():
            fast.warmup(x, progress=False)
            if inputs == "static":
                fast(x)
        with MODES[serve]():
            for _ in range(2):
                x.normal_()
                close(fast(x), fn(x))
    assert fast.stats().calls["replayed"] >= 2


# The user's memory ----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["piecewise", "full"])
def test_warmup_leaves_buffers_as_they_were_and_calls_write_once(mode):
    model = Cached()
    with torch.no_grad():
        model.cache.normal_()
    reference = copy.deepcopy(model)
    fast = compiled(model, graph_mode=mode)
    fast.warmup(torch.randn(3, 8), progress=False)
    same(model.cache, reference.cache)
    assert float(model.calls) == 0
    for size in (4, 1, 16, 3, 4):
        x = torch.randn(size, 8)
        close(fast(x), reference(x))
        close(model.cache, reference.cache)
        same(model.calls, reference.calls)


def test_a_capture_at_first_use_writes_once_too():
    model = Cached()
    reference = copy.deepcopy(model)
    fast = compiled(model, capture_sizes=(4, 16))
    for _ in range(3):
        x = torch.randn(4, 8)
        close(fast(x), reference(x))
        close(model.cache, reference.cache)
    assert float(model.calls) == 3


def test_writes_into_the_callers_own_tensor_are_visible():
    def step(x, out):
        y = torch.softmax(x.sin(), -1)
        out.add_(y)
        return y * 2

    fast = compiled(step, dynamic={"x": {0: N}, "out": {0: N}})
    fast.warmup(torch.randn(3, 8), torch.zeros(3, 8), progress=False)
    for size in (4, 16, 4, 3):
        x, out = torch.randn(size, 8), torch.randn(size, 8)
        wanted = out.clone()
        close(fast(x, out), step(x, wanted))
        close(out, wanted)
    assert fast.stats().calls["replayed"] == 3


def test_inputs_that_share_memory_with_what_is_written_are_served_without_graphs():
    def step(x, out):
        out.mul_(2)
        return torch.softmax(x, -1) + out

    fast = compiled(step, dynamic={"x": {0: N}, "out": {0: N}})
    both = torch.randn(4, 8)
    wanted = both.clone()
    close(fast(both, both), step(wanted, wanted))
    close(both, wanted)
    x, out = torch.randn(4, 8), torch.randn(4, 8)
    close(fast(x, out.clone()), step(x, out))
    close(fast(both, both), step(wanted, wanted))
    close(both, wanted)
    assert fast.stats().calls["replayed"] == 1


# Splitting ops --------------------------------------------------------------------------------


def functional(x):
    return torch.ops.pwgraphs.scale(x.sin()).cos()


def several(x):
    a, b = torch.ops.pwgraphs.pair(x.sin())
    return a.cos() + b[:, None]


def listing(x):
    a, b = torch.ops.pwgraphs.listed(x.sin())
    return a.cos() * b


def mutating(x):
    x = x.sin()
    out = torch.empty_like(x)
    torch.ops.pwgraphs.fill(x, out)
    return out * 2 + x


def in_a_row(x):
    x = torch.ops.pwgraphs.scale(torch.ops.pwgraphs.scale(x.sin()))
    a, b = torch.ops.pwgraphs.pair(x)
    return torch.ops.pwgraphs.scale(a) + b[:, None].cos()


def first(x):
    return torch.ops.pwgraphs.scale(x).sin().cos()


def last(x):
    return torch.ops.pwgraphs.scale(x.sin())


def only(x):
    return torch.ops.pwgraphs.scale(x)


@pytest.mark.parametrize("mode", ["piecewise", "full"])
@pytest.mark.parametrize(
    ("fn", "ops"),
    [
        (functional, ("scale",)),
        (several, ("pair",)),
        (listing, ("listed",)),
        (mutating, ("fill",)),
        (in_a_row, ("scale", "pair")),
        (first, ("scale",)),
        (last, ("scale",)),
        (only, ("scale",)),
    ],
    ids=lambda v: getattr(v, "__name__", None),
)
def test_splitting_ops_of_every_shape(fn, ops, mode):
    fast = compiled(fn, splitting_ops=tuple(f"pwgraphs::{op}" for op in ops), graph_mode=mode)
    fast.warmup(torch.randn(3, 8), progress=False)
    for size in (4, 16, 1, 4):
        x = torch.randn(size, 8)
        close(fast(x), fn(x))
    assert fast.stats().calls["replayed"] == 4


class Mixed(nn.Module):
    """A splitting op inside of an autocast region, its result used outside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x):
        y = self.a(x).relu()
        with torch.autocast("cpu", torch.bfloat16):
            z = torch.matmul(y, self.weight)
        return z.float() * 2, z


@pytest.mark.parametrize("mode", ["piecewise", "full"])
def test_autocast_around_a_splitting_op_is_in_force_at_replays_too(mode):
    model = Mixed()
    fast = compiled(model, splitting_ops=("torch.matmul",), graph_mode=mode)
    fast.warmup(torch.randn(2, 8), progress=False)
    x = torch.randn(4, 8)
    same(fast(x), model(x))
    assert fast.stats().calls["replayed"] == 1


def test_kernels_chosen_for_attention_are_chosen_at_replays_too():
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(8, 8)

        def forward(self, x):
            y = self.a(x).view(1, x.shape[0], 2, 4).transpose(1, 2)
            with sdpa_kernel([SDPBackend.MATH]):
                y = nn.functional.scaled_dot_product_attention(y, y, y)
            return y * 2

    model = Attention()
    fast = compiled(model, splitting_ops=("torch.nn.functional.scaled_dot_product_attention",))
    fast.warmup(torch.randn(2, 8), progress=False)
    for _ in range(2):
        x = torch.randn(4, 8)
        same(fast(x), model(x))
    assert fast.stats().calls["replayed"] == 2
    assert torch.backends.cuda.flash_sdp_enabled()


@torch.library.custom_op("pwgraphs::spread", mutates_args=())
def spread(x: torch.Tensor) -> torch.Tensor:
    return x.sum(0, keepdim=True).expand(x.shape[0], x.shape[1])


@spread.register_fake
def _(x):
    return x.new_empty(1, x.shape[1]).expand(x.shape[0], x.shape[1])


def test_an_expanded_result_is_served_by_ranges_and_the_reason_told():
    def fn(x):
        return spread(x + 1) * 2

    fast = compiled(fn, splitting_ops=("pwgraphs::spread",))
    report = fast.warmup(torch.randn(2, 8), progress=False)
    assert any("contiguous()" in note for note in report.dropped)
    x = torch.randn(4, 8)
    close(fast(x), fn(x))


def test_splitting_ops_are_called_at_every_replay():
    def fn(x):
        return torch.ops.pwgraphs.stateful(x.sin()) + 1

    fast = compiled(fn, splitting_ops=("pwgraphs::stateful",))
    fast.warmup(torch.randn(3, 8), progress=False)
    x = torch.randn(4, 8)
    for factor in (2.0, -1.0, 0.5):
        STATE.factor, STATE.seen = factor, 0
        close(fast(x), x.sin() * factor + 1)
        assert STATE.seen == 1


def test_modes_of_the_user_see_splitting_ops_in_replays():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Log(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.names = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names.append(str(func))
            return func(*args, **(kwargs or {}))

    fast = compiled(functional, splitting_ops=("pwgraphs::scale",))
    x = torch.randn(4, 8)
    wanted = fast(x).clone()
    with Log() as log:
        got = fast(x)
    same(got, wanted)
    assert "pwgraphs.scale.default" in log.names


# Outputs --------------------------------------------------------------------------------------


def test_an_output_is_overwritten_by_the_next_replay():
    fast = compiled(Block())
    fast.warmup(torch.randn(3, 8), progress=False)
    kept = fast(torch.randn(4, 8))
    before = kept.clone()
    fast(torch.randn(4, 8))
    assert not torch.equal(kept, before)


def test_cloned_outputs_are_the_callers_own():
    fast = compiled(Block(), clone_outputs=True)
    fast.warmup(torch.randn(3, 8), progress=False)
    kept = fast(torch.randn(4, 8))
    before = kept.clone()
    fast(torch.randn(4, 8))
    fast.release()
    same(kept, before)


def test_an_input_returned_as_it_is_is_the_callers_own_tensor():
    fast = compiled(lambda x: (x, torch.softmax(x, -1) * 2))
    x = torch.randn(4, 8)
    for _ in range(2):
        assert fast(x)[0] is x


# Padding --------------------------------------------------------------------------------------


class Sized(Block):
    def forward(self, x):
        y = super().forward(x)
        return {"y": y, "rows": x.shape[0], "double": 2 * x.shape[0], "flip": y.transpose(0, 1)}


def test_sizes_between_are_padded_to_the_next_and_outputs_cut_back():
    model = Sized()
    fast = compiled(model, padding="capture_sizes")
    fast.warmup(torch.randn(3, 8), progress=False)
    rows = 0
    for size in range(1, 17):
        x = torch.randn(size, 8)
        got, wanted = fast(x), model(x)
        assert (got["rows"], got["double"]) == (size, 2 * size)
        assert got["y"].shape == (size, 8)
        assert got["flip"].shape == (8, size)
        close(got["y"], wanted["y"])
        close(got["flip"], wanted["flip"])
        rows += min(s for s in SIZES if s >= size) - size
    stats = fast.stats()
    assert stats.calls["replayed"] == 16
    assert stats.padded_rows == rows


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e30])
def test_rows_of_an_earlier_call_never_leak(garbage):
    def fn(x):
        x = torch.softmax(x, -1)
        return x + x.sum(0)

    fast = compiled(fn, padding="capture_sizes", splitting_ops=("torch.softmax",))
    total = compiled(lambda x: x.sin().sum(0), splitting_ops=(), padding="capture_sizes")
    for call in (fast, total):
        call.warmup(torch.randn(3, 8), progress=False)
        call(torch.full((8, 8), garbage))
    x = torch.randn(5, 8)
    assert fast(x).isfinite().all()
    close(total(x), x.sin().sum(0))


def test_two_dims_are_padded_together():
    batch, length = pw.Dim("batch", 1, 4), pw.Dim("length", 1, 8)

    def fn(x):
        return torch.softmax(x.sin(), -1) * 2

    fast = compiled(
        fn,
        dynamic={"x": {0: batch, 1: length}},
        capture_sizes=((2, 4), (4, 8)),
        padding="capture_sizes",
    )
    fast.warmup(torch.randn(2, 2, 3), progress=False)
    for b, s in itertools.product(range(1, 5), range(1, 9)):
        x = torch.randn(b, s, 3)
        close(fast(x), fn(x))
    assert fast.stats().calls["replayed"] == 32


def test_programs_that_write_to_the_users_memory_are_not_padded():
    model = Cached()
    reference = copy.deepcopy(model)
    fast = compiled(model, padding="capture_sizes")
    fast.warmup(torch.randn(3, 8), progress=False)
    for size in (3, 4, 5, 8):
        x = torch.randn(size, 8)
        close(fast(x), reference(x))
        close(model.cache, reference.cache)
    calls = fast.stats().calls
    assert (calls["replayed"], calls["compiled_range"]) == (2, 2)
    assert fast.stats().padded_rows == 0


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: torch.cat([torch.softmax(x, -1), x]),
        lambda x: torch.softmax(x, -1).t().reshape(-1),
    ],
)
def test_outputs_whose_rows_are_not_at_the_end_are_not_padded(fn):
    fast = compiled(fn, padding="capture_sizes")
    for size in (3, 4, 5, 16):
        x = torch.randn(size, 8)
        close(fast(x), fn(x))
    assert fast.stats().padded_rows == 0


# Static inputs --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x.mean(0),
        lambda x: torch.softmax(x, 0),
        lambda x: x / x.shape[0],
        lambda x: torch.arange(x.shape[0]) - x.shape[0],
    ],
    ids=["mean", "softmax", "size in a value", "size in a whole number"],
)
def test_rows_that_see_each_other_are_found_out_and_served_without_padding(fn, caplog):
    def program(x):
        return fn(x), x * 2

    fast = compiled(program, splitting_ops=(), padding="capture_sizes")
    fast.warmup(torch.randn(2, 8), progress=False)
    for size in (5, 5, 3, 8):
        x = torch.randn(size, 8)
        close(fast(x), program(x))
    assert caplog.text.count("without padding from now on") == 1
    assert fast.stats().calls["replayed"] == 1
    assert fast.stats().padded_rows == 0


def test_rules_hold_where_checks_are_off_and_for_random_numbers():
    mean = compiled(
        lambda x: x.mean(0, keepdim=True), splitting_ops=(), padding="capture_sizes", check="off"
    )
    noisy = compiled(lambda x: torch.rand_like(x), splitting_ops=(), padding="capture_sizes")
    for fast in (mean, noisy):
        fast.warmup(torch.randn(2, 8), progress=False)
        fast(torch.randn(5, 8))
        assert fast.stats().calls["replayed"] == 0


def test_static_inputs_are_read_where_they_are():
    model = Block()
    fast = compiled(model, inputs="static")
    x = torch.randn(4, 8)
    for _ in range(3):
        close(fast(x), model(x))
        x.normal_()
    assert fast.stats().calls["replayed"] == 3


def test_a_static_input_that_moved_is_an_error_that_names_it():
    fast = compiled(Block(), inputs="static")
    x, other = torch.randn(4, 8), torch.randn(4, 8)
    fast(x)
    with pytest.raises(AddressChanged, match=r'"x" was at 0x[0-9a-f]+ .* now|"x" was at') as info:
        fast(other)
    assert hex(x.data_ptr()) in str(info.value)
    assert hex(other.data_ptr()) in str(info.value)
    close(fast(x), fast(x))


def test_static_inputs_that_are_written_are_written_once_a_call():
    def fn(x):
        x.add_(1)
        return torch.softmax(x, -1)

    fast = compiled(fn, inputs="static")
    x = torch.zeros(4, 8)
    for count in range(1, 4):
        fast(x)
        same(x, torch.full((4, 8), float(count)))


def test_warmup_of_static_inputs_compiles_and_captures_nothing():
    fast = compiled(Block(), inputs="static")
    report = fast.warmup(torch.randn(3, 8), progress=False)
    assert report.captured == ()
    fast(torch.randn(4, 8))
    assert fast.stats().captures == 2


def test_static_inputs_are_not_padded():
    model = Block()
    fast = compiled(model, inputs="static", padding="capture_sizes")
    for size in (3, 4, 5):
        x = torch.randn(size, 8)
        close(fast(x), model(x))
    assert fast.stats().padded_rows == 0


# Parameters -----------------------------------------------------------------------------------


def _replaced(model):
    model.a.weight = nn.Parameter(torch.randn(8, 8), requires_grad=False)


def _swapped(model):
    model.a.weight.data = torch.randn(8, 8)


def _assigned(model):
    model.load_state_dict(
        {k: torch.randn_like(v) for k, v in model.state_dict().items()}, assign=True
    )


@pytest.mark.parametrize("change", [_replaced, _swapped, _assigned])
def test_a_replaced_parameter_drops_plans_until_restored(change):
    model = Block()
    fast = compiled(model)
    fast.warmup(torch.randn(3, 8), progress=False)
    x = torch.randn(4, 8)
    fast(x)
    change(model)
    close(fast(x), model(x))
    stats = fast.stats()
    assert (stats.calls["replayed"], stats.pool_bytes) == (1, 0)
    fast.restore()
    close(fast(x), model(x))
    assert fast.stats().calls["replayed"] == 2
    assert fast.stats().captures == 16


def test_warmup_captures_again_after_a_parameter_was_replaced():
    model = Block()
    fast = compiled(model)
    fast.warmup(torch.randn(3, 8), progress=False)
    _swapped(model)
    report = fast.warmup(progress=False)
    assert len(report.captured) == 4
    x = torch.randn(4, 8)
    close(fast(x), model(x))
    assert fast.stats().calls["replayed"] == 1


def test_weights_changed_in_place_are_simply_seen():
    model = Block()
    fast = compiled(model)
    fast.warmup(torch.randn(3, 8), progress=False)
    model.a.weight.normal_()
    x = torch.randn(4, 8)
    close(fast(x), model(x))
    assert fast.stats().captures == 8


def test_a_model_moved_to_another_dtype_is_traced_and_captured_anew():
    model = Block()
    fast = compiled(model)
    fast.warmup(torch.randn(3, 8), progress=False)
    fast(torch.randn(4, 8))
    model.double()
    x = torch.randn(4, 8, dtype=torch.double)
    close(fast(x), model(x))
    fast.restore()
    for _ in range(2):
        close(fast(x), model(x))
    assert fast.stats().calls["replayed"] >= 2


# Books and limits -----------------------------------------------------------------------------


def test_after_seal_an_uncaptured_size_is_an_error_and_captured_ones_serve():
    model = Block()
    fast = compiled(model, capture_sizes=(4, 16))
    fast.warmup(torch.randn(3, 8), progress=False)
    fast.seal()
    x = torch.randn(4, 8)
    close(fast(x), model(x))
    lazy = compiled(model, capture_sizes=(4, 16))
    lazy(torch.randn(3, 8))
    lazy.seal()
    with pytest.raises(Sealed, match=r"\(4,\).*warmup"):
        lazy(x)


def test_static_inputs_captured_before_a_seal_may_be_captured_again():
    model = Block()
    fast = compiled(model, inputs="static")
    x = torch.randn(4, 8)
    fast.warmup(x, progress=False)
    fast(x)
    fast.seal()
    fast.release()
    close(fast(x), model(x))
    fast.restore()
    close(fast(x), model(x))
    assert fast.stats().calls["replayed"] == 2
    with pytest.raises(Sealed):
        fast(torch.randn(8, 8))


def test_a_seal_that_warns_captures_all_the_same(caplog):
    lazy = compiled(Block(), capture_sizes=(4, 16))
    lazy(torch.randn(3, 8))
    lazy.seal("warn")
    lazy(torch.randn(4, 8))
    assert "captured after seal" in caplog.text
    assert lazy.stats().calls["replayed"] == 1


def test_explain_and_the_report_list_what_is_captured():
    fast = compiled(Block())
    report = fast.warmup(torch.randn(3, 8), progress=False)
    assert "4 sizes captured" in str(report)
    assert report.graph_bytes == fast.stats().pool_bytes + fast.stats().driver_bytes
    text = str(fast.explain())
    assert "captured: n 1; n 4; n 8; n 16" in text


def test_a_platform_without_graphs_refuses_a_graph_mode():
    without = SimulatedPlatform()
    without.graphs = None
    with pytest.raises(ConfigError, match="graph_mode"):
        pw.compile(Block(), pw.Config(graph_mode="full", dynamic={"x": {0: N}}), platform=without)(
            torch.randn(2, 8)
        )


@pytest.fixture
def hasty():
    """Threads that take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("clone", [True, False])
@pytest.mark.usefixtures("hasty")
def test_two_threads_share_one_model(clone):
    model = Block()
    fast = compiled(model, clone_outputs=clone, padding="capture_sizes")
    fast.warmup(torch.randn(2, 8), progress=False)
    wrong = []

    def work(seed):
        generator = torch.Generator().manual_seed(seed)
        with torch.inference_mode():
            for _ in range(50):
                size = int(torch.randint(1, 17, (), generator=generator))
                x = torch.randn(size, 8, generator=generator)
                got = fast(x)
                time.sleep(0)  # lets the other thread replay before this one looks
                if not torch.allclose(got, model(x), atol=1e-5):
                    wrong.append(size)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    calls = fast.stats().calls
    assert sum(calls.values()) == 100
    assert calls["replayed"] == 100 if clone else calls["replayed"] >= 50


def test_strict_checks_tell_of_an_output_that_is_kept(caplog):
    model = Block()
    fast = compiled(model, check="strict")
    x = torch.randn(4, 8)
    with caplog.at_level("WARNING"):
        for _ in range(5):
            y = fast(x)
        assert "still held" not in caplog.text
        kept = [fast(x) for _ in range(5)]
    assert caplog.text.count("still held") == 1
    close(y, model(x))
    assert len(kept) == 5


class LastPlace(nn.Module):
    """A cache with room for one call more, as a decoder's has at its last step."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cache", torch.zeros(3, 8))
        self.register_buffer("place", torch.tensor([2]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.cache.index_copy_(0, self.place, x)
        self.place.add_(1)
        return torch.softmax(self.cache, -1) * 2


@pytest.mark.parametrize("splits", [(), SPLIT], ids=["whole", "cut"])
def test_a_capture_runs_twice_from_where_the_call_stands(splits):
    model, wanted = LastPlace(), LastPlace()
    config = pw.Config(graph_mode="piecewise", splitting_ops=splits, compiler="eager")
    fast, x = pw.compile(model, config, SimulatedPlatform()), torch.randn(1, 8)
    torch.testing.assert_close(fast(x), wanted(x))
    assert fast.stats().calls["replayed"] == 1
    torch.testing.assert_close([model.cache, model.place], [wanted.cache, wanted.place])


def turned(x):
    y = torch.softmax(x, 0)
    y.t_()
    return y


def turned_between(x):
    y = x * 2
    z = torch.softmax(y, 0)
    y.transpose_(0, 1)
    z.unsqueeze_(0)
    return torch.softmax(y, 0) + 1, z


@pytest.mark.parametrize("fn", [turned, turned_between])
@pytest.mark.parametrize("platform", ["cpu", None], ids=["cpu", "simulated"])
@pytest.mark.parametrize("columns", [4, 8])
def test_results_that_are_turned_in_place(fn, platform, columns):
    """A step fills the memory of a result, whatever becomes of the object that the program got."""
    config = pw.Config(
        dynamic={"x": {0: pw.Dim("rows", 1, 16)}},
        splitting_ops=SPLIT,
        capture_sizes=(4, 8),
        compiler="eager",
    )
    with torch.inference_mode():
        fast = pw.compile(fn, config, platform or SimulatedPlatform())
        for rows in (8, 4, 8, 4, 5):
            x = torch.randn(rows, columns)
            torch.testing.assert_close(fast(x), fn(x), rtol=0, atol=0)
        assert fast.stats().calls["replayed"] == 4
