"""Static graphs behind ``torch.compile(model, backend="piecewise")``."""

from __future__ import annotations

import gc
import itertools
import threading

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed
from torch.multiprocessing.reductions import StorageWeakRef

import piecewise_core as pw
from piecewise_core.testing import SimulatedPlatform


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch.manual_seed(0)
    torch._dynamo.reset()
    with torch.inference_mode():
        yield
    torch._dynamo.reset()


class Through:
    """``fn`` at the door of one platform, and what was counted since it came there."""

    def __init__(self, fn, *, platform=None, dynamic=None, mode=None, fullgraph=True, **options):
        self.platform = platform or SimulatedPlatform()
        if mode is None:
            options = {"compiler": "eager", "platform": self.platform, **options}
        self.fast = torch.compile(
            fn,
            backend="piecewise",
            dynamic=dynamic,
            mode=mode,
            fullgraph=fullgraph,
            options=options or None,
        )
        self._before = pw.counters.stats()

    def __call__(self, *args, **kwargs):
        return self.fast(*args, **kwargs)

    @property
    def captures(self):
        return pw.counters.stats().captures - self._before.captures

    @property
    def replayed(self):
        return pw.counters.stats().calls["replayed"] - self._before.calls["replayed"]

    @property
    def live(self):
        return self.platform.graphs.live_graphs


def mlp(width=8):
    with torch.inference_mode(False):
        layers = torch.nn.Linear(width, 16), torch.nn.GELU(), torch.nn.Linear(16, width)
        return torch.nn.Sequential(*layers).eval()


def same(got, wanted):
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def refused(fn, *inputs, mode=None, options=None):
    fast = torch.compile(fn, backend="piecewise", mode=mode, options=options)
    with pytest.raises(BackendCompilerFailed) as caught:
        fast(*inputs)
    return str(caught.value)


# When ---------------------------------------------------------------------------------


@pytest.mark.parametrize("platform", ["cpu", "simulated"])
def test_every_size_is_captured_at_its_second_call_and_those_that_dynamo_specialises_too(platform):
    model = mlp()
    own = {"platform": "cpu"} if platform == "cpu" else {}
    fast = Through(model, dynamic=True, **own)
    for rows in (5, 7, 5, 1, 0, 7, 5, 1, 0, 9):
        x = torch.randn(rows, 8)
        same(fast(x), model(x))
    assert (fast.captures, fast.replayed) == (4, 5)


def test_a_graph_without_dims_is_captured_at_its_second_call():
    model = mlp()
    fast = Through(model, dynamic=False)
    for expected in (0, 1, 1):
        x = torch.randn(3, 8)
        same(fast(x), model(x))
        assert fast.captures == expected


def test_sizes_that_are_marked_as_unbacked_are_all_of_one_graph():
    def fn(x):
        return x.softmax(-1).transpose(0, 1) + 1

    fast = Through(fn)
    for size in (5, 0, 1, 5, 0, 1):
        x = torch.randn(size, 8)
        torch._dynamo.decorators.mark_unbacked(x, 0)
        same(fast(x), fn(x))
    assert fast.replayed == 3
    assert [graph.captured for graph in pw.dynamo_graphs()] == [((0,), (1,), (5,))]


def test_listed_sizes_are_captured_and_no_others():
    model = mlp()
    fast = Through(model, dynamic=True, capture_sizes=(4, 9), compile_ranges_endpoints=(6,))
    for rows in (4, 5, 9, 4, 5, 9, 5):
        x = torch.randn(rows, 8)
        same(fast(x), model(x))
    assert (fast.captures, fast.replayed) == (2, 2)


def test_at_the_first_call_if_that_is_asked_for():
    model = mlp()
    fast = Through(model, dynamic=True, capture="first")
    for rows in (4, 5):
        x = torch.randn(rows, 8)
        same(fast(x), model(x))
    assert (fast.captures, fast.replayed) == (2, 2)


def test_two_dims_are_captured_by_pairs_of_sizes():
    model = mlp()
    fast = Through(lambda x: model(x).softmax(1), dynamic=True)
    for shape in ((2, 3), (3, 2), (2, 3), (3, 2), (2, 3)):
        x = torch.randn(*shape, 8)
        same(fast(x), model(x).softmax(1))
    assert (fast.captures, fast.replayed) == (2, 3)


