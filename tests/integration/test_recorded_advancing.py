"""Recorded functions that move Python on: a call takes what a plain call would (FAULTS 54)."""

from __future__ import annotations

import io
import itertools
import random
import sys
import weakref
from collections import deque
from types import ModuleType

import pytest
import torch

import piecewise_core as pw
from piecewise_core.graph.memory import values
from piecewise_core.testing import SimulatedPlatform

ROWS = {"x": {0: pw.Dim("rows", min=1, max=8)}}


def _generator():
    yield from itertools.count()


def _sent():
    given, place = None, 0
    while True:
        given = yield None if given is None else given * 2 + place
        place += 1


def _primed():
    made = _sent()
    next(made)
    return made


class Holds:
    """Has something, and takes from it at each call."""

    def __init__(self, held, take):
        self.held = held
        self.take = take

    def __call__(self, x):
        return x * 2 + self.take(self.held)


def _bumped(held):
    held["count"] += 1
    return held["count"]


ITERATORS = {
    "generator": lambda: Holds(_generator(), next),
    "count": lambda: Holds(itertools.count(), next),
    "bound": lambda: Holds(itertools.count().__next__, lambda held: held()),
    "for": lambda: Holds(map(float, range(99)), lambda held: next(v for v in held)),
    "enumerate": lambda: Holds(enumerate(range(99)), lambda held: sum(next(held))),
    "in a list": lambda: Holds([iter(range(99))], lambda held: next(held[0])),
    "tensors": lambda: Holds((torch.full((4,), float(v)) for v in range(99)), next),
    "file": lambda: Holds(io.StringIO("1\n2\n3\n4\n5\n6\n"), lambda held: float(held.readline())),
}
CHANGED = {
    "list": lambda: Holds(list(range(99)), lambda held: held.pop()),
    "dict": lambda: Holds({"count": 0}, _bumped),
    "deque": lambda: Holds(deque(range(99)), lambda held: held.popleft()),
    "appended": lambda: Holds([], lambda held: held.append(1) or len(held)),
    "random": lambda: Holds(random.Random(1), lambda held: held.random()),
    "python's random": lambda: Holds(0, lambda held: random.random()),
    "literal": lambda: Holds({"count": 0}, lambda held: torch.tensor([float(_bumped(held))] * 4)),
}


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


def recorded(fn, **changes):
    settings = {"dynamic": ROWS, "capture_sizes": (4, 8), **changes}
    return pw.record(fn, pw.Config(**settings), platform=SimulatedPlatform())


def run(fn, sizes=(4, 4, 8, 3, 4)):
    random.seed(0)
    return [fn(torch.full((size, 4), float(size))).clone() for size in sizes]


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("padding", ["none", "capture_sizes"])
@pytest.mark.parametrize("name", [*ITERATORS, *CHANGED])
def test_each_call_takes_one_item_from_the_first_call_on(name, padding, warm):
    made = {**ITERATORS, **CHANGED}[name]
    held = made()
    fast = recorded(lambda x: held(x), padding=padding)
    if warm:
        fast.warmup(torch.zeros(4, 4), progress=False)
    for got, want in zip(run(fast), run(made()), strict=True):
        assert torch.equal(got, want)
    why = " ".join(fast.explain().dropped.values())
    assert ("reaches an iterator" if name in ITERATORS else "second run") in why


def test_a_generator_that_is_sent_tensors_is_run_once_a_call():
    made = _primed()
    fast = recorded(lambda x: made.send(x))
    for got, want in zip(run(fast), run(_primed().send), strict=True):
        assert torch.equal(got, want)


def test_what_a_failed_capture_changed_is_as_before():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.seen, self.last = [], None

        def forward(self, x):
            self.seen.append(len(x))
            self.last = x * len(self.seen)
            return x * float(x.sum().item() > 0)

    model, reference = Model(), Model()
    for got, want in zip(run(recorded(model)), run(reference), strict=True):
        assert torch.equal(got, want)
    assert model.seen == reference.seen
    assert torch.equal(model.last, reference.last)


