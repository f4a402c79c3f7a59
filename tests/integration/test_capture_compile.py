"""``capture_compile``: whether static graphs hold code for exactly their size."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from source_platform import SourceCompiler
from torch import nn

import piecewise_core as pw
from piecewise_core.frontend import exactness
from piecewise_core.graph.convolutions import weights_turned, why_fixed
from piecewise_core.testing import SimulatedPlatform
from piecewise_cpu.platform import CpuPlatform


@torch.library.custom_op("pwexact::mix", mutates_args=())
def mix(x: torch.Tensor) -> torch.Tensor:
    return x.cumsum(-1)


@mix.register_fake
def _(x):
    return torch.empty_like(x)


class Model(nn.Module):
    """Two equal pieces around an operator, and one that counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.register_buffer("seen", torch.zeros(8))

    def forward(self, x):
        x = mix(self.first(x).relu())
        x = mix(self.second(x).relu())
        self.seen += 1
        return x * 2 + self.seen


class Wide(nn.Module):
    """Two dynamic dims."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)

    def forward(self, x):
        return mix(self.first(x).relu()) * 2


class Platform(SimulatedPlatform):
    """Compiles to source; its timer says that exact code takes ``exact`` of the range's time."""

    def __init__(self, exact: float | None = None, **facts) -> None:
        super().__init__(**facts)
        self.compiler = SourceCompiler()
        self.timed = 0
        times = itertools.cycle([1e-3, 1e-3 * (exact or 1)])

        def elapsed(run):
            run()
            self.timed += 1
            return 3 * next(times)  # of three replays

        if exact is not None:
            self.device.elapsed = elapsed


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """A compile store of the test's own."""
    monkeypatch.setenv("PIECEWISE_CACHE_MODE", "readwrite")
    monkeypatch.setenv("PIECEWISE_CACHE_DIR", str(tmp_path / "store"))


def compiled(platform, model=None, front=pw.compile, **settings):
    known = {
        "dynamic": {"x": {0: pw.Dim("rows", 1, 16)}},
        "capture_sizes": (2, 8),
        "splitting_ops": ("pwexact::mix",),
        **settings,
    }
    return front(model or Model(), pw.Config(**known), platform=platform)


def same(fast, model, sizes=(1, 2, 5, 8, 8, 16)):
    """Every call equals eager's, the counter too."""
    for rows in sizes:
        x = torch.randn(rows, 8)
        torch.testing.assert_close(fast(x), model(x))


@pytest.mark.parametrize("mode", ["piecewise", "full"])
def test_exact_sizes_are_compiled_before_their_capture_each_distinct_piece_once(mode):
    model, twin = Model(), Model()
    twin.load_state_dict(model.state_dict())
    platform = Platform()
    fast = compiled(platform, model, capture_compile="exact", graph_mode=mode)
    fast.warmup(torch.zeros(3, 8), progress=False)
    fast.seal()
    same(fast, twin)
    stats = fast.stats()
    # Two distinct pieces, for the range and the sizes 2, 8 and 16.
    assert (stats.compilations, len(set(platform.compiler.compiled))) == (8, 8)
    assert stats.calls["replayed"] == 4
    assert stats.calls["compiled_range"] == 2
    assert "size rows 8" in str(fast.explain())


def test_range_is_as_ever_and_auto_is_that_where_nothing_can_be_measured():
    for asked in ("range", "auto"):
        platform = Platform()
        fast = compiled(platform, capture_compile=asked)
        fast.warmup(torch.zeros(3, 8), progress=False)
        assert fast.stats().compilations == 2
        assert "captured sizes of" not in str(fast.explain())


def test_without_warmup_the_first_call_of_a_captured_size_compiles_it_exactly():
    model, twin = Model(), Model()
    twin.load_state_dict(model.state_dict())
    fast = compiled(Platform(), model, capture_compile="exact")
    same(fast, twin, (2, 2))
    assert fast.stats().compilations == 2
    assert fast.stats().calls["replayed"] == 2


