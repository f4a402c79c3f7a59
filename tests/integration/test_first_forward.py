"""A memo or a flag that the first forward fills: once as written, then traced behind that."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch

import piecewise_core as pw
from piecewise_core.errors import UnsupportedSideEffect
from piecewise_core.testing import SimulatedPlatform

MEMO: dict[int, float] = {}
ROWS = pw.Dim("rows", 1, 32)


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


class Flag(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.scale, self.ready = torch.nn.Parameter(torch.randn(4)), None, False

    def forward(self, x):
        if not self.ready:
            self.scale, self.ready = self.weight * 2, True
        return x * self.scale


class FlagBesideASetting(Flag):
    """Also turns a setting on and off at every call, as transformers' collector of outputs does."""

    def __init__(self):
        super().__init__()
        self.busy = False

    def forward(self, x):
        self.busy = True
        result = super().forward(x)
        self.busy = False
        return result


class Memo(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.by_size = {}

    def forward(self, x):
        rows = x.shape[0]
        if rows not in self.by_size:
            self.by_size[rows] = torch.arange(rows, dtype=x.dtype)[:, None]
        return x + self.by_size[rows]


class Table(torch.nn.Module):
    """Grows when a call is longer than all before."""

    def __init__(self):
        super().__init__()
        self.known, self.table = 0, None

    def forward(self, x):
        rows = x.shape[0]
        if rows > self.known:
            self.known, self.table = rows, torch.arange(rows, dtype=x.dtype).sin()[:, None]
        return x + self.table[:rows]


class LastSizes(torch.nn.Module):
    """Fills anew whenever the sizes change."""

    def __init__(self):
        super().__init__()
        self.sizes, self.ones = None, None

    def forward(self, x):
        if self.sizes != x.shape:
            self.sizes, self.ones = x.shape, torch.ones(x.shape)
        return x + self.ones


class Angles(torch.nn.Module):
    """Registers a longer buffer in place of one that is too short, as rotary embeddings did."""

    def __init__(self):
        super().__init__()
        self.make(8)

    def make(self, rows):
        self.known = rows
        self.register_buffer("cos", torch.arange(rows).float().cos()[:, None], persistent=False)

    def forward(self, x):
        if x.shape[0] > self.known:
            self.make(x.shape[0])
        return x * self.cos[: x.shape[0]]


class KeepsTheLast(torch.nn.Module):
    """A memo of one entry: filling it takes the tensor of another size out."""

    def __init__(self):
        super().__init__()
        self.by_size, self.filled = {}, 0.0

    def forward(self, x):
        rows = x.shape[0]
        if rows not in self.by_size:
            self.filled += 1
            self.by_size.clear()
            self.by_size[rows] = torch.full((rows, 1), self.filled)
        return x + self.by_size[rows]


class NotesItsSize(torch.nn.Module):
    def forward(self, x):
        self.rows = x.shape[0]
        return x * self.rows


class AddsToASet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = set()

    def forward(self, x):
        self.seen.add(x.shape[0])
        return x * 2


class WritesAnArgument(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = 0

    def forward(self, x):
        self.seen = x.shape[0] + 1
        x.add_(1)
        return x * 2


class GlobalMemo(torch.nn.Module):
    def forward(self, x):
        rows = x.shape[0]
        if rows not in MEMO:
            MEMO[rows] = float(rows)
        return x * MEMO[rows]


def compiled(model, **settings):
    settings = {"dynamic": {"x": {0: ROWS}}, **settings}
    platform = settings.pop("platform", "cpu")
    config = pw.Config(compiler="eager", **settings)
    return pw.compile(model, config, platform=platform)


def contents(value):
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {k: contents(v) for k, v in value.items()}
    return value


def state(model):
    held = {k: v for k, v in vars(model).items() if k[:1] != "_"}
    return contents(held)


@pytest.mark.parametrize(
    "kind", [Flag, FlagBesideASetting, Memo, Table, LastSizes, Angles, KeepsTheLast, GlobalMemo]
)
@pytest.mark.parametrize("graphs", [False, True], ids=["plain", "captured"])
def test_what_the_first_forward_fills_is_filled_once_and_then_traced(kind, graphs):
    torch.manual_seed(0)
    model = kind()
    torch.manual_seed(0)
    written = kind()
    settings = {"capture_sizes": (5, 9), "capture_max": False, "platform": SimulatedPlatform()}
    fast = compiled(model, **(settings if graphs else {}))
    for rows in (5, 9, 9, 1, 31, 5, 9):
        x = torch.randn(rows, 4)
        torch.testing.assert_close(fast(x), written(x))
        assert state(model) == state(written)
    assert fast.stats().calls["eager"] < 7


def test_a_flag_costs_one_call_as_written_and_one_trace():
    fast = compiled(Flag())
    for rows in (5, 9, 1):
        fast(torch.randn(rows, 4))
    stats = fast.stats()
    assert (stats.calls["eager"], stats.graphs, stats.retraces) == (1, 1, 0)


def test_a_memo_that_is_cleared_is_filled_again():
    model = Memo()
    fast, x = compiled(model), torch.randn(5, 4)
    for _ in range(3):
        torch.testing.assert_close(fast(x), x + torch.arange(5)[:, None])
        model.by_size.clear()
        torch.testing.assert_close(fast(x), x + torch.arange(5)[:, None])
        assert list(model.by_size) == [5]


@pytest.mark.parametrize("kind", [NotesItsSize, AddsToASet, WritesAnArgument])
def test_a_model_that_writes_at_every_call_is_refused_and_nothing_has_happened(kind):
    model, x = kind(), torch.ones(5, 4)
    before = state(model)
    for _ in range(2):
        with pytest.raises(UnsupportedSideEffect, match=r"test_first_forward\.py"):
            compiled(model)(x)
    assert state(model) == before
    assert torch.equal(x, torch.ones(5, 4))


def test_filling_anew_at_every_size_ends_where_regions_do():
    fast = compiled(LastSizes(), max_regions=3)
    for rows in (5, 6, 7):
        fast(torch.randn(rows, 4))
    with pytest.raises(UnsupportedSideEffect, match="served as written 3 times"):
        fast(torch.randn(8, 4))


def test_warm_up_of_a_memo_says_to_call_the_model_first():
    fast, x = compiled(Flag()), torch.randn(5, 4)
    with pytest.raises(UnsupportedSideEffect, match=r"call the compiled model once before warmup"):
        fast.warmup(x, progress=False)
    fast(x)
    fast.warmup(x, progress=False)
    fast.seal()
    fast(torch.randn(9, 4))


class Rows(torch.nn.Module):
    """Fills a table, or fills it ``every`` time; and writes to tensors of all kinds."""

    def __init__(self, *, every=False):
        super().__init__()
        self.table, self.every, self.aside = None, every, torch.zeros(())
        self.register_buffer("rows", torch.zeros(()))

    def forward(self, x, into):
        self.rows.add_(x.shape[0])
        self.aside.add_(1)
        into.add_(x)
        if self.table is None or self.every:
            self.table = x.sum(0) + torch.rand(())
        return x * self.table


@pytest.mark.parametrize("captured", [(), (3, 5)], ids=["compiled", "captured"])
def test_a_model_that_writes_to_tensors_fills_its_memo_and_writes_once(captured):
    model, plain = Rows(), Rows()
    named = {"x": {0: ROWS}, "into": {0: ROWS}}
    sizes = {"capture_sizes": captured, "capture_max": False}
    fast = compiled(model, dynamic=named, platform=SimulatedPlatform(), **sizes)
    for rows in (5, 3, 5, 1):
        x, mine, theirs = torch.randn(rows, 4), torch.zeros(rows, 4), torch.zeros(rows, 4)
        torch.manual_seed(0)
        got = fast(x, mine)
        torch.manual_seed(0)
        torch.testing.assert_close((got, mine), (plain(x, theirs), theirs))
    assert (model.rows, model.aside) == (plain.rows, plain.aside)
    assert fast.stats().calls["eager"] == 1


def test_what_a_refused_forward_wrote_to_tensors_is_put_back():
    model, x, into = Rows(every=True), torch.randn(5, 4), torch.zeros(5, 4)
    states = torch.get_rng_state()
    with pytest.raises(UnsupportedSideEffect, match="table"):
        compiled(model, dynamic={"x": {0: ROWS}, "into": {0: ROWS}})(x, into)
    assert (model.rows, model.aside, model.table) == (0, 0, None)
    assert not into.any()
    assert torch.equal(torch.get_rng_state(), states)


class Kept(torch.nn.Module):
    """A memo with an entry per size that drops the oldest; ``moves``: of least recent use."""

    def __init__(self, memo, most=3, moves=False):
        super().__init__()
        self.memo, self.most, self.moves = memo, most, moves

    def forward(self, x):
        rows = x.shape[0]
        if self.moves and rows in self.memo:
            self.memo.move_to_end(rows)
        if rows not in self.memo:
            self.memo[rows] = torch.arange(rows).float()[:, None]
            if len(self.memo) > self.most:
                self.memo.pop(next(iter(self.memo)))
        return x * 2 + self.memo[rows]


@pytest.mark.parametrize("platform", [SimulatedPlatform(), "cpu"], ids=["simulated", "cpu"])
@pytest.mark.parametrize("kind", [OrderedDict, dict])
def test_a_memo_may_drop_its_oldest_entry(kind, platform):
    model, plain = Kept(kind()), Kept(kind())
    settings = {"dynamic": {"x": {0: pw.Dim("rows", 1, 8)}}, "capture_sizes": (3, 4)}
    fast = pw.compile(model, pw.Config(compiler="eager", **settings), platform)
    for rows in (3, 4, 3, 5, 3, 6, 3, 3, 4, 4):
        x = torch.randn(rows, 2)
        assert torch.equal(fast(x), plain(x))
        assert list(model.memo) == list(plain.memo)
    assert fast.stats().calls["replayed"] >= 2


@pytest.mark.parametrize("entries", [(), (2, 3)])
def test_a_memo_whose_entries_move_at_every_call_is_refused_by_line(entries):
    memo = OrderedDict((n, torch.ones(n, 1)) for n in entries)
    fast = pw.compile(
        Kept(memo, moves=True),
        pw.Config(dynamic={"x": {0: pw.Dim("rows", 1, 8)}}, compiler="eager"),
        "cpu",
    )
    line = Kept.forward.__code__.co_firstlineno + 3
    wanted = (
        rf"OrderedDict model.memo \(its order\) at .*test_first_forward.py:{line}\..*move_to_end"
    )
    with pytest.raises(UnsupportedSideEffect, match=wanted):
        fast(torch.ones(3, 2))
    assert list(memo) == list(entries)


def test_a_lazy_module_gets_its_parameters_at_the_first_call():
    with torch.inference_mode(False):
        model = torch.nn.Sequential(torch.nn.LazyLinear(5), torch.nn.ReLU())
    config = pw.Config(dynamic={"input": {0: pw.Dim("n", 0, 8)}}, compiler="eager")
    fast = pw.compile(model, config, platform="cpu")
    with torch.no_grad():
        for size in (3, 0, 4):
            x = torch.randn(size, 2)
            got = fast(x)
            torch.testing.assert_close(got, model(x))
    assert fast.stats().calls["compiled_range"] >= 2
