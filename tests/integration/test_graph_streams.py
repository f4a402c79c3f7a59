"""Parts of a forward on two streams of one captured graph: the same numbers, or no graph at all."""

from __future__ import annotations

import contextlib

import pytest
import torch
from parallel_models import MODELS, Drawing, Noting, Sides, Usual, inputs

import piecewise_core as pw
from piecewise_core.capture.graphmemory import GraphMemory
from piecewise_core.capture.graphstreams import GAINS, GraphStreams
from piecewise_core.capture.source import Source
from piecewise_core.capture.twostreams import TwoStreams
from piecewise_core.counters import Counters
from piecewise_core.plugins import declared
from piecewise_core.runtime.forking import Forking
from piecewise_core.testing import SimulatedPlatform
from piecewise_core.testing.simulated.runtime import SimulatedRuntime

SIZES = (2, 6)
WIDTH = 32


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Each model is traced once, whatever it is built for."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(autouse=True)
def _inference(monkeypatch, store):
    monkeypatch.setenv("PIECEWISE_CACHE_MODE", "readwrite")
    monkeypatch.setenv("PIECEWISE_CACHE_DIR", str(store))
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


class Timer(SimulatedRuntime):
    """A device whose timer gives what it is told, in turn: of one stream, then of two."""

    def __init__(self, of, *seconds):
        super().__init__(of._device)
        self.seconds, self.asked = seconds, 0

    def elapsed(self, run):
        run()
        self.asked += 1
        return self.seconds[(self.asked - 1) % len(self.seconds)]


def timed(*seconds):
    platform = SimulatedPlatform()
    platform.device = Timer(platform.device, *seconds)
    return platform


def built(model, name="towers", platform=None, warm=True, **config):
    dims = {place: {0: pw.Dim("rows", 1, 6)} for place in range(2 if name == "mm-dit" else 1)}
    settings = {
        "dynamic": dims,
        "capture_sizes": SIZES,
        "graph_mode": "full",
        "graph_streams": "two",
        "compiler": "eager",
        "capture_compile": "range",
        **config,
    }
    fast = pw.compile(model, pw.Config(**settings), platform or SimulatedPlatform())
    if warm:
        fast.warmup(*inputs(name, 6, WIDTH))
    return fast


def capturing(fast):
    return fast._pw_session.forms[0].capturing


def forks(fast):
    return [plan.forks for plan in capturing(fast).plans]