def test_without_graphs_nothing_is_exact():
    model, twin = Model(), Model()
    twin.load_state_dict(model.state_dict())
    fast = compiled(Platform(), model, capture_compile="exact", graph_mode="none")
    fast.warmup(torch.zeros(3, 8), progress=False)
    same(fast, twin)
    assert fast.stats().compilations == 2


@pytest.mark.parametrize(("share", "compilations"), [(0.9, 2 + 3 * 2), (0.99, 2 + 2)])
def test_auto_compiles_exactly_where_that_was_measured_to_pay(share, compilations):
    model, twin = Model(), Model()
    twin.load_state_dict(model.state_dict())
    platform = Platform(share)
    fast = compiled(platform, model)
    fast.warmup(torch.zeros(3, 8), progress=False)
    assert torch.equal(model.seen, torch.zeros(8))  # measuring leaves no trace
    fast.seal()
    same(fast, twin)
    stats = fast.stats()
    assert (stats.compilations, stats.captures) == (compilations, 9)
    assert stats.calls["replayed"] == 4
    assert platform.graphs.live_graphs == 9
    said = " ".join(str(fast.explain()).split())
    assert f"took {share * 1000:.1f} us with code of their own, 1000.0 us" in said
    assert fast.explain().exact == tuple(
        f"region {r.index}: {why}" for r in regions(fast) for why in r.verdicts.values()
    )


