"""FAULTS 60: what traces or compiles for one call holds up no call of a size that is ready."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import piecewise_core as pw
from piecewise_core.frontend.regions import Regions
from piecewise_core.protocols import CompiledGraph
from piecewise_core.runtime import tracestate
from piecewise_core.testing import SimulatedPlatform

LIBRARY = "faults_threads"
LONG = 60
"""Seconds after which a thread counts as stuck."""


class Gate:
    """Closed, it stops whoever passes; ``began`` is set when somebody stands before it."""

    def __init__(self):
        self.began, self._open = threading.Event(), threading.Event()
        self._open.set()

    def close(self):
        self.began.clear()
        self._open.clear()

    def open(self):
        self._open.set()

    def passes(self):
        if not self._open.is_set():
            self.began.set()
            assert self._open.wait(LONG)


GATE = Gate()
INSIDE: dict[str, object] = {}
NUMBERS = itertools.count()


@torch.library.custom_op(f"{LIBRARY}::call", mutates_args=())
def call(x: torch.Tensor) -> torch.Tensor:
    """Do once what INSIDE says, in the middle of a forward."""
    inner = INSIDE.pop("do", None)
    return x * 2 if inner is None else inner(x).clone()


call.register_fake(lambda x: torch.empty_like(x))


def slow():
    """An identity that stops before GATE when it is traced: a new one, as torch keeps fakes."""

    @torch.library.custom_op(f"{LIBRARY}::slow{next(NUMBERS)}", mutates_args=())
    def op(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @op.register_fake
    def _(x: torch.Tensor) -> torch.Tensor:
        GATE.passes()
        return torch.empty_like(x)

    return op


class Compiler:
    """The pieces as they are, behind a gate."""

    name = "gated"

    def __init__(self):
        self.gate, self.fails = Gate(), False
        self.made = 0

    def compile(self, graph, example_inputs, *, key, config):
        self.made += 1
        self.gate.passes()
        if self.fails:
            raise ValueError("no such operator")
        return CompiledGraph(graph.forward)

    def hash_factors(self):
        return {}


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    torch.manual_seed(0)
    INSIDE.clear()
    GATE.open()
    with torch.inference_mode():
        yield
    GATE.open()


class Thread:
    """``fn()`` in a thread of its own: ``get()`` gives what it gave, or raises what it raised."""

    def __init__(self, fn):
        self._fn, self._result, self._error = fn, None, None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        try:
            with torch.inference_mode():
                self._result = self._fn()
        except BaseException as error:
            self._error = error

    def ended(self, seconds=LONG):
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def get(self):
        assert self.ended(), "it is stuck"
        if self._error is not None:
            raise self._error
        return self._result


@contextmanager
def halted(gate, fn):
    """``fn()`` in a thread that stands before ``gate`` inside."""
    gate.close()
    thread = Thread(fn)
    try:
        while not gate.began.wait(0.05):
            assert not thread.ended(0), thread.get()
        yield thread
    finally:
        gate.open()
    assert thread.ended()


def made(fn, *, platform=None, **changes):
    """A model of 1 to 16 rows in ranges 1-4, 5-8, 9-16, and its compiler."""
    platform = platform or SimulatedPlatform()
    platform.compiler = compiler = Compiler()
    settings = {
        "dynamic": {"x": {0: pw.Dim("rows", min=1, max=16)}},
        "compile_ranges_endpoints": (4, 8),
        "splitting_ops": (f"{LIBRARY}::call",),
        **changes,
    }
    return pw.compile(fn, pw.Config(**settings), platform=platform), compiler


def double(x):
    return torch.ops.faults_threads.call(x.sin() + 1) - x


def doubled(x):
    return (x.sin() + 1) * 2 - x


def same(got, x):
    torch.testing.assert_close(got, doubled(x))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"check": "off"},
        {"check": "verify", "verify_rate": 1.0},
        {"compile_sizes": (6,)},
        {"capture_sizes": (3,), "capture_max": False},
        {"capture_sizes": (4,), "capture_max": False, "padding": "capture_sizes"},
    ],
    ids=str,
)
def test_a_ready_size_is_served_while_another_compiles(changes):
    fast, compiler = made(double, **changes)
    three, six = torch.randn(3, 2), torch.randn(6, 2)
    for _ in range(3):
        same(fast(three), three)
    with halted(compiler.gate, lambda: fast(six).clone()) as compiling:
        for _ in range(2):
            same(Thread(lambda: fast(three).clone()).get(), three)
    same(compiling.get(), six)
    same(fast(six), six)


class ByItself:
    """A platform's own class with only ``__call__``, in two kinds: it asks for what it runs."""

    ranges = False

    def __init__(self, graph, config, pool, place, total, sizes, general, backend, **later):
        self.place, self.sizes, self.general, self.owner = place, sizes, general, backend

    def __call__(self, *args):
        if not self.ranges:
            return self.general()(*args)
        found = self.owner.table.find(*(args[i] for i in self.sizes))
        return self.owner.compile_piece(self.place, self.owner.targets[found].box)(*args)