def test_beyond_so_many_sizes_no_more_are_captured_and_the_log_says_so(caplog):
    from piecewise_core.frontend.door.sizes import MOST

    fast = Through(lambda x: x * 2, dynamic=True)
    with caplog.at_level("INFO", logger="piecewise_core.frontend.door"):
        for rows in [*range(2, MOST + 6)] * 2:
            x = torch.randn(rows)
            same(fast(x), x * 2)
    assert fast.captures == MOST
    assert sum("capture_sizes" in r.getMessage() for r in caplog.records) == 1


@pytest.mark.parametrize("mode", [None, "default", "reduce-overhead", "max-autotune-no-cudagraphs"])
def test_modes_of_torch_are_taken(mode):
    model = mlp()
    fast = Through(model, dynamic=True, **({"mode": mode} if mode else {}))
    for _ in range(3):
        x = torch.randn(5, 8)
        same(fast(x), model(x))
    assert fast.captures == (0 if mode == "max-autotune-no-cudagraphs" else 1)


def test_the_mode_may_be_an_option():
    fast = torch.compile(
        mlp(),
        backend="piecewise",
        options={"mode": "reduce-overhead", "compiler": "eager", "platform": SimulatedPlatform()},
    )
    before = pw.counters.captures
    for _ in range(2):
        fast(torch.randn(3, 8))
    assert pw.counters.captures == before + 1


@pytest.mark.skipif(
    not hasattr(torch.compiler, "set_default_backend"), reason="this torch has no default backend"
)
def test_it_may_be_the_default_backend(monkeypatch):
    monkeypatch.setenv("PIECEWISE_COMPILER", "eager")
    torch.compiler.set_default_backend("piecewise")
    try:
        model, before = mlp(), pw.counters.captures
        fast = torch.compile(model, dynamic=True, mode="reduce-overhead")
        for _ in range(3):
            x = torch.randn(5, 8)
            same(fast(x), model(x))
        assert pw.counters.captures == before + 1
    finally:
        torch.compiler.set_default_backend(None)


def test_the_environment_turns_graphs_off(monkeypatch):
    monkeypatch.setenv("PIECEWISE_GRAPH_MODE", "none")
    fast = Through(mlp())
    for _ in range(3):
        fast(torch.randn(3, 8))
    assert fast.captures == 0


# Options ------------------------------------------------------------------------------


def test_a_mode_that_we_do_not_have_is_refused_with_those_that_we_have():
    said = refused(mlp(), torch.randn(3, 8), mode="max-autotune")
    assert "ConfigError" in said
    assert "'default', 'reduce-overhead', 'max-autotune-no-cudagraphs'" in said
    assert "did you mean" in refused(mlp(), torch.randn(3, 8), mode="reduce-overhed")


@pytest.mark.parametrize("options", ["reduce-overhead", ["capture_sizes"], 3])
def test_options_that_are_no_dict_are_refused(options):
    said = refused(mlp(), torch.randn(3, 8), options=options)
    assert "ConfigError" in said
    assert "no dict of Config fields" in said


def test_a_mode_and_a_graph_mode_that_contradict_each_other_are_refused():
    x = torch.randn(3, 8)
    assert "for none" in refused(
        mlp(), x, options={"mode": "reduce-overhead", "graph_mode": "none"}
    )
    other = {"mode": "max-autotune-no-cudagraphs", "graph_mode": "full"}
    assert "for some" in refused(mlp(), x, options=other)


def without_graphs():
    platform = SimulatedPlatform()
    platform.graphs = None
    platform.name = f"plain-{id(platform)}"  # each is told of anew
    return platform


