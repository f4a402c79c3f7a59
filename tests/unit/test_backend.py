"""The backend of one piece: what vLLM's class of the same name lists, and a platform's own."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import piecewise_core as pw
from piecewise_core.backend import RangeEntry
from piecewise_core.compile.eager import EagerCompiler
from piecewise_core.errors import OutOfRange
from piecewise_core.protocols import Capabilities
from piecewise_core.ranges import Box, Range
from piecewise_core.table import TargetTable
from piecewise_core.targets import plan_targets
from piecewise_core.testing import SimulatedPlatform

R = Range


class Owner:
    """Compiles nothing: notes what it is asked for, and hands out functions that say their name."""

    def __init__(self, bounds: Box, endpoints=((),), sizes=()) -> None:
        self.targets = plan_targets(bounds, endpoints, sizes)
        self.table = TargetTable(bounds, self.targets)
        self.compiled: list[tuple[int, str]] = []
        self.ended = 0

    def compile_piece(self, index: int, box: Box):
        self.compiled.append((index, str(box)))
        return lambda *args: (str(box), *args)

    def end_compilation(self) -> None:
        self.ended += 1


def made(owner: Owner, index: int = 0, total: int = 1, config: pw.Config | None = None, **extra):
    general: list[str] = []

    def compile_general():
        general.append("compiled")
        return lambda *args: ("general", *args)

    graph = torch.fx.symbolic_trace(lambda s0, x: ("as written", s0, x))
    places = list(range(len(owner.table.bounds.ranges)))
    backend = pw.PiecewiseBackend(
        graph, config or pw.Config(), "pool", index, total, places, compile_general, owner, **extra
    )
    return backend, general


def one_dim(**settings) -> Owner:
    return Owner(Box((R(1, 8192),)), settings.get("endpoints", ((8, 32),)), [(4,), (16,)])


# Attributes -------------------------------------------------------------------------------------


def test_its_signature_is_that_of_the_protocol():
    protocol = inspect.signature(pw.AbstractPiecewiseBackend.__init__)
    assert inspect.signature(pw.PiecewiseBackend.__init__).parameters.keys() == (
        protocol.parameters.keys()
    )
    assert list(protocol.parameters) == [
        "self",
        "graph",
        "config",
        "graph_pool",
        "piecewise_compile_index",
        "total_piecewise_compiles",
        "sym_shape_indices",
        "compiled_graph_for_general_shape",
        "backend",
        "kwargs",
    ]


def test_its_ranges_and_sizes_are_the_owners():
    backend, _ = made(one_dim())
    assert backend.compile_ranges == [R(1, 8), R(9, 32), R(33, 8192)]
    assert backend.compile_sizes == [4, 16]
    assert backend.range_entries == {
        r: RangeEntry(r) for r in (R(4, 4), R(16, 16), R(1, 8), R(9, 32), R(33, 8192))
    }
    assert backend.to_be_compiled_ranges == set(backend.range_entries)
    assert backend.sym_shape_indices == [0]


def test_with_several_dims_ranges_are_boxes_and_sizes_tuples():
    owner = Owner(Box((R(1, 8), R(1, 64))), ((), (16,)), [(1, 8)])
    backend, _ = made(owner)
    assert backend.compile_ranges == [Box((R(1, 8), R(1, 16))), Box((R(1, 8), R(17, 64)))]
    assert backend.compile_sizes == [(1, 8)]
    assert Box((R(1, 1), R(8, 8))) in backend.range_entries


@pytest.mark.parametrize(
    ("index", "total", "first", "last", "full"),
    [(0, 1, True, True, True), (0, 3, True, False, False), (2, 3, False, True, False)],
)
def test_it_knows_its_place_among_the_pieces(index, total, first, last, full):
    backend, _ = made(one_dim(), index, total)
    assert (backend.is_first_graph, backend.is_last_graph, backend.is_full_graph) == (
        first,
        last,
        full,
    )
    assert (backend.piecewise_compile_index, backend.total_piecewise_compiles) == (index, total)


def test_it_keeps_what_it_is_given_and_ignores_what_later_versions_add():
    config = pw.Config()
    owner = one_dim()
    backend, general = made(owner, config=config, some_later_argument=3)
    assert backend.config is config
    assert backend.backend is owner
    assert backend.graph_pool == "pool"
    assert isinstance(backend.graph, torch.fx.GraphModule)
    assert not owner.compiled
    assert not general


# Calls --------------------------------------------------------------------------------------------


def test_the_first_call_runs_the_general_graph_and_later_ones_go_by_size():
    owner = one_dim()
    backend, general = made(owner)
    assert backend(5, "x") == ("general", 5, "x")
    assert general == ["compiled"]
    assert not owner.compiled
    assert backend(5, "x") == ("[1, 8]", 5, "x")
    assert backend(4, "x") == ("[4, 4]", 4, "x")
    assert backend(16, "x") == ("[16, 16]", 16, "x")
    assert backend(8192, "x") == ("[33, 8192]", 8192, "x")
    assert backend(6, "x") == ("[1, 8]", 6, "x")
    assert general == ["compiled"]


def test_each_range_is_compiled_once_when_it_is_first_needed():
    owner = one_dim()
    backend, _ = made(owner, 1, 3)
    for size in (5, 5, 6, 1, 9, 10, 5):
        backend(size)
    assert owner.compiled == [(1, "[1, 8]"), (1, "[9, 32]")]
    assert backend.range_entries[R(1, 8)].compiled
    assert backend.range_entries[R(1, 8)].runnable is not None
    assert backend.to_be_compiled_ranges == {R(4, 4), R(16, 16), R(33, 8192)}


def test_the_size_is_read_where_sym_shape_indices_says():
    owner = Owner(Box((R(1, 8), R(1, 64))), ((), (16,)), [])
    backend, _ = made(owner)
    backend.sym_shape_indices = [1, 2]
    backend("x", 2, 3)
    assert backend("x", 2, 17) == ("[1, 8] x [17, 64]", "x", 2, 17)


def test_the_last_piece_tells_its_owner_once_when_nothing_is_left():
    owner = one_dim()
    backend, _ = made(owner, 2, 3)
    for size in (5, 5, 4, 16, 9):
        backend(size)
        assert owner.ended == 0
    backend(100)
    assert owner.ended == 1
    assert backend.to_be_compiled_ranges == set()
    for size in (5, 4, 16, 9, 100):
        backend(size)
    assert owner.ended == 1


def test_the_other_pieces_tell_nobody():
    owner = one_dim()
    backend, _ = made(owner, 1, 3)
    for size in (5, 5, 4, 16, 9, 100):
        backend(size)
    assert not backend.to_be_compiled_ranges
    assert owner.ended == 0


def test_a_compilation_that_fails_is_tried_again():
    owner = one_dim()
    backend, _ = made(owner, 2, 3)
    compile_piece = owner.compile_piece

    def fail(index, box):
        raise RuntimeError("no luck")

    owner.compile_piece = fail
    backend(5)
    with pytest.raises(RuntimeError, match="no luck"):
        backend(5)
    assert R(1, 8) in backend.to_be_compiled_ranges
    assert not backend.range_entries[R(1, 8)].compiled
    owner.compile_piece = compile_piece
    assert backend(5) == ("[1, 8]", 5)


@pytest.mark.parametrize("calls_before", [0, 2])
def test_a_size_out_of_bounds_is_refused_naming_piece_bounds_and_setting(calls_before):
    backend, general = made(one_dim(), 1, 3)
    for _ in range(calls_before):
        backend(5)
    compiled = list(general)
    with pytest.raises(OutOfRange, match=r"piece 1: sizes \(9000,\) lie outside \[1, 8192\]"):
        backend(9000)
    with pytest.raises(OutOfRange, match="out_of_range"):
        backend(0)
    assert general == compiled


def test_out_of_range_general_and_eager_serve_sizes_out_of_bounds():
    backend, _ = made(one_dim(), config=pw.Config(out_of_range="general"))
    assert backend(9000, "x") == ("general", 9000, "x")
    with pytest.raises(OutOfRange, match=r"outside \[1, 8192\]"):
        backend(0, "x")
    backend, general = made(one_dim(), config=pw.Config(out_of_range="eager"))
    assert backend(9000, "x") == ("as written", 9000, "x")
    assert backend(0, "x") == ("as written", 0, "x")
    assert not general


# Inside a model -----------------------------------------------------------------------------------


class Model(nn.Module):
    """Three compilable pieces, two softmaxes between them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = nn.functional.softmax(layer(x), -1)
        return self.layers[-1](x)