@pytest.mark.parametrize("ranges", [False, True], ids=["general graph", "ranges"])
def test_a_ready_size_is_served_while_a_class_that_asks_in_calls_gets_another(ranges):
    platform = SimulatedPlatform()
    platform.piecewise_backend = type("Own", (ByItself,), {"ranges": ranges})
    fast, compiler = made(double, platform=platform)
    three, six = torch.randn(3, 2), torch.randn(6, 2)
    for _ in range(3):
        same(fast(three), three)
    with halted(compiler.gate, lambda: fast(six).clone()) as compiling:
        same(Thread(lambda: fast(three).clone()).get(), three)
    same(compiling.get(), six)
    before = compiler.made
    same(fast(six), six)
    assert compiler.made == before


def test_a_ready_size_is_served_while_another_region_is_traced():
    wait = slow()

    def model(x):
        return double(x) * 3 if x.shape[0] > 4 else wait(double(x))

    fast, _ = made(model)
    three, six = torch.randn(3, 2), torch.randn(6, 2)
    fast(six), fast(six)
    with halted(GATE, lambda: fast(three)) as tracing:
        torch.testing.assert_close(Thread(lambda: fast(six)).get(), doubled(six) * 3)
    same(tracing.get(), three)
    assert fast.stats().graphs == 2


def test_a_ready_size_is_served_while_warmup_compiles_the_rest():
    fast, compiler = made(double)
    three, nine = torch.randn(3, 2), torch.randn(9, 2)
    fast(three), fast(three)
    with halted(compiler.gate, lambda: fast.warmup(progress=False)) as warming:
        same(Thread(lambda: fast(three)).get(), three)
    assert warming.get().targets == 3
    before = fast.stats().compilations
    same(fast(nine), nine)
    assert fast.stats().compilations == before


def test_a_ready_size_of_a_graph_of_torch_compiles_is_served_while_another_compiles():
    platform = SimulatedPlatform()
    platform.compiler = compiler = Compiler()
    options = {"compile_ranges_endpoints": (4, 8), "platform": platform}
    fast = torch.compile(lambda x: x.sin() + 1, backend="piecewise", options=options)
    three, six = torch.randn(3, 2), torch.randn(6, 2)
    for x in three, six:
        torch._dynamo.mark_dynamic(x, 0, min=1, max=16)
    fast(three), fast(three)
    with halted(compiler.gate, lambda: fast(six)) as compiling:
        torch.testing.assert_close(Thread(lambda: fast(three)).get(), three.sin() + 1)
    torch.testing.assert_close(compiling.get(), six.sin() + 1)


def test_a_model_of_its_own_is_called_while_another_traces():
    wait = slow()
    first, _ = made(lambda x: wait(double(x)))
    second, _ = made(lambda x: x * 3, splitting_ops=())
    x = torch.randn(3, 2)
    second(x), second(x)
    with halted(GATE, lambda: first(x)) as tracing:
        assert torch.equal(Thread(lambda: second(x)).get(), x * 3)
    same(tracing.get(), x)


def test_a_layout_that_is_looked_at_while_another_compiles_holds_up_no_ready_size():
    def model(x):
        return double(x) if x.is_contiguous() else double(x) * 3

    fast, compiler = made(model)
    three, six = torch.randn(3, 2), torch.randn(6, 2)
    other = torch.randn(2, 3).t()
    fast(three), fast(three)
    with halted(compiler.gate, lambda: fast(six)) as compiling:
        looking = Thread(lambda: fast(other))
        looking.ended(0.2)
        same(Thread(lambda: fast(three)).get(), three)
    same(compiling.get(), six)
    torch.testing.assert_close(looking.get(), doubled(other) * 3)