@pytest.mark.parametrize("asked", [{"mode": "reduce-overhead"}, {"capture_sizes": (4,)}])
def test_a_platform_without_graphs_is_named_once_where_they_were_asked_for(caplog, asked):
    model, platform = mlp(), without_graphs()
    name, value = next(iter(asked.items()))
    options = {"compiler": "eager", "platform": platform, name: value}
    with caplog.at_level("WARNING", logger="piecewise_core"):
        for rows in (3, 4, 5):
            fast = torch.compile(model, backend="piecewise", options=options, dynamic=False)
            x = torch.randn(rows, 8)
            same(fast(x), model(x))
    said = [r.getMessage() for r in caplog.records if platform.name in r.getMessage()]
    assert len(said) == 1
    assert name in said[0]


def test_nothing_is_said_where_nobody_asked(caplog):
    with caplog.at_level("WARNING", logger="piecewise_core"):
        model = mlp()
        fast = Through(model, platform=without_graphs())
        x = torch.randn(3, 8)
        same(fast(x), model(x))
    assert not caplog.records


def test_options_that_do_nothing_are_named_once(caplog):
    with caplog.at_level("WARNING", logger="piecewise_core"):
        for rows in (3, 4):
            Through(mlp(), out_of_range="eager", max_forms=3, dynamic=False)(torch.randn(rows, 8))
    said = [r.getMessage() for r in caplog.records]
    assert len(said) == 1
    assert "out_of_range, max_forms has no effect" in said[0]


# Results ------------------------------------------------------------------------------


def test_results_are_the_callers_own():
    model = mlp()
    fast = Through(model)
    inputs = [torch.randn(3, 8) for _ in range(6)]
    for result, x in zip([fast(x) for x in inputs], inputs, strict=True):
        same(result, model(x))


def test_without_copies_the_next_replay_of_that_graph_overwrites_them():
    fast = Through(lambda x: x * 2, clone_outputs=False)
    first = [fast(torch.full((3,), float(n))) for n in range(4)]
    assert first[2].data_ptr() == first[3].data_ptr()
    torch.testing.assert_close(first[3], torch.full((3,), 6.0))


@pytest.mark.parametrize("clone", [True, False])
def test_no_graph_overwrites_what_another_gave_in_the_same_call(clone):
    def fn(x):
        a, b = x * 2, x + 1
        torch._dynamo.graph_break()
        c = a.sin() * b
        torch._dynamo.graph_break()
        return a + b + c

    fast = Through(fn, fullgraph=False, clone_outputs=clone)
    for _ in range(4):
        x = torch.randn(4, 4)
        same(fast(x), fn(x))
    assert fast.captures == 3
    # Results in the graphs' memory are no inference tensors, which Dynamo guards.
    assert fast.replayed == (9 if clone else 6)
    torch._dynamo.reset()
    assert not pw.dynamo_graphs()  # Dynamo keeps what lies around breaks in this module's globals


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.view(-1),
        lambda x: x[1:],
        lambda x: x.T,
        lambda x: x[:, ::2],
        lambda x: x.detach(),
        lambda x: x.unsqueeze(0).expand(2, -1, -1),
    ],
)
@pytest.mark.parametrize("large", [False, True])
def test_a_result_that_is_a_view_of_an_input_stays_one(view, large):
    def fn(x):
        x.add_(1)
        return view(x), x * 2

    fast = Through(fn)
    x, y = torch.zeros(4, 70000 if large else 6), torch.zeros(4, 70000 if large else 6)
    for _ in range(4):
        (a, twice), (b, wanted) = fast(x), fn(y)
        same(a, b)
        same(twice, wanted)
        a[-1, ..., -1:].fill_(7.0) if a.dim() > 1 else a[-1:].fill_(7.0)
        b[-1, ..., -1:].fill_(7.0) if b.dim() > 1 else b[-1:].fill_(7.0)
        same(x, y)
    assert fast.replayed == 3


def test_results_that_are_views_of_each_other_stay_so():
    def fn(x):
        y = x * 2
        return y, y.view(-1)

    fast = Through(fn)
    for _ in range(3):
        whole, flat = fast(torch.ones(2, 3))
        flat.zero_()
        assert not whole.any()
    assert fast.replayed == 2


def test_a_view_of_a_buffer_is_the_buffers():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(4))

        def forward(self, x):
            self.seen.add_(x)
            return self.seen[1:], x + self.seen

    model = Model()
    fast = Through(model)
    for turn in range(1, 5):
        part, total = fast(torch.ones(4))
        same(total, torch.full((4,), turn + 1.0))
        assert part.data_ptr() == model.seen[1:].data_ptr()
    assert fast.replayed == 3