def right(fast, model, name="towers", sizes=SIZES):
    for rows in (*sizes, *sizes):
        given = inputs(name, rows, WIDTH)
        for a, b in zip(*(map(_leaves, (fast(*given), model(*given)))), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def _leaves(result):
    return torch.utils._pytree.tree_leaves(result)


def said(fast):
    return [line for line in str(fast.explain()).splitlines() if line.startswith("graph of")]


@pytest.mark.parametrize(
    ("name", "count"), [("towers", 1), ("gpt-j", 2), ("mm-dit", 3), ("crossing", 2), ("long", 4)]
)
def test_models_with_parallel_parts_fork_and_give_the_same(name, count):
    model = MODELS[name](WIDTH).eval()
    fast = built(model, name)
    assert forks(fast) == [count, count]
    right(fast, model, name)
    assert fast.stats().calls["replayed"] == sum(fast.stats().calls.values())
    assert len(said(fast)) == 2
    assert f"two streams, {count} fork" in said(fast)[0]


def test_splitting_ops_may_be_in_a_lane():
    model = MODELS["gpt-j"](WIDTH).eval()
    fast = built(model, splitting_ops=("torch.nn.functional.scaled_dot_product_attention",))
    assert forks(fast) == [2, 2]
    right(fast, model)


def test_results_are_bitwise_those_of_the_same_pieces_on_one_stream(monkeypatch):
    model = MODELS["gpt-j"](WIDTH).eval()
    two = built(model)
    monkeypatch.setattr(GraphStreams, "side", lambda self, whole: None)
    one = built(model)
    assert (forks(two), forks(one)) == ([2, 2], [0, 0])
    assert two.stats().pieces == one.stats().pieces
    for rows in SIZES:
        given = inputs("gpt-j", rows, WIDTH)
        pairs = zip(_leaves(two(*given)), _leaves(one(*given)), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_a_model_without_parallel_parts_is_cut_nowhere():
    model = Usual(WIDTH).eval()
    fast = built(model)
    assert forks(fast) == [0, 0]
    assert fast.stats().pieces == 1
    assert "one stream, as nothing in it is independent of enough else" in said(fast)[0]
    right(fast, model)


def test_one_stream_is_the_default_and_cuts_nothing():
    model = Sides(WIDTH).eval()
    fast = built(model, graph_streams="one")
    assert fast.stats().pieces == 1
    assert not said(fast)
    assert "graph_streams" not in str(fast.explain())


@pytest.mark.parametrize("model", [Drawing, Noting])
def test_effects_stay_outside_of_lanes_and_happen_once(model):
    made = model(WIDTH).eval()
    fast = built(made)
    assert forks(fast) == [1, 1]
    lanes = [p for p in fast._pw_session.regions[0].program.pieces if p.lane is not None]
    assert len(lanes) == 2
    assert all("rand_like" not in op and "add_" not in op for p in lanes for op in p.ops)
    (x,) = inputs("towers", 2, WIDTH)
    if model is Drawing:
        assert not torch.equal(fast(x).clone(), fast(x))
        return
    for _ in range(3):
        fast(x)
    assert int(made.place) == 3


# What a mistake in forks would do ------------------------------------------------------


def _failed(fast):
    """Why every size has one stream."""
    assert forks(fast) == [0, 0]
    assert all("one stream, as two failed: " in line for line in said(fast))
    return " ".join(" ".join(capturing(fast).plans.streams.said.values()).split())


def test_a_join_that_is_left_out_is_on_one_stream(monkeypatch):
    model = Sides(WIDTH).eval()
    monkeypatch.setattr(TwoStreams, "join", lambda self: None)
    fast = built(model)
    assert "at the same time as" in _failed(fast)
    right(fast, model)


def test_a_fork_that_does_not_wait_is_on_one_stream(monkeypatch):
    monkeypatch.setattr(TwoStreams, "fork", lambda self: None)
    fast = built(Sides(WIDTH).eval())
    assert "a stream that was not joined to the captured one" in _failed(fast)


def test_a_value_let_go_of_before_the_join_is_on_one_stream(monkeypatch):
    """The case that only holding until the join prevents; without it another lane takes memory."""
    model = MODELS["crossing"](WIDTH).eval()
    assert forks(built(model)) == [2, 2]

    def careless(self):
        if self._fork is not None:
            self._lines.append(type(self._lines[0])("_join()"))
            self._fork = None

    monkeypatch.setattr(Forking, "_join", careless)
    assert "at the same time as" in _failed(built(model))


def test_work_that_nobody_joins_is_on_one_stream(monkeypatch):
    join = TwoStreams.join

    def late(self):
        join(self)
        with self.side():
            torch.ones(3) + 1

    monkeypatch.setattr(TwoStreams, "join", late)
    assert "was not joined" in _failed(built(Sides(WIDTH).eval()))


def test_an_error_in_a_lane_is_no_error_on_one_stream(monkeypatch):
    model, platform = Sides(WIDTH).eval(), SimulatedPlatform()
    side = TwoStreams.side

    @contextlib.contextmanager
    def failing(self):
        with side(self):
            yield
            if platform.graphs.is_capturing():
                raise RuntimeError("this lane fails")

    with monkeypatch.context() as patch:
        patch.setattr(TwoStreams, "side", failing)
        fast = built(model, platform=platform)
        assert "this lane fails" in _failed(fast)
        right(fast, model)
    assert not platform.graphs.is_capturing()
    assert platform.graphs.live_graphs == len(SIZES)
    again = built(model, platform=platform)
    assert forks(again) == [1, 1]
    right(again, model)


# Where there is one stream -------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "platform", "why"),
    [
        ({}, SimulatedPlatform(forks=False), "offers no wait_stream"),
        ({"graph_mode": "piecewise"}, SimulatedPlatform(), "it is for whole forwards"),
        ({"graph_mode": "none"}, SimulatedPlatform(), "it is for whole forwards"),
        ({"graph_streams": "auto"}, SimulatedPlatform(), "has no timer to measure by"),
    ],
)
def test_a_place_without_two_streams_says_so_in_one_line(config, platform, why):
    model = Sides(WIDTH).eval()
    fast = built(model, platform=platform, **config)
    (advice,) = fast.status().advice
    assert advice.startswith('graph_streams="')
    assert why in advice
    assert fast.stats().pieces == 1
    right(fast, model)


def test_the_cpu_has_one_stream_and_says_so():
    model = Sides(WIDTH).eval()
    fast = built(model, platform="cpu")
    (advice,) = fast.status().advice
    assert "offers no wait_stream" in advice
    right(fast, model)


def test_recorded_functions_have_one_stream_and_say_so():
    model = Sides(WIDTH).eval()
    config = pw.Config(
        dynamic={0: {0: pw.Dim("rows", 1, 6)}},
        capture_sizes=SIZES,
        graph_mode="full",
        graph_streams="two",
    )
    fast = pw.record(model, config, SimulatedPlatform())
    fast.warmup(*inputs("towers", 6, WIDTH))
    right(fast, model)
    assert any("pw.record sees no parts" in text for text in fast.status().advice)


# "auto" --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "kept"), [((1e-4, 6e-5), 1), ((1e-4, 1e-4 * GAINS * 1.01), 0), ((1e-4, 2e-4), 0)]
)
def test_auto_keeps_what_a_replay_finds_faster(seconds, kept):
    model, platform = Sides(WIDTH).eval(), timed(*seconds)
    fast = built(model, platform=platform, graph_streams="auto")
    assert forks(fast) == [kept, kept]
    assert platform.graphs.live_graphs == len(SIZES)
    words = ("one stream", "two streams")[kept]
    us = [f"{value * 1e6:.1f}" for value in seconds]
    assert f"{words} for 1 fork: {us[1]} us on two, {us[0]} us on one" in said(fast)[0]
    right(fast, model)