def test_two_threads_that_miss_the_same_have_it_compiled_once():
    fast, compiler = made(double)
    fast(torch.randn(3, 2)), fast(torch.randn(3, 2))
    before, six = compiler.made, torch.randn(6, 2)
    with halted(compiler.gate, lambda: fast(six)) as first:
        second = Thread(lambda: fast(six))
    same(first.get(), six), same(second.get(), six)
    assert compiler.made - before == 2  # its two pieces, once


def test_a_compilation_that_fails_is_told_to_each_call_and_stops_no_other():
    fast, compiler = made(double)
    three, six = torch.randn(3, 2), torch.randn(6, 2)
    fast(three), fast(three)
    compiler.fails = True
    with halted(compiler.gate, lambda: fast(six)) as first:
        second = Thread(lambda: fast(six))
    for thread in first, second:
        with pytest.raises(pw.errors.CompileFailed, match="no such operator"):
            thread.get()
    same(fast(three), three)
    compiler.fails = False
    same(fast(six), six)


def test_a_sealed_model_serves_what_it_has_while_a_miss_is_refused():
    fast, _ = made(double)
    three = torch.randn(3, 2)
    fast(three), fast(three)
    fast.seal()
    with pytest.raises(pw.errors.Sealed):
        Thread(lambda: fast(torch.randn(6, 2))).get()
    same(fast(three), three)


def test_a_sealed_model_that_warns_compiles_beside_calls():
    fast, compiler = made(double)
    three, six = torch.randn(3, 2), torch.randn(6, 2)
    fast(three), fast(three)
    fast.seal(on_miss="warn")
    with halted(compiler.gate, lambda: fast(six)) as compiling:
        same(Thread(lambda: fast(three)).get(), three)
    same(compiling.get(), six)


def test_a_size_is_captured_later_where_another_compiles_and_served_without_graphs_till_then():
    fast, compiler = made(double, capture_sizes=(3,), capture_max=False)
    two, three, six = torch.randn(2, 2), torch.randn(3, 2), torch.randn(6, 2)
    fast(two), fast(two)
    with halted(compiler.gate, lambda: fast(six)) as compiling:
        same(fast(three), three)
        assert fast.stats().captures == 0
    same(compiling.get(), six)
    same(fast(three), three)
    same(fast(three), three)
    assert fast.stats().captures == 2


def test_a_recorded_size_is_captured_later_where_another_compiles():
    compiled, compiler = made(double)
    config = pw.Config(
        dynamic={"x": {0: pw.Dim("rows", min=1, max=16)}}, capture_sizes=(3,), capture_max=False
    )
    recorded = pw.record(lambda x: x.cos() * 2, config, platform=SimulatedPlatform())
    x = torch.randn(3, 2)
    with halted(compiler.gate, lambda: compiled(x)):
        torch.testing.assert_close(Thread(lambda: recorded(x)).get(), x.cos() * 2)
        assert recorded.stats().captures == 0
    for _ in range(2):
        torch.testing.assert_close(recorded(x), x.cos() * 2)
    assert recorded.stats().calls["replayed"] == 2


class Scaled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.factor = 2.0

    def forward(self, x):
        return torch.ops.faults_threads.call(x * self.weight) * self.factor


def replaced(model):
    model.weight = torch.nn.Parameter(torch.full((2,), 3.0))


def retyped(model):
    model.weight = torch.nn.Parameter(torch.full((2,), 3.0, dtype=torch.float64))


def written(model):
    model.factor = 5.0


@pytest.mark.parametrize("change", [replaced, retyped, written])
@pytest.mark.parametrize("what", ["trace", "compile"])
def test_a_model_that_changes_while_a_thread_builds_is_right_afterwards(what, change):
    wait = slow()

    class Model(Scaled):
        def forward(self, x):
            y = super().forward(x)
            return y if x.shape[0] > 4 else wait(y) + 1

    model = Model()
    fast, compiler = made(model)
    three, six = torch.randn(3, 2), torch.randn(6, 2)
    fast(six), fast(six)
    with halted(GATE if what == "trace" else compiler.gate, lambda: fast(three)) as building:
        change(model)
        # Noticed by a call: one that needs no trace, or has to wait for this one.
        other = Thread(lambda: fast(six))
        other.ended(0.2)
    other.get(), building.get()
    for x in (three, six, three, six):
        torch.testing.assert_close(fast(x), model(x))