class Runtime:
    def current_stream(self): ...
    def new_stream(self): ...
    def stream(self, stream):
        return nullcontext()

    def synchronize(self): ...


def platform(backend: type | None) -> SimpleNamespace:
    place = SimpleNamespace(
        device=Runtime(), graphs=None, compiler=EagerCompiler(), capabilities=Capabilities()
    )
    if backend is not None:
        place.piecewise_backend = backend
    return place


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def compiled(model, backend=None, **config):
    settings = {
        "dynamic": {"x": {0: pw.Dim("rows", 0, 64)}},
        "splitting_ops": ("torch.nn.functional.softmax",),
        "compile_ranges_endpoints": (8,),
        **config,
    }
    return pw.compile(model, pw.Config(**settings), platform(backend))


def assert_serves(fast, model, sizes=(5, 5, 20, 0, 1, 64)) -> None:
    for size in sizes:
        x = torch.randn(size, 8)
        torch.testing.assert_close(fast(x), model(x))


class Minimal:
    """A platform's own class, with nothing but what the Protocol asks for."""

    made: list[Minimal]

    def __init__(
        self,
        graph,
        config,
        graph_pool,
        piecewise_compile_index,
        total_piecewise_compiles,
        sym_shape_indices,
        compiled_graph_for_general_shape,
        backend,
        **kwargs,
    ):
        self.place = (piecewise_compile_index, total_piecewise_compiles, sym_shape_indices)
        self.graph = graph
        self.config = config
        self.general = compiled_graph_for_general_shape
        self.calls = 0
        type(self).made.append(self)

    def __call__(self, *args):
        self.calls += 1
        return self.general()(*args)