# Memory that is written to --------------------------------------------------------------


@pytest.mark.parametrize("width", [6, 300_000])
def test_writes_to_inputs_are_seen_once_a_call_wherever_these_lie(width):
    def fn(x, y):
        x.add_(1)
        return (x[:4] * y).sum()

    fast = Through(fn)
    kept, y = torch.zeros(width), torch.ones(1)
    for turn in range(1, 6):
        same(fast(kept, y), torch.tensor(4.0 * turn))
        same(kept, torch.full((width,), float(turn)))
    assert fast.replayed == 4
    for _ in range(4):
        other = torch.zeros(width)
        same(fast(other, y), torch.tensor(4.0))
        same(other, torch.ones(width))
        same(kept, torch.full((width,), 5.0))


def test_a_cache_marked_static_is_read_where_it_lies():
    def fn(x, cache):
        cache[:, 1] += x
        return cache.sum(0)

    fast = Through(fn)
    cache, wanted = torch.zeros(4, 3), torch.zeros(4, 3)
    torch._dynamo.mark_static_address(cache)
    for _ in range(4):
        x = torch.randn(4)
        same(fast(x, cache), fn(x, wanted))
        same(cache, wanted)
    assert fast.replayed == 3
    another = torch.zeros(4, 3)
    torch._dynamo.mark_static_address(another)
    for turn in range(1, 4):
        same(fast(torch.ones(4), another)[1], torch.tensor(4.0 * turn))
    same(cache, wanted)


@pytest.mark.parametrize("platform", ["cpu", None], ids=["cpu", "simulated"])
def test_caches_in_the_same_memory_are_served_by_the_same_graphs_which_keep_none(platform):
    with torch.inference_mode(False):
        weight = torch.randn(6, 4)
        model = torch.nn.Linear(4, 6).requires_grad_(False)
        model.weight = torch.nn.Parameter(weight.detach(), requires_grad=False)

    def fn(x, cache):
        cache[:, 1] += x
        return model(cache[:, :4]).relu()

    fast = Through(fn, platform=platform)
    memory = {name: torch.zeros(5, 5) for name in "abc"}

    def turns(names):
        for name in names:
            cache, wanted = memory[name].detach(), torch.zeros(5, 5)
            torch._dynamo.mark_static_address(cache.zero_())
            for _ in range(3):
                x = torch.randn(5)
                same(fast(x, cache), fn(x, wanted))
                same(cache, wanted)
            del cache

    turns("abab")
    before = fast.captures
    turns("baabbab")
    assert fast.captures == before == 2
    kept = StorageWeakRef(memory.pop("a").untyped_storage())
    assert kept.expired()
    turns("cbcb")
    assert fast.captures == 3

    # The weights are others, in the memory of those that went: what rests on theirs does not hold.
    with torch.inference_mode(False):
        del model.weight
        model.weight = torch.nn.Parameter(weight.detach().mul_(-3), requires_grad=False)
    turns("cb")


def test_what_rests_makes_room_for_a_capture():
    def fn(x, cache):
        cache[:, 0] += x
        return x + cache.sum()

    fast = Through(fn, platform=SimulatedPlatform(max_graphs=2))
    memory = [torch.zeros(3, 5) for _ in range(5)]
    for place in (0, 1, 2, 3, 4, 0):
        cache, wanted = memory[place].detach(), torch.zeros(3, 5)
        torch._dynamo.mark_static_address(cache.zero_())
        for _ in range(3):
            x = torch.randn(3)
            same(fast(x, cache), fn(x, wanted))
        del cache
    assert fast.replayed == 12