def test_a_call_inside_of_a_call_compiles_what_it_needs_without_waiting_for_itself():
    fast, _ = made(double)
    three, six = torch.randn(3, 2), torch.randn(6, 2)
    fast(three), fast(three)
    INSIDE["do"] = lambda x: fast(six)[:3]
    got = fast(three)
    torch.testing.assert_close(got, doubled(six)[:3] - three)


def test_a_call_inside_of_a_call_needs_what_another_thread_compiles():
    fast, compiler = made(double)
    three, six = torch.randn(3, 2), torch.randn(6, 2)
    fast(three), fast(three)
    with halted(compiler.gate, lambda: fast(six)) as compiling:
        INSIDE["do"] = lambda x: fast(six)[:3]
        outer = Thread(lambda: fast(three))
        outer.ended(0.2)  # it waits inside of its call, with the call lock held
    torch.testing.assert_close(outer.get(), doubled(six)[:3] - three)
    same(compiling.get(), six)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"compile_mode": "warmup"},
        {"capture_sizes": (2, 6, 12), "capture_max": False, "clone_outputs": True},
        {"capture_sizes": (4, 8), "padding": "capture_sizes", "clone_outputs": True},
        {"check": "verify", "verify_rate": 0.5},
    ],
    ids=str,
)
def test_many_threads_with_sizes_of_their_own_get_what_the_model_gives(changes):
    fast, compiler = made(double, **changes)
    start = threading.Barrier(6)

    def calls(seed):
        random = torch.Generator().manual_seed(seed)
        start.wait(LONG)
        for _ in range(25):
            rows = int(torch.randint(1, 17, (), generator=random))
            x = torch.randn(rows, 2, generator=random)
            same(fast(x), x)

    threads = [Thread(lambda seed=seed: calls(seed)) for seed in range(6)]
    for thread in threads:
        thread.get()
    stats = fast.stats()
    assert sum(stats.calls.values()) >= 150
    assert stats.graphs == 1
    assert (
        compiler.made == stats.compilations <= 8
    )  # two pieces, three ranges and all sizes at once


def test_a_write_while_the_model_is_traced_is_noticed(monkeypatch):
    """Dynamo has read it by then, and nobody watches it yet."""
    model = Scaled()
    fast, _ = made(model, capture_sizes=(4,), clone_outputs=True)
    x, make, written = torch.ones(4, 2), Regions.make, []
    fast(x)

    def make_while_it_is_written_to(*args, **kwargs):
        traced = make(*args, **kwargs)
        model.factor = written.pop(0) if written else model.factor
        return traced

    monkeypatch.setattr(Regions, "make", make_while_it_is_written_to)
    for values in ([5.0], [2.0, 3.0], [7.0]):
        written += values
        model.factor += 1.0
        assert fast(x).unique().tolist() == [model.factor * 2]
    assert not written


def test_a_write_behind_what_a_first_trace_has_read_is_noticed():
    """Dynamo took the number, and reads it again for its guards: then it is another."""
    op = slow()

    class Model(Scaled):
        def forward(self, x):
            return torch.ops.faults_threads.call(op(x * self.factor))

    model = Model()
    fast, _ = made(model, capture_sizes=(4,), clone_outputs=True)
    x = torch.ones(4, 2)
    GATE.close()
    thread = Thread(lambda: fast(x))
    assert GATE.began.wait(LONG)
    model.factor = 5.0
    GATE.open()
    assert thread.get().unique().tolist() == [10.0]
    assert fast(x).unique().tolist() == [10.0]