def test_measuring_leaves_no_trace_in_what_replays_write_to():
    model = Noting(WIDTH).eval()
    fast = built(model, platform=timed(1e-4, 5e-5), graph_streams="auto", warm=False)
    (x,) = inputs("towers", 6, WIDTH)
    fast(x)  # captured, and measured, in the middle of a call
    assert int(model.place) == 1
    assert forks(fast) == [1]
    fast(x)
    assert int(model.place) == 2


def test_measuring_moves_no_inputs_on():
    class Moving(Sides):
        def forward(self, x, place):
            y = super().forward(x)
            place.add_(1)
            return y + self.one.up.weight[place, :1].sum()

    model = Moving(WIDTH).eval()
    settings = {"dynamic": {0: {0: pw.Dim("rows", 1, 6)}}, "graph_streams": "auto", "warm": False}
    fast = built(model, platform=timed(1e-4, 5e-5), **settings)
    (x,), last = inputs("towers", 6, WIDTH), 4 * WIDTH - 3
    place = torch.tensor([last])
    torch.testing.assert_close(fast(x, place), model(x, torch.tensor([last])))
    assert int(place) == last + 1
    assert forks(fast) == [1]


def test_auto_leaves_the_random_numbers_alone():
    model = Drawing(WIDTH).eval()
    fast = built(model, platform=timed(1e-4, 5e-5), graph_streams="auto", warm=False)
    (x,) = inputs("towers", 6, WIDTH)
    before = torch.get_rng_state()
    fast.warmup(x)
    assert forks(fast) == [1, 1]
    assert torch.equal(before, torch.get_rng_state())