class Shares(Platform):
    """Times ``one`` for size 1 and ``more`` for others: exact code's share of the range's."""

    def __init__(self, one, more):
        super().__init__(1.0)
        self.asked = []

        def elapsed(run):
            run()
            self.timed += 1
            exact, share = self.timed % 2 == 0, (more, one)[(self.timed - 1) // 14]
            return 3e-3 * (share if exact else 1)

        self.device.elapsed = elapsed


@pytest.mark.parametrize(("one", "more"), [(0.5, 1.0), (1.0, 0.5), (0.5, 0.5), (1.0, 1.0)])
def test_a_size_of_one_is_decided_by_itself(one, more):
    model, twin = Model(), Model()
    twin.load_state_dict(model.state_dict())
    platform = Shares(one, more)
    fast = compiled(platform, model, capture_sizes=(1, 2, 8))
    fast.warmup(torch.zeros(3, 8), progress=False)
    fast.seal()
    same(fast, twin)
    exact = {size for region in regions(fast) for size in region.exact}
    wanted = {(1,)} if one < 1 else set()
    assert exact == wanted | ({(2,), (8,), (16,)} if more < 1 else set())
    assert len(fast.explain().exact) == 2
    assert platform.timed == 2 * 14


def test_beside_many_captured_sizes_a_size_of_one_is_still_measured(kept):
    settings = {"capture_sizes": tuple(range(1, 12))}
    platform = Platform(0.5)
    fast = compiled(platform, **settings)
    fast.warmup(torch.zeros(3, 8), progress=False)
    assert (platform.timed, fast.stats().compilations) == (14, 2 + 2)
    assert [region.exact for region in regions(fast)] == [{(1,)}]
    many, one = fast.explain().exact
    assert "more than 8" in many
    assert "each size of 1 has its own" in one
    again = compiled(Platform(2.0), **settings)
    again(torch.zeros(1, 8))
    assert [region.exact for region in regions(again)] == [{(1,)}]


def test_of_several_dims_those_that_are_1_in_the_same_places_are_decided_together():
    platform = Platform(0.5)
    settings = {"dynamic": {"x": {0: pw.Dim("rows", 1, 16), 1: pw.Dim("length", 1, 64)}}}
    sizes = ((1, 1), (1, 16), (1, 64), (2, 1), (8, 1), (8, 64))
    fast = compiled(platform, Wide(), capture_sizes=sizes, capture_max=False, **settings)
    fast.warmup(torch.zeros(3, 4, 8), progress=False)
    assert platform.timed == 4 * 14
    (region,) = regions(fast)
    assert list(region.verdicts) == [(8, 64), (2, 1), (1, 16), (1, 1)]
    assert region.exact == set(sizes)
    said = " ".join(region.verdicts.values())
    assert said.count("each size with 1 there has its own") == 3


def regions(fast):
    return fast._pw_session.regions


def test_calls_wait_for_no_measurement():
    platform = Platform(0.5)
    fast = compiled(platform)
    fast(torch.zeros(8, 8))
    assert platform.timed == 0
    assert fast.stats().compilations == 2


def test_what_was_measured_is_kept_and_used_by_calls_too(kept):
    model, twin = Model(), Model()
    twin.load_state_dict(model.state_dict())
    compiled(Platform(0.5), model).warmup(torch.zeros(3, 8), progress=False)
    for warm in (True, False):
        platform = Platform(2.0)  # would decide otherwise
        fast = compiled(platform, model)
        if warm:
            fast.warmup(torch.zeros(3, 8), progress=False)
        same(fast, twin)
        assert platform.timed == 0
        assert fast.stats().compilations == 0
        assert "each captured size has its own" in " ".join(str(fast.explain()).split())


def test_a_bundle_brings_the_answer_and_the_code(tmp_path):
    model, twin = Model(), Model()
    twin.load_state_dict(model.state_dict())
    first = compiled(Platform(0.5), model)
    first.warmup(torch.zeros(3, 8), progress=False)
    first.save(tmp_path / "model.pwb")
    platform = Platform(2.0)
    fast = pw.load(tmp_path / "model.pwb", model, platform=platform)
    fast.warmup(progress=False)
    same(fast, twin)
    assert (platform.timed, fast.stats().compilations) == (0, 0)


def test_under_a_memory_limit_nothing_is_measured():
    platform = Platform(0.5)
    fast = compiled(platform, memory_limit=1 << 30)
    fast.warmup(torch.zeros(3, 8), progress=False)
    assert (platform.timed, fast.stats().compilations) == (0, 2)


def test_many_captured_sizes_are_not_compiled_one_by_one_unasked():
    platform = Platform(0.5)
    fast = compiled(platform, capture_sizes=tuple(range(2, 12)))
    fast.warmup(torch.zeros(3, 8), progress=False)
    assert (platform.timed, fast.stats().compilations) == (0, 2)
    assert "more than 8" in str(fast.explain())


def test_a_size_that_cannot_be_captured_measures_nothing_and_serves():
    model, twin = Model(), Model()
    twin.load_state_dict(model.state_dict())
    fast = compiled(Platform(0.5, fail_capture_at=1), model)
    fast.warmup(torch.zeros(3, 8), progress=False)
    same(fast, twin)
    why = "could not be measured: capturing sizes (8,) failed at region 0 piece 0"
    assert why in " ".join(str(fast.explain()).split())


def test_the_door_compiles_a_size_that_nobody_listed_exactly():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    door = torch.compile(
        model,
        backend="piecewise",
        dynamic=True,
        options={
            "platform": "cpu",
            "compiler": "eager",
            "capture": "first",
            "capture_compile": "exact",
        },
    )
    for rows in (3, 3, 5, 5):
        x = torch.randn(rows, 8)
        torch.testing.assert_close(door(x), model(x))


@pytest.mark.inductor
def test_compiled_static_plans_of_exact_sizes_equal_the_model():
    model, twin = Model(), Model()
    twin.load_state_dict(model.state_dict())
    settings = {"compiler": "inductor", "capture_sizes": (2,), "capture_max": False}
    fast = compiled(CpuPlatform(), model, capture_compile="exact", **settings)
    fast.warmup(torch.zeros(3, 8), progress=False)
    fast.seal()
    same(fast, twin)
    assert fast.stats().compilations == 4
    assert fast.stats().calls["replayed"] == 1


class Convolutions(nn.Module):
    """Two convolutions of more channels than a few, and what a transformer would do instead."""

    def __init__(self, channels: int = 72) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.ConvTranspose2d(channels, channels, 1)

    def forward(self, x):
        return self.second(self.first(x).relu())


@pytest.fixture
def on_a_gpu(monkeypatch):
    """Asked as of Inductor's code for a GPU: the simulated device is one of tensors on the CPU."""
    monkeypatch.setattr(
        exactness, "why_fixed", lambda graph, *_: why_fixed(graph, "inductor", "cuda")
    )
    monkeypatch.setattr(
        exactness, "weights_turned", lambda graph, *_: weights_turned(graph, "inductor", "cuda")
    )


def test_convolutions_get_code_of_a_captured_size_at_its_first_call_unmeasured(on_a_gpu):
    platform, model = Platform(2.0), Convolutions()
    fast = compiled(platform, model, splitting_ops=())
    x = torch.randn(8, 72, 4, 4)
    torch.testing.assert_close(fast(x), model(x))
    assert fast.stats().compilations == 1  # no code of the range: no call has asked for any
    assert fast.stats().captures == 1
    fast.warmup(x, progress=False)
    assert fast.stats().compilations == 4  # of 2, 8 and the largest, and of the range
    assert platform.timed == 0
    assert "each captured size has its own code" in " ".join(str(fast.explain()).split())
    for rows in (1, 2, 8, 8, 16):
        x = torch.randn(rows, 72, 4, 4)
        torch.testing.assert_close(fast(x), model(x))


def test_an_estimate_is_of_the_code_that_captures_of_convolutions_will_hold(on_a_gpu):
    fast = compiled(Platform(2.0), Convolutions(), splitting_ops=())
    fast(torch.randn(3, 72, 4, 4))
    assert fast.stats().compilations == 1
    fast.estimate()
    assert fast.stats().compilations == 4


def test_many_captured_sizes_of_convolutions_have_code_of_their_range(on_a_gpu):
    sizes = tuple(range(2, 12))
    fast = compiled(Platform(2.0), Convolutions(), capture_sizes=sizes, splitting_ops=())
    fast.warmup(torch.randn(3, 72, 4, 4), progress=False)
    assert fast.stats().compilations == 1


TURNED = "weights of convolutions are turned to channels last at every call"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, True),
        ({"capture_compile": "exact"}, True),
        ({"capture_compile": "range"}, False),  # whose code leaves them as they lie
        ({"capture_sizes": tuple(range(2, 12))}, False),  # more than have code of their own
    ],
    ids=["auto", "exact", "range", "many sizes"],
)
def test_advice_names_weights_that_code_of_fixed_sizes_lays_out_anew(on_a_gpu, settings, told):
    model = Convolutions()
    fast = compiled(Platform(2.0), model, splitting_ops=(), **settings)
    fast(torch.randn(8, 72, 4, 4))
    (advice,) = fast.status().advice or ("",)
    # The second reads one place at a time: its weight lies with channels last as it is.
    assert (TURNED in advice and "(1 of them, 0.19 MB)" in advice) == told
    assert (TURNED in " ".join(str(fast.explain()).split())) == told