@pytest.mark.parametrize("before", ["Reading", "Watch"])
def test_a_write_just_before_what_was_traced_is_watched_is_noticed(monkeypatch, before):
    """The trace holds when it is judged; another thread writes before anybody watches."""
    model = Scaled()
    fast, _ = made(model, capture_sizes=(4,), clone_outputs=True)
    x, make, written = torch.ones(4, 2), getattr(tracestate, before), []
    fast(x)

    def make_behind_a_write(*args, **kwargs):
        if written:
            model.factor = written.pop()
        return make(*args, **kwargs)

    monkeypatch.setattr(tracestate, before, make_behind_a_write)
    for value in (5.0, 2.0, 7.0):
        fast.retrace()
        written.append(value)
        fast(x)
        assert not written
        assert fast(x).unique().tolist() == [value * 2]


def test_many_threads_call_while_the_model_changes_between_two_states():
    model = Scaled()
    fast, _ = made(model, capture_sizes=(4,), clone_outputs=True)
    stop = threading.Event()

    def calls(rows):
        x = torch.ones(rows, 2)
        while not stop.is_set():
            got = fast(x)
            assert got.unique().tolist() in ([4.0], [10.0])

    threads = [Thread(lambda rows=rows: calls(rows)) for rows in (3, 4, 7)]
    try:
        for turn in range(6):
            model.factor = 5.0 if turn % 2 == 0 else 2.0
            x = torch.ones(4, 2)
            assert fast(x).unique().tolist() == [model.factor * 2]
    finally:
        stop.set()
    for thread in threads:
        thread.get()


def test_a_copied_input_of_a_first_call_is_counted_once():
    fast, _ = made(double)
    x = torch.randn(2, 3).t()
    traced = torch.randn(3, 2)
    fast(traced)
    for _ in range(2):
        same(fast(x), x)
    assert fast.stats().restrided == 2
    fast(torch.randn(2, 6).t())  # compiles
    assert fast.stats().restrided == 3


def test_a_first_call_in_a_wrong_form_does_not_fix_the_form_for_another_thread():
    def model(x):
        return torch.ops.faults_threads.call(x @ torch.ones(2, 2))

    fast, _ = made(model)
    with pytest.raises(pw.errors.PiecewiseError):
        Thread(lambda: fast(torch.ones(3, 3))).get()
    assert torch.equal(fast(torch.ones(3, 2)), torch.full((3, 2), 4.0))


@contextmanager
def fx_tracing_elsewhere():
    inside, go = threading.Event(), threading.Event()

    def held(x):
        inside.set()
        assert go.wait(LONG)
        return x + 1

    # As compilers do. It patches torch.nn.Module for all threads while it runs.
    thread = threading.Thread(target=lambda: make_fx(held)(torch.ones(2)))
    before = torch.nn.Module.__call__
    thread.start()
    assert inside.wait(LONG)
    assert torch.nn.Module.__call__ is not before
    try:
        yield
    finally:
        go.set()
        thread.join()
    assert torch.nn.Module.__call__ is before


@pytest.mark.parametrize("make", ["compile", "record"])
@pytest.mark.parametrize("began_in", [False, True])
def test_torch_tracing_something_in_another_thread_has_nothing_traced_anew(make, began_in):
    told: list[pw.Event] = []
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU()).eval()
    config = pw.Config(
        dynamic={"input": {0: pw.Dim("rows", min=1, max=8)}},
        compiler="eager",
        capture_sizes=(4,),
        on_event=told.append,
    )
    fast, x = getattr(pw, make)(model, config, SimulatedPlatform()), torch.randn(4, 2)
    with torch.inference_mode():
        for _ in range(3) if not began_in else ():
            fast(x)
        with fx_tracing_elsewhere():
            for _ in range(3):
                torch.testing.assert_close(fast(x), model(x))
        for _ in range(3):
            torch.testing.assert_close(fast(x), model(x))
        assert [e.reason for e in told if e.kind == "retraced"] == []

        # What is really another __call__ is seen.
        class Doubled(torch.nn.ReLU):
            def __call__(self, x):
                return 2 * super().__call__(x)

        model[1].__class__ = Doubled
        torch.testing.assert_close(fast(x), model(x))


# Code from the store, and models that share a pool ------------------------------------------