def test_an_iterator_that_the_function_does_not_name_is_no_reason():
    class Trainer:
        def __init__(self):
            self.batches = iter(range(9))
            self.scale = 3

        def step(self, x):
            return x * self.scale

    fast = recorded(Trainer().step)
    run(fast)
    assert fast.stats().calls["replayed"] == 4


@pytest.mark.parametrize("name", ["counts", "switches", "tokens", "time"])
@pytest.mark.parametrize("warm", [False, True])
def test_a_number_that_no_operator_is_given_counts_on(name, warm):
    """It may be full some time later, as a cache of a sliding window is."""

    class Model(torch.nn.Module):
        calls = tokens = 0
        switch = False
        time = 0.0

        def forward(self, x):
            if name == "counts":
                self.calls += 1
            if name == "switches":
                self.switch = not self.switch
            if name == "tokens":
                self.tokens += x.shape[0]
            if name == "time":
                self.time += 0.5
            full = self.calls > 4 or self.tokens > 20 or self.time > 3
            return torch.softmax(x, -1) * 3 if full else torch.softmax(x, -1)

    model, plain = Model(), Model()
    fast = pw.record(
        model, pw.Config(dynamic=ROWS, capture_sizes=(4, 8)), platform=SimulatedPlatform()
    )
    if warm:
        assert len(fast.warmup(torch.ones(4, 4), progress=False).dropped) == 2
    for number, size in enumerate((4, 4, 4, 8, 4, 3, 4, 8, 4, 8, 8)):
        x = torch.randn(size, 4) + number
        assert torch.equal(fast(x), plain(x))
        for held in ("calls", "switch", "tokens", "time"):
            assert getattr(model, held) == getattr(plain, held)