def test_who_follows_the_advice_hears_it_no_more(on_a_gpu):
    model = Convolutions()
    fast = compiled(Platform(2.0), model, splitting_ops=())
    x = torch.randn(8, 72, 4, 4)
    torch.testing.assert_close(fast(x), model(x))
    assert any(TURNED in text for text in fast.status().advice)
    model.to(memory_format=torch.channels_last)
    fast = compiled(Platform(2.0), model, splitting_ops=())
    torch.testing.assert_close(fast(x), model(x))
    assert fast.status().advice == ()


def test_a_model_without_dims_has_the_advice_too(on_a_gpu):
    fast = pw.compile(Convolutions(), pw.Config(compiler="eager"), platform=Platform(2.0))
    fast(torch.randn(3, 72, 4, 4))
    assert any(TURNED in text for text in fast.status().advice)


def test_arguments_of_convolutions_may_be_given_by_name():
    weight = torch.randn(72, 72, 3, 3)

    def named(x):
        return nn.functional.conv2d(weight=weight, input=x)

    fast = pw.compile(named, pw.Config(dynamic={"x": {0: pw.Dim("n", 1, 9)}}, compiler="eager"))
    fast(torch.randn(3, 72, 4, 4))
    graph = regions(fast)[0].program.traced.graph.graph
    assert why_fixed(graph, "inductor", "cuda")
    assert TURNED in weights_turned(graph, "inductor", "cuda")