class Kept(Compiler):
    """Its code can be kept; loading it stops before the gate."""

    def __init__(self, code):
        super().__init__()
        self.code = code

    def compile(self, graph, example_inputs, *, key, config):
        self.made += 1
        handle = str(len(self.code)).encode()
        self.code[handle] = graph.forward
        return CompiledGraph(graph.forward, lambda: handle)

    def load(self, handle):
        self.gate.passes()
        return CompiledGraph(self.code[handle], lambda: handle)


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store for this test."""
    monkeypatch.setenv("PIECEWISE_CACHE_MODE", "readwrite")
    return tmp_path


def kept(path, **changes):
    """``double`` as another process has it, to which the store gives all code."""
    found, code = [], {}
    for _ in range(2):
        platform = SimulatedPlatform()
        platform.compiler = compiler = Kept(code)
        config = pw.Config(
            dynamic={"x": {0: pw.Dim("rows", min=1, max=16)}},
            compile_ranges_endpoints=(4, 8),
            splitting_ops=(f"{LIBRARY}::call",),
            cache_dir=path,
            **(changes if found else {}),
        )
        found.append(pw.compile(double, config, platform=platform))
        if len(found) == 1:
            found[0](torch.randn(3, 2))
            found[0].warmup(progress=False)
    return found[1], compiler


@pytest.mark.parametrize("mode", ["lazy", "background"])
def test_a_ready_size_is_served_while_code_of_another_is_loaded(store, mode):
    fast, compiler = kept(store, compile_mode=mode)
    three, six = torch.randn(3, 2), torch.randn(6, 2)
    for _ in range(200):
        same(fast(three), three)
        if fast.stats().calls["compiled_range"]:
            break
        time.sleep(0.05)
    if mode == "background":  # its call waits for nothing either
        compiler.gate.close()
        same(Thread(lambda: fast(six)).get(), six)
        assert compiler.gate.began.wait(LONG)
        for x in (three, six):
            same(Thread(lambda x=x: fast(x)).get(), x)
        assert not fast.status().ready
        compiler.gate.open()
        assert fast.wait_ready(LONG)
    else:
        with halted(compiler.gate, lambda: fast(six)) as loading:
            same(Thread(lambda: fast(three)).get(), three)
        same(loading.get(), six)
    same(fast(six), six)
    assert compiler.made == 0 == fast.stats().compilations


def test_a_ready_size_is_served_while_its_model_is_warmed_up_from_the_store(store):
    fast, compiler = kept(store)
    three, nine = torch.randn(3, 2), torch.randn(9, 2)
    fast(three), fast(three)
    with halted(compiler.gate, lambda: fast.warmup(progress=False)) as warming:
        same(Thread(lambda: fast(three)).get(), three)
    assert warming.get().cache_hits > 0
    same(fast(nine), nine)
    assert compiler.made == 0


@pytest.mark.parametrize("what", ["compiles", "traces", "warms up"])
def test_a_ready_size_is_served_while_another_model_of_its_pool_builds(what):
    pool, platform, wait = pw.Pool(), SimulatedPlatform(), slow()
    platform.compiler = compiler = Compiler()
    settings = {"dynamic": {"x": {0: pw.Dim("rows", min=1, max=16)}}, "capture_sizes": (3,)}
    config = pw.Config(capture_max=False, splitting_ops=(f"{LIBRARY}::call",), **settings)
    ready = pw.compile(double, config, platform=platform, pool=pool)
    three = torch.randn(3, 2)
    ready.warmup(three, progress=False)
    another = pw.compile(lambda x: wait(double(x)), config, platform=platform, pool=pool)

    def build():
        return another(three) if what != "warms up" else another.warmup(three, progress=False)

    with halted(GATE if what == "traces" else compiler.gate, build) as building:
        before = ready.stats().calls["replayed"]
        for _ in range(2):
            same(Thread(lambda: ready(three)).get(), three)
        assert ready.stats().calls["replayed"] == before + 2
        ready.release([3])
        same(Thread(lambda: ready(three)).get(), three)
    building.get()
    ready.restore()
    same(ready(three), three)


def test_status_and_metrics_wait_for_nothing_that_is_built():
    fast, compiler = made(double)
    three, six = torch.randn(3, 2), torch.randn(6, 2)
    fast(three)
    with halted(compiler.gate, lambda: fast(six)):
        status = Thread(fast.status).get()
        assert not status.ready
        assert status.of("compiling")
        assert Thread(lambda: fast.explain().to_json()).get()
        assert Thread(fast.histogram).get().total == 1
        assert not Thread(lambda: fast.wait_ready(0)).get()