def test_a_platforms_own_class_runs_the_pieces():
    kind = type("Own", (Minimal,), {"made": []})
    model = Model()
    fast = compiled(model, kind)
    assert_serves(fast, model)
    assert [m.place for m in kind.made] == [(0, 3, [0]), (1, 3, [0]), (2, 3, [0])]
    assert all(isinstance(m.graph, torch.fx.GraphModule) for m in kind.made)
    assert kind.made[0].config.compile_ranges_endpoints == (8,)
    # The first call goes straight to the general graph.
    assert [m.calls for m in kind.made] == [5, 5, 5]
    assert sum(fast.stats().calls.values()) == 6


def test_a_platforms_own_class_is_warmed_up_and_sealed():
    kind = type("Own", (Minimal,), {"made": []})
    model = Model()
    fast = compiled(model, kind)
    fast.warmup(torch.randn(3, 8), progress=False)
    fast.seal()
    assert_serves(fast, model)


def test_a_platforms_own_class_may_extend_the_default_one():
    class Counting(pw.PiecewiseBackend):
        asked = 0

        def runnable(self, box):
            type(self).asked += 1
            return super().runnable(box)

    model = Model()
    fast = compiled(model, Counting)
    fast.warmup(torch.randn(3, 8), progress=False)
    assert_serves(fast, model)
    assert Counting.asked >= 3 * 2
    assert fast.stats().compilations == 2 * 2


def test_a_models_default_backends_drain_as_their_ranges_are_compiled():
    model = Model()
    fast = compiled(model, compile_sizes=(4,))
    fast(torch.randn(5, 8))
    backends = fast._pw_session.regions[0].backends
    assert all(type(b) is pw.PiecewiseBackend for b in backends)
    assert all(b.to_be_compiled_ranges == {R(4, 4), R(0, 8), R(9, 64)} for b in backends)
    fast(torch.randn(5, 8))
    assert all(b.to_be_compiled_ranges == {R(4, 4), R(9, 64)} for b in backends)
    fast.warmup(progress=False)
    assert all(not b.to_be_compiled_ranges for b in backends)