def test_a_cache_that_goes_while_graphs_are_freed_takes_its_own_along():
    def fn(x, cache):
        cache[0] += x
        return cache[1:]

    platform, caches = SimulatedPlatform(), [torch.zeros(3, 5) for _ in range(3)]
    reset = platform.graphs.reset

    def collecting(graph):
        reset(graph)
        caches.clear()

    platform.graphs.reset = collecting
    fast = Through(fn, platform=platform)
    for cache in caches:
        torch._dynamo.mark_static_address(cache)
        for _ in range(3):
            fast(torch.ones(5), cache)
    assert fast.live == 3
    del cache
    torch._dynamo.reset()
    assert fast.live == 0


def test_an_input_that_lies_in_what_is_written_is_read_after_the_write():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("memory", torch.zeros(6))

        def forward(self, x):
            self.memory.add_(1)
            return x * 2

    model = Model()
    fast = Through(model)
    for _ in range(3):
        fast(torch.ones(2))
    same(fast(model.memory[:2]), model.memory[:2] * 2)


# Where parameters lie -------------------------------------------------------------------


def moved(model):
    for parameter in model.parameters():
        parameter.data = parameter.data.clone() * 2


def replaced(model):
    model[0].weight = torch.nn.Parameter(torch.randn(16, 8))


def loaded(model):
    other = {name: torch.randn_like(value) for name, value in model.state_dict().items()}
    model.load_state_dict(other, assign=True)


@pytest.mark.parametrize("change", [moved, replaced, loaded])
def test_parameters_elsewhere_are_captured_anew_and_the_old_graphs_go(change):
    model = mlp()
    fast = Through(model)
    for _ in range(3):
        for _ in range(3):
            x = torch.randn(3, 8)
            same(fast(x), model(x))
        assert fast.live <= 1
        with torch.inference_mode(False), torch.no_grad():
            change(model)
    assert fast.replayed >= 4


def test_parameters_changed_in_place_are_seen():
    model = mlp()
    fast = Through(model)
    for _ in range(3):
        fast(torch.randn(3, 8))
    model[0].weight.mul_(3)
    x = torch.randn(3, 8)
    same(fast(x), model(x))
    assert fast.replayed == 3


def test_layers_that_are_one_code_to_dynamo_are_captured_each_with_its_own_parameters():
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp()

        def forward(self, x):
            return x + self.inner(x)

    model = torch.nn.Sequential(*(Block() for _ in range(5)))
    wanted = model(x := torch.randn(3, 8))
    platform = SimulatedPlatform()
    before = pw.counters.stats()
    for layer in model:
        layer.compile(
            backend="piecewise", options={"compiler": "eager", "platform": platform}, dynamic=False
        )
    for _ in range(4):
        same(model(x), wanted)
    after = pw.counters.stats()
    assert after.captures - before.captures == 5
    assert after.calls["replayed"] - before.calls["replayed"] == 15


# Graphs go ------------------------------------------------------------------------------


def test_a_reset_of_dynamo_frees_all_graphs():
    fast = Through(mlp())
    for _ in range(3):
        fast(torch.randn(3, 8))
    assert fast.live == 1
    torch._dynamo.reset()
    assert fast.live == 0
    for _ in range(3):
        fast(torch.randn(3, 8))
    assert fast.live == 1


def test_a_model_that_goes_takes_its_graphs_with_it_and_its_weights():
    model, gone = mlp(), []
    fast = Through(model)
    for _ in range(3):
        fast(torch.randn(3, 8))
    torch.utils.weak.weakref.finalize(model[0].weight.untyped_storage(), gone.append, 1)
    platform = fast.platform
    del model, fast
    gc.collect()
    assert platform.graphs.live_graphs == 0


def test_code_that_dynamo_makes_anew_leaves_no_graphs_behind():
    platform = SimulatedPlatform()
    for _ in range(6):
        model = mlp()
        fast = Through(model, platform=platform, dynamic=True)
        for rows in (3, 3, 3, 5, 5, 5):
            fast(torch.randn(rows, 8))
    del model, fast
    gc.collect()
    assert platform.graphs.live_graphs == 0


# Layouts, values, modes ------------------------------------------------------------------