@torch.library.custom_op("pwexact::conv2d", mutates_args=())
def conv2d(x: torch.Tensor, sizes: list[int], weight: torch.Tensor) -> torch.Tensor:
    return nn.functional.conv2d(x, weight, padding=sizes)


@conv2d.register_fake
def _(x, sizes, weight):
    return torch.empty_like(x)


def test_an_operator_of_that_name_may_take_other_arguments(on_a_gpu):
    weight = torch.randn(72, 72, 3, 3)

    def both(x):
        return nn.functional.conv2d(conv2d(x, [1, 1], weight), weight, padding=1)

    fast = compiled(Platform(2.0), both, splitting_ops=())
    x = torch.randn(8, 72, 4, 4)
    torch.testing.assert_close(fast(x), both(x))
    assert [TURNED in text for text in fast.status().advice] == [True]


@pytest.mark.parametrize("channels", [8, 72])
def test_weights_of_volumes_count_and_those_of_few_channels_do_not(channels):
    model = nn.Conv3d(channels, channels, 3)
    fast = pw.compile(model, pw.Config(compiler="eager"))
    fast(torch.randn(1, channels, 4, 4, 4))
    graph = regions(fast)[0].program.traced.graph.graph
    assert (TURNED in weights_turned(graph, "inductor", "cuda")) == (channels == 72)
    assert weights_turned(graph, "inductor", "cpu") == weights_turned(graph, "eager", "cuda") == ""


@pytest.mark.parametrize(
    ("model", "shape", "named"),
    [
        (Convolutions(), (3, 72, 4, 4), {0: "rows"}),
        (Convolutions(8), (3, 8, 4, 4), {0: "rows"}),  # few channels
        (nn.Sequential(Convolutions(), *[nn.GELU()] * 120), (3, 72, 4, 4), {0: "rows"}),
        (Model(), (3, 8), {0: "rows"}),
    ],
    ids=["convolutions", "few channels", "among many others", "none"],
)
def test_which_programs_convolve_varying_sizes(model, shape, named):
    dims = {0: {place: pw.Dim(name, 1, 16) for place, name in named.items()}}
    fast = pw.compile(model, pw.Config(dynamic=dims, compiler="eager"))
    fast(torch.randn(shape))
    graph = regions(fast)[0].program.traced.graph.graph
    first = isinstance(model, Convolutions) and shape[1] > 64
    assert bool(why_fixed(graph, "inductor", "cuda")) == first
    assert not why_fixed(graph, "inductor", "cpu")
    assert not why_fixed(graph, "eager", "cuda")


def test_convolutions_of_fixed_sizes_are_laid_out_already():
    model = Convolutions()

    def both(x, y):
        return model(x), y * 2

    fast = pw.compile(both, pw.Config(dynamic={"y": {0: pw.Dim("n", 1, 9)}}, compiler="eager"))
    fast(torch.randn(3, 72, 4, 4), torch.randn(3))
    graph = regions(fast)[0].program.traced.graph.graph
    assert not why_fixed(graph, "inductor", "cuda")