def test_a_size_that_holds_only_one_of_both_keeps_it():
    platform = timed(1e-4, 2e-4)
    platform.graphs._max_graphs, platform.graphs.tells_budget = 1, False
    model = Sides(WIDTH).eval()
    fast = built(model, platform=platform, graph_streams="auto", capture_sizes=(6,))
    assert forks(fast) == [1]
    assert "one could not be captured beside it" in said(fast)[0]
    right(fast, model, sizes=(6,))


# With the rest -------------------------------------------------------------------------


def test_padding_sharing_eviction_release_and_first_calls_work_with_forks():
    model = Sides(WIDTH).eval()
    padded = built(model, padding="capture_sizes", graph_executables="shared")
    right(padded, model, sizes=(1, 2, 3, 4, 5, 6))
    stats = padded.stats()
    assert stats.calls["replayed"] == sum(stats.calls.values())
    assert stats.executables == 1
    assert forks(padded) == [1, 1]
    padded.release()
    right(padded, model)
    padded.restore()
    assert forks(padded) == [1, 1]
    right(padded, model)
    late = built(model, warm=False)
    right(late, model)
    assert forks(late) == [1, 1]


def test_sizes_beyond_the_limit_are_evicted_with_what_was_said_of_them():
    model = Sides(WIDTH).eval()
    all_of = built(model).stats().pool_bytes
    fast = built(model, memory_limit=all_of * 3 // 4)
    right(fast, model)
    assert len(said(fast)) == len(forks(fast)) < len(SIZES)


def test_estimate_has_what_captures_on_two_streams_take():
    model = Sides(WIDTH).eval()
    fast = built(model, warm=False, capture="lazy")
    fast(*inputs("towers", 6, WIDTH))
    found = fast.estimate()
    fast.warmup()
    assert abs(found.pool_bytes - fast.stats().pool_bytes) <= found.error_bytes


def test_verify_finds_nothing_wrong():
    model = MODELS["gpt-j"](WIDTH).eval()
    fast = built(model, check="verify", verify_rate=1.0)
    right(fast, model)
    assert not fast.explain().as_written


def test_full_and_piecewise_forks_whole_forwards():
    model = Sides(WIDTH).eval()
    fast = built(model, graph_mode="full_and_piecewise")
    assert forks(fast) == [1, 1]
    right(fast, model)


def test_the_door_takes_the_setting():
    model = Sides(WIDTH).eval()
    options = {
        "platform": SimulatedPlatform(),
        "compiler": "eager",
        "capture_sizes": SIZES,
        "graph_mode": "full",
        "graph_streams": "two",
    }
    fast = torch.compile(model, backend="piecewise", dynamic=True, options=options)
    right(fast, model, sizes=(6, 2))
    assert options["platform"].graphs.live_graphs


class NoRoom(torch.Tensor):
    def clone(self):
        raise torch.OutOfMemoryError("no room")


@pytest.mark.parametrize("why", ["other ranks", "no memory"])
def test_where_nothing_can_be_measured_there_is_one_stream(why):
    platform = timed(1e-4, 5e-5)
    memory = GraphMemory(declared(platform), Counters(), None)
    memory.open()
    inputs = (torch.zeros(1).as_subclass(NoRoom),) if why == "no memory" else ()
    source = Source(lambda recorder: None, inputs, (), (), lambda tensors, sizes: None, owned=True)
    streams, taken = GraphStreams(memory, "auto"), []
    again = None if why == "other ranks" else lambda: source
    streams.capture(lambda **given: taken.append(given), source, (6,), True, again)
    assert [given.get("side") for given in taken] == [None]
    assert why in streams.said[6,]