CAPTURED = pw.Config(
    dynamic={"x": {0: pw.Dim("rows", 0, 64)}},
    splitting_ops=("torch.nn.functional.softmax",),
    capture_sizes=(8,),
    capture_max=False,
    compiler="eager",
)


def with_graphs(kind):
    place = SimulatedPlatform()
    place.piecewise_backend = kind
    pools, make = [], place.graphs.new_pool
    place.graphs.new_pool = lambda: pools.append(make()) or pools[-1]
    used, begin = [], place.graphs.capture_begin

    def begun(graph, pool, stream):
        used.append(pool)
        begin(graph, pool, stream)

    place.graphs.capture_begin = begun
    return place, pools, used


@pytest.mark.parametrize("inherits", [False, True])
def test_a_class_is_given_the_pool_that_its_graphs_are_captured_into(inherits):
    given = []
    base = pw.PiecewiseBackend if inherits else Minimal

    def init(self, graph, config, graph_pool, *args, **kwargs):
        base.__init__(self, graph, config, graph_pool, *args, **kwargs)
        given.append(graph_pool)
        self.graph_pool = graph_pool

    kind = type("Own", (base,), {"made": [], "__init__": init})
    place, pools, used = with_graphs(kind)
    model = Model()
    fast = pw.compile(model, CAPTURED, place)
    fast.warmup(torch.randn(8, 8), progress=False)
    assert given == [pools[0]] * 3
    assert used == [pools[0]] * 3
    fast.release()
    fast.restore()
    assert len(pools) == 2
    backends = fast._pw_session.regions[0].backends
    assert [b.graph_pool for b in backends] == [pools[1]] * 3
    assert [b.of.graph_pool for b in backends] == [pools[1]] * 3
    assert used[3:] == [pools[1]] * 3
    x = torch.randn(8, 8)
    torch.testing.assert_close(fast(x), model(x))
    assert fast.stats().calls["replayed"] == 1


def test_a_pool_that_a_class_sets_itself_is_where_its_piece_is_captured():
    class Own(pw.PiecewiseBackend):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            if self.is_first_graph:
                self.graph_pool = place.graphs.new_pool()

    place, pools, used = with_graphs(Own)
    model = Model()
    fast = pw.compile(model, CAPTURED, place)
    fast.warmup(torch.randn(8, 8), progress=False)
    assert used == [pools[1], pools[0], pools[0]]
    x = torch.randn(8, 8)
    torch.testing.assert_close(fast(x), model(x))


def test_without_graphs_there_is_no_pool():
    fast = compiled(Model())
    fast(torch.randn(5, 8))
    assert [b.graph_pool for b in fast._pw_session.regions[0].backends] == [None] * 3


def test_what_a_backend_says_is_compiled_is_what_core_takes_as_ready():
    fast = compiled(Model())
    fast(torch.randn(5, 8))
    region = fast._pw_session.regions[0]
    box = region.targets[1].box
    assert not region.is_ready(box)
    for backend in region.backends:
        backend.runnable(box)
    assert region.is_ready(box)
    region.backends[0].range_entries[R(9, 64)].compiled = False
    region._scheduler.forget()
    assert not region.is_ready(box)


def test_a_piece_of_a_model_called_alone_computes_its_part():
    model = Model()
    fast = compiled(model)
    fast(torch.randn(5, 8))
    first = fast._pw_session.regions[0].backends[0]
    layer = model.layers[0]

    def arguments(x):
        yield x.shape[0]
        for node in list(first.graph.graph.nodes)[1:4]:
            shape = node.meta["example_value"].shape
            weight = layer.weight if len(shape) == 2 else layer.bias
            yield x if isinstance(shape[0], torch.SymInt) else weight

    for size in (5, 5, 20, 1, 0):
        x = torch.randn(size, 8)
        (out,) = first(*arguments(x))
        torch.testing.assert_close(out, layer(x))
    with pytest.raises(OutOfRange, match="piece 0"):
        first(*arguments(torch.randn(65, 8)))