@pytest.mark.parametrize(
    "laid",
    [
        lambda n: torch.randn(n, 8).T,
        lambda n: torch.randn(n, 16)[:, ::2],
        lambda n: torch.randn(1, 8).expand(n, 8),
        lambda n: torch.randn(n, 1).expand(n, 8),
        lambda n: torch.randn(2 * n, 8)[::2],
        lambda n: torch.randn(n, 8, dtype=torch.complex64).conj(),
    ],
)
@pytest.mark.parametrize("dynamic", [True, False])
def test_inputs_are_read_right_however_they_lie(laid, dynamic):
    def fn(x, mask):
        return x * 2 + mask, x.sum(0), x.stride(0)

    fast = Through(fn, dynamic=dynamic)
    for rows in (3, 3, 3, 5, 5, 5):
        x, mask = laid(rows), torch.ones(1)
        for got, wanted in zip(fast(x, mask), fn(x, mask), strict=True):
            same(torch.as_tensor(got), torch.as_tensor(wanted))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_dtypes_are_kept(dtype):
    fast = Through(lambda x: (x.flip(0), x.sum()))
    for _ in range(3):
        x = torch.randint(0, 2, (4, 3)).to(dtype)
        got = fast(x)
        assert torch.equal(got[0], x.flip(0))
        assert torch.equal(got[1], x.sum())
    assert fast.replayed == 2


@pytest.mark.parametrize("generators", [True, False])
def test_random_numbers_are_new_at_every_call(generators):
    platform = SimulatedPlatform(generators=generators)
    fast = Through(lambda x: x + torch.rand_like(x), platform=platform)
    seen = [fast(torch.zeros(64)) for _ in range(5)]
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(seen))


@torch.library.custom_op("door::unsafe", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def unsafe(x: torch.Tensor) -> torch.Tensor:
    unsafe_calls.append(1)
    return x * 3


@unsafe.register_fake
def _(x):
    return torch.empty_like(x)


unsafe_calls: list[int] = []


def test_what_graphs_cannot_hold_is_cut_out_without_being_asked():
    fast = Through(lambda x: unsafe(x + 1) * 2)
    for turn in range(4):
        x = torch.full((3,), float(turn))
        same(fast(x), (x + 1) * 6)
    assert (fast.captures, fast.replayed) == (2, 3)
    before = len(unsafe_calls)
    fast(torch.ones(3))
    assert len(unsafe_calls) == before + 1


def test_under_autocast_numbers_are_those_of_autocast():
    model = mlp()
    fast = Through(model, dynamic=False)
    for on in (True, True, True, False, False, False, True):
        x = torch.randn(4, 8)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=on):
            got, wanted = fast(x), model(x)
        assert got.dtype is wanted.dtype
        torch.testing.assert_close(got, wanted)


def test_gradients_are_refused_after_a_capture_too():
    model = mlp()
    fast = Through(model)
    for _ in range(3):
        fast(torch.randn(3, 8))
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        pytest.raises(pw.errors.GradNeeded, match="inference_mode"),
    ):
        fast(torch.ones(3, 8))


def test_calls_under_no_grad_are_replayed_as_well():
    model = mlp()
    fast = Through(model)
    with torch.inference_mode(False), torch.no_grad():
        for _ in range(4):
            x = torch.randn(3, 8)
            got = fast(x)
            same(got, model(x))
            got.add_(1)
    assert fast.replayed == 3


# Other settings -------------------------------------------------------------------------


def test_a_size_that_cannot_be_captured_is_served_and_the_others_are_captured(caplog):
    model = mlp()
    fast = Through(model, platform=SimulatedPlatform(fail_capture_at=1), dynamic=True)
    for rows in (3, 3, 3, 5, 5, 5):
        x = torch.randn(rows, 8)
        same(fast(x), model(x))
    assert fast.replayed >= 2


def test_padded_calls_go_to_the_next_listed_size():
    model = mlp()
    fast = Through(
        model, dynamic=True, capture_sizes=(8,), padding="capture_sizes", capture="first"
    )
    for rows in (5, 8, 3, 5, 7, 3):
        x = torch.randn(rows, 8)
        same(fast(x), model(x))
    assert fast.captures == 1
    assert fast.replayed >= 4


def test_memory_limit_drops_sizes_and_serves_all():
    model = mlp()
    fast = Through(model, dynamic=True, memory_limit=1)
    for _ in range(3):
        for rows in (3, 5):
            x = torch.randn(rows, 8)
            same(fast(x), model(x))
    assert fast.live <= 1