def test_a_number_that_is_counted_up_and_read_by_nobody_stays_as_it_is():
    class Model(torch.nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return x * 2

    fast = recorded(Model())
    run(fast)
    run(fast)
    # What changed might matter: the first call of each size runs as written.
    assert fast.stats().calls["replayed"] == 6


def test_a_table_that_is_made_once_is_no_other_path():
    made = {}

    def fn(x):
        if "table" not in made:
            made["table"] = torch.arange(4).float() * 3 + 1
        return x + made["table"]

    fast = recorded(fn)
    for got, want in zip(run(fast), run(fn), strict=True):
        assert torch.equal(got, want)
    assert fast.stats().calls["replayed"] == 3  # all but the call that makes it


@pytest.mark.parametrize("padding", ["none", "capture_sizes"])
@pytest.mark.parametrize("platform", ["simulated", "cpu"])
@pytest.mark.parametrize("name", ["input", "result", "largest", "by size", "last"])
def test_what_the_first_call_leaves_in_python_is_that_of_a_call_as_written(name, platform, padding):
    class Model:
        def __init__(self):
            self.kept, self.most, self.held = None, 0, {}

        def __call__(self, x):
            n = x.shape[0]
            if name == "input" and self.kept is None:
                self.kept = x
            if name == "result" and self.kept is None:
                self.kept = x * 2
            if name == "largest":
                self.most = max(self.most, n)
                return x * self.most
            if name == "by size":
                if n not in self.held:
                    self.held[n] = x[:1]
                return x + self.held[n]
            if name == "last":
                if len(self.held) == 0 or n not in self.held:
                    self.held.clear()
                    self.held[n] = torch.full((1,), float(len(self.held) + n))
                return x * self.held[n]
            return x + self.kept[:1]

    fast = pw.record(
        Model(),
        pw.Config(dynamic=ROWS, capture_sizes=(4, 8), padding=padding),
        platform=SimulatedPlatform() if platform == "simulated" else "cpu",
    )
    plain = Model()
    for number, size in enumerate((4, 4, 8, 4, 3, 8, 4, 4)):
        torch.manual_seed(number)
        x = torch.randn(size, 4)
        torch.testing.assert_close(fast(x), plain(x.clone()), rtol=0, atol=0)
    assert fast.stats().calls["replayed"] >= (1 if name == "last" else 4)


def test_a_function_that_asks_what_is_imported_stays_recorded_when_more_is(monkeypatch):
    def model(x):
        return x if "no_such_module" in sys.modules else torch.softmax(x, -1) * 2

    fast = pw.record(
        model, pw.Config(dynamic=ROWS, capture_sizes=(4,)), platform=SimulatedPlatform()
    )
    for number in range(4):
        monkeypatch.setitem(sys.modules, f"made_for_a_kernel_{number}", ModuleType("kernel"))
        x = torch.randn(4, 3)
        torch.testing.assert_close(fast(x), model(x))
    assert fast.stats().retraces == 0
    assert fast.stats().calls["replayed"] == 4


def test_a_function_that_may_write_to_a_stream_is_recorded(tmp_path):
    with (tmp_path / "log").open("w") as stream:

        def model(x):
            if x.shape[0] > 100:
                stream.write("many")
            return torch.softmax(x, -1)

        fast = pw.record(
            model, pw.Config(dynamic=ROWS, capture_sizes=(4,)), platform=SimulatedPlatform()
        )
        for _ in range(3):
            x = torch.randn(4, 3)
            torch.testing.assert_close(fast(x), model(x))
    assert fast.stats().calls["replayed"] == 3


@pytest.mark.parametrize("platform", ["simulated", "cpu"])
@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize(
    "kept",
    [lambda x: x, lambda x: {"rows": [x[:1]]}, lambda x: (x.T, 1)],
    ids=["itself", "rows", "turned"],
)
def test_warm_up_leaves_sizes_whose_input_the_function_keeps_to_their_calls(kept, sealed, platform):
    class Model:
        def __init__(self):
            self.first = None

        def __call__(self, x):
            if self.first is None:
                self.first = kept(x)
            (first,) = (t for t in values(self.first) if isinstance(t, torch.Tensor))
            return x + first.reshape(-1)[0]

    model, plain = Model(), Model()
    fast = pw.record(
        model,
        pw.Config(dynamic=ROWS, capture_sizes=(4, 8)),
        platform=SimulatedPlatform() if platform == "simulated" else "cpu",
    )
    report = fast.warmup(torch.ones(4, 4), progress=False)
    assert not report.captured
    assert len(report.dropped) == 2
    assert (
        "the function keeps its input, or what it computes from it, as 'first' of a "
        in report.dropped[0]
    )
    assert model.first is None
    if sealed:
        fast.seal()
    for number, size in enumerate((4, 4, 8, 3, 4, 8)):
        x = torch.randn(size, 4) + number
        torch.testing.assert_close(fast(x), plain(x), rtol=0, atol=0)
    assert fast.stats().calls["replayed"] == (0 if sealed else 4)


def test_warm_up_captures_a_function_that_fills_a_table():
    class Model:
        def __init__(self):
            self.table = None

        def __call__(self, x):
            if self.table is None:
                self.table = torch.arange(4.0)
            return x + self.table

    fast = pw.record(
        Model(), pw.Config(dynamic=ROWS, capture_sizes=(4, 8)), platform=SimulatedPlatform()
    )
    assert len(fast.warmup(torch.ones(4, 4), progress=False).captured) == 2
    torch.testing.assert_close(fast(torch.ones(4, 4)), torch.arange(4.0) + torch.ones(4, 4))


class Carries:
    """Goes on from what its last call left, and leaves it anew; nothing of it is written to."""

    def __init__(self, kind):
        self.kind = kind
        self.state = torch.zeros(4)
        self.listed = [torch.zeros(4)]
        self.queue = deque([torch.zeros(4)], maxlen=2)
        self.key = type("Key", (), {})()
        self.weakly = weakref.WeakKeyDictionary({self.key: torch.zeros(4)})
        self.slotted = Slotted()

    def __call__(self, x):
        return getattr(self, self.kind)(x)

    def replaced(self, x):
        self.state = self.state * 0.5 + x.sum(0)
        return x + self.state

    def returned(self, x):
        before, self.state = self.state, x.sum(0) * 3
        return before

    def appended(self, x):
        self.listed.append(self.listed[-1] * 0.5 + x.sum(0))
        return x + self.listed[-1]

    def queued(self, x):
        self.queue.append(x.sum(0) * 1)
        return x + sum(self.queue)

    def keyed(self, x):
        self.weakly[self.key] = self.weakly[self.key] * 0.5 + x.sum(0)
        return x * self.weakly[self.key]

    def slot(self, x):
        self.slotted.state = self.slotted.state * 0.5 + x.sum(0)
        return x + self.slotted.state

    def part(self, x):
        joined = torch.cat([self.state.expand(1, 4), x])
        self.state = joined[-1]
        return joined[:-1] + joined[1:]

    def given(self, x):
        joined = torch.cat([self.state.expand(1, 4), x])
        self.state = x[-1]
        return joined[:-1] + joined[1:]

    def data(self, x):
        self.state.data = self.state * 0.5 + x.sum(0)
        return x + self.state


class Slotted:
    __slots__ = ("state",)

    def __init__(self):
        self.state = torch.zeros(4)


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize(
    "kind",
    ["replaced", "returned", "appended", "queued", "keyed", "slot", "part", "given", "data"],
)
def test_a_function_that_replaces_what_it_goes_on_from_is_not_captured(kind, warm):
    fast, plain = recorded(Carries(kind), padding="capture_sizes"), Carries(kind)
    if warm:
        fast.warmup(torch.full((4, 4), 9.0), progress=False)
    for number, size in enumerate((4, 4, 8, 3, 4, 8, 4)):
        torch.manual_seed(number)
        x = torch.randn(size, 4)
        torch.testing.assert_close(fast(x), plain(x.clone()), rtol=0, atol=0)
    assert fast.stats().calls["replayed"] == 0
    assert fast.explain().dropped


@pytest.mark.parametrize("warm", [False, True])
def test_a_table_made_by_operators_that_run_at_every_call_too_is_no_state(warm):
    class Model:
        def __init__(self):
            self.tables = {}

        def __call__(self, x):
            rows = torch.arange(x.shape[0]).float()[:, None]
            if len(x) not in self.tables:
                self.tables[len(x)] = torch.arange(x.shape[0]).float()[:, None].cos()
            return x + self.tables[len(x)] + rows.cos()

    fast, plain = recorded(Model()), Model()
    if warm:
        fast.warmup(torch.ones(4, 4), progress=False)
    for got, want in zip(run(fast), run(plain), strict=True):
        assert torch.equal(got, want)
    assert fast.stats().calls["replayed"] >= 2


@pytest.mark.parametrize("write", ["set", "append", "nested", "default"])
def test_a_container_that_is_an_argument_and_is_changed_is_changed_at_every_call(write):
    def fn(x, held=[]):  # noqa: B006
        if write == "nested":
            held[0]["last"] = x * 2
        elif write == "set":
            held[0] = x * 2
        else:
            held.append(x.sum(0) * len(held))
            return x + held[-1]
        return x + 1

    def calls(model):
        held = [{"last": torch.zeros(4, 4)}] if write == "nested" else [torch.zeros(4, 4)]
        for number in range(4):
            x = torch.full((4, 4), float(number))
            yield model(x) if write == "default" else model(x, held)
            yield from (t.clone() for t in values(held) if isinstance(t, torch.Tensor))

    defaults = fn.__defaults__[0]
    want = [t.clone() for t in calls(fn)]
    defaults.clear()
    fast = pw.record(fn, pw.Config(graph_mode="piecewise"), platform=SimulatedPlatform())
    for got, wanted in zip(calls(fast), want, strict=True):
        assert torch.equal(got, wanted)
    assert fast.stats().calls["replayed"] == 0


@pytest.mark.parametrize("warm", [False, True])
def test_an_object_that_calls_give_is_changed_once_a_call(warm):
    class Cache:
        def __init__(self):
            self.seen, self.sizes, self.keys = 0, [], torch.zeros(8, 4)

    def fn(x, cache):
        cache.seen += 1
        cache.sizes.append(len(x))
        cache.keys[: len(x)] += x
        return x * cache.seen + cache.keys[: len(x)] + len(cache.sizes)

    fast, ours, theirs = recorded(fn), Cache(), Cache()
    if warm:
        fast.warmup(torch.ones(4, 4), ours, progress=False)
    for number, size in enumerate((4, 4, 8, 3, 4)):
        x = torch.full((size, 4), float(number))
        assert torch.equal(fast(x, ours), fn(x, theirs))
        assert (ours.seen, ours.sizes) == (theirs.seen, theirs.sizes)
        assert torch.equal(ours.keys, theirs.keys)