def test_verified_calls_are_compared_with_the_graph_as_dynamo_gave_it(caplog):
    model = mlp()
    broken = SimulatedPlatform(drop_op="aten.addmm.default")
    fast = Through(model, platform=broken, check="verify", verify_rate=1.0, dynamic=False)
    with caplog.at_level("ERROR"):
        for _ in range(6):
            x = torch.randn(3, 8)
            same(fast(x), model(x))
    assert any("gave other results" in r.getMessage() for r in caplog.records)


@pytest.mark.parametrize("sizes", [(), (3,)])
def test_inside_of_somebody_elses_capture_calls_are_served_and_nothing_is_captured(sizes):
    model, platform = mlp(), SimulatedPlatform()
    fast = Through(model, platform=platform, dynamic=bool(sizes), capture_sizes=sizes)
    x = torch.randn(3, 8)
    fast(x)
    driver = platform.graphs
    graph, pool, stream = driver.new_graph(), driver.new_pool(), platform.device.new_stream()
    with platform.device.stream(stream):
        driver.capture_begin(graph, pool, stream)
        got = [fast(x), fast(x)]
        driver.capture_end(graph)
    driver.replay(graph)
    same(got, [model(x), model(x)])
    assert fast.captures == 0
    for _ in range(2):
        same(fast(x), model(x))
    assert fast.captures == 1


def test_threads_get_their_own_results():
    model = mlp()
    fast = Through(model, dynamic=True)
    wrong: list[object] = []

    def work(rows):
        with torch.inference_mode():
            for _ in range(30):
                x = torch.randn(rows, 8)
                got = fast(x)
                if not torch.allclose(got, model(x), atol=1e-5):
                    wrong.append(rows)

    fast(torch.randn(4, 8))
    threads = [threading.Thread(target=work, args=(rows,)) for rows in (3, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert fast.replayed > 20


@pytest.mark.inductor
def test_inductor_s_code_is_captured_on_a_cpu():
    model = mlp()
    before = pw.counters.stats()
    fast = torch.compile(model, backend="piecewise", dynamic=True)
    for rows in (5, 5, 5, 1, 1, 1):
        x = torch.randn(rows, 8)
        same(fast(x), model(x))
    after = pw.counters.stats()
    assert after.captures - before.captures == 2
    assert after.calls["replayed"] - before.calls["replayed"] == 4


# Told -----------------------------------------------------------------------------------


def test_each_graph_tells_what_was_captured_and_why_not():
    model = mlp()
    fast = Through(model, dynamic=True)
    for _ in range(3):
        fast(torch.randn(5, 8))
    failing = SimulatedPlatform(fail_capture_at=1)
    broken = Through(lambda x: x * 2, platform=failing, dynamic=False, graph_mode="full")
    for _ in range(3):
        broken(torch.randn(3))
    one, two = pw.dynamo_graphs()[-2:]
    assert (one.captured, one.places, one.uncaptured) == (((5,),), 1, ())
    assert one.stats["calls"]["replayed"] == 2
    assert "captured: (5,)" in str(one)
    assert two.captured == ()
    assert "not captured: ():" in str(two)
    torch._dynamo.reset()
    assert all(not graph.captured for graph in pw.dynamo_graphs())


@pytest.mark.parametrize("how", ["data", "transposed"])
def test_a_buffer_that_is_given_other_memory_or_turned_is_the_models_own(how):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("state", torch.arange(12.0).view(3, 4))

        def forward(self, x):
            if how == "data":
                self.state.data = self.state * 0.5 + x.sum()
            else:
                self.state.t_()
            return x + self.state.sum(1).sum()

    model, plain = Model(), Model()
    fast = torch.compile(model, backend="piecewise", options={"compiler": "eager"})
    with torch.no_grad():
        for _ in range(4):
            x = torch.randn(4)
            torch.testing.assert_close(fast(x), plain(x))
            torch.testing.assert_close(model.state, plain.state, rtol=0, atol=0)
            assert model.state.stride() == plain.state.stride()
