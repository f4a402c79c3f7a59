"""A share of calls also runs as written; bisection names the piece that is wrong."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from torch import nn

import piecewise_core as pw
from piecewise_core.protocols import CompiledGraph
from piecewise_core.testing import SimulatedPlatform

N = pw.Dim("n", 1, 16)
FIELDS = {"dynamic": {"x": {0: N}}, "splitting_ops": ("torch.softmax",), "cache_dir": None}


class Block(nn.Module):
    """Three compilable pieces around two cuts."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.requires_grad_(False)
        self.scale = 2.0

    def forward(self, x):
        for place, layer in enumerate(self.layers):
            x = layer(x).sin() + place
            x = torch.softmax(x, -1) if place < 2 else x * self.scale
        return {"y": x, "rows": x.shape[0]}


class Slightly:
    """Compiles by running as written, and is a little off where a graph adds ``number``."""

    name = "slightly"

    def __init__(self, number=None, error=1e-2):
        self.number, self.error = number, error

    def compile(self, graph, example_inputs, *, key, config):
        adds = [n.args[1] for n in graph.graph.nodes if n.op == "call_function" and len(n.args) > 1]
        off = self.error if self.number in [a for a in adds if isinstance(a, int)] else 0.0

        def run(*args):
            outs = graph.forward(*args)
            return tuple(o * (1 + off) if off and o.is_floating_point() else o for o in outs)

        return CompiledGraph(run)

    def hash_factors(self):
        return {}


class Platform(SimulatedPlatform):
    def __init__(self, compiler=None, **config):
        super().__init__(**config)
        self.compiler = compiler or self.compiler


def verified(model, platform=None, rate=1.0, **config):
    settings = {**FIELDS, "check": "verify", "verify_rate": rate, **config}
    if platform is None or not isinstance(platform.compiler, Slightly):
        settings.setdefault("compiler", "eager")
    return pw.compile(model, pw.Config(**settings), platform=platform or SimulatedPlatform())


def right(fast, model, sizes=(5, 8, 3)):
    for size in sizes:
        x = torch.randn(size, 8)
        torch.testing.assert_close(fast(x), model(x))


# Nothing wrong ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [{}, {"capture_sizes": (4, 8)}, {"capture_sizes": (8,), "padding": "capture_sizes"}],
    ids=["compiled", "captured", "padded"],
)
def test_calls_that_are_right_are_counted_and_go_on(config):
    model = Block()
    fast = verified(model, **config)
    right(fast, model, (8, 5, 8, 3, 5))
    stats = fast.stats()
    assert (stats.verified, stats.wrong) == (5, 0)
    assert stats.calls["eager"] == 0


@pytest.mark.parametrize(("rate", "count"), [(1.0, 20), (0.5, 10), (0.1, 2), (0.01, 0)])
def test_the_share_of_calls_is_kept(rate, count):
    fast = verified(Block(), rate=rate)
    for _ in range(20):
        fast(torch.randn(3, 8))
    assert fast.stats().verified == count


class Cached(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.zeros(8))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, x, into):
        self.total += x.sum(0)
        self.count += 1
        into.add_(x)
        return x + self.total, self.total, into


@pytest.mark.parametrize("captured", [(), (4,)])
def test_writes_of_a_verified_call_happen_once(captured):
    model, plain = Cached(), Cached()
    fast = verified(
        model, dynamic={"x": {0: N}, "into": {0: N}}, capture_sizes=captured, splitting_ops=()
    )
    mine, theirs = torch.zeros(4, 8), torch.zeros(4, 8)
    for count in range(1, 5):
        x = torch.randn(4, 8)
        torch.testing.assert_close(fast(x, mine), plain(x, theirs))
        assert model.count.item() == count
    torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(model.total, plain.total)
    assert (fast.stats().verified, fast.stats().wrong) == (4, 0)


def test_random_numbers_of_a_verified_call_are_drawn_once():
    def noisy(x):
        return x + torch.rand_like(x)

    fast = verified(noisy, splitting_ops=())
    x = torch.zeros(4, 8)
    torch.manual_seed(3)
    got = [fast(x).clone() for _ in range(3)]
    torch.manual_seed(3)
    for each in got:
        torch.testing.assert_close(each, noisy(x))
    assert fast.stats().verified == 3


# Something wrong --------------------------------------------------------------------------------


@pytest.mark.parametrize("captured", [(), (4, 8)])
def test_a_compiler_that_is_slightly_wrong_is_found_and_its_targets_run_as_written(
    captured, caplog
):
    model = Block()
    fast = verified(model, Platform(Slightly(1)), capture_sizes=captured, capture_max=False)
    right(fast, model, (4, 4, 8, 4))
    stats = fast.stats()
    assert stats.wrong == (2 if captured else 1)
    assert stats.calls["eager"] == (2 if captured else 3)
    errors = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert len(errors) == stats.wrong
    assert (
        "gave other results than the model as written: output['y']: float32 of shape (4, 8)"
        in (errors[0])
    )
    assert "region 0 piece 2 differs first, stage compiled" in errors[0]
    assert "test_verify.py:" in errors[0]
    assert "served as written: region 0 " in str(fast.explain())


def test_calls_above_the_bounds_are_compared_too():
    model = Block()
    fast = verified(model, Platform(Slightly(1)), out_of_range="general")
    right(fast, model, (17, 20, 3))
    assert (fast.stats().verified, fast.stats().wrong) == (2, 2)
    assert fast.stats().calls["general"] == 1


def test_a_model_that_finds_no_memory_as_written_is_served_all_the_same():
    def fn(x):
        if not torch.compiler.is_compiling() and x.shape[0] == 4:
            raise torch.OutOfMemoryError("no room")
        return torch.softmax(x, -1)

    fast = verified(fn)
    assert fast(torch.randn(4, 8)).shape == (4, 8)
    assert (fast.stats().verified, fast.stats().wrong) == (0, 0)


def test_a_graph_that_lost_an_operator_is_found(caplog):
    model = Block()
    fast = verified(model, Platform(drop_op="aten.sin.default"), capture_sizes=(4,))
    right(fast, model, (4, 4, 3))
    assert fast.stats().wrong == 1
    assert "piece 0 differs first, stage captured" in caplog.text


def test_an_attribute_that_changed_behind_the_trace_is_found():
    hidden = [2.0]

    def fn(x):
        return torch.softmax(x.sin(), -1) * hidden[0]

    fast = verified(fn)
    right(fast, fn)
    assert fast.stats().wrong == 0
    hidden[0] = 3.0
    right(fast, fn)
    stats = fast.stats()
    assert stats.wrong == 1 or stats.graphs == 2  # found, or traced anew where that is watched


def test_a_wrong_write_is_found_and_put_right():
    class Off(Slightly):
        def compile(self, graph, example_inputs, *, key, config):
            def run(*args):
                outs = graph.forward(*args)
                for a in args:
                    if isinstance(a, torch.Tensor) and a.shape == (8,):
                        a.add_(1)
                return outs

            return CompiledGraph(run)

    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("total", torch.zeros(8))

        def forward(self, x):
            self.total += x.sum(0)
            return x * 2

    model, plain = Keeps(), Keeps()
    fast = verified(model, Platform(Off()), splitting_ops=())
    for _ in range(3):
        x = torch.randn(4, 8)
        torch.testing.assert_close(fast(x), plain(x))
        torch.testing.assert_close(model.total, plain.total)
    assert fast.stats().wrong == 1


def test_what_a_verified_call_raises_is_the_models_own():
    def fn(x):
        return torch.softmax(x, -1)

    fast = verified(fn)
    x = torch.randn(3, 8)
    fast(x)
    with pytest.raises(pw.errors.InputMismatch):
        fast(x[:, :7])


def test_random_numbers_that_a_compiler_draws_otherwise_cannot_be_verified(caplog):
    class Other(Slightly):
        def compile(self, graph, example_inputs, *, key, config):
            def run(*args):
                torch.rand(3)
                return graph.forward(*args)

            return CompiledGraph(run)

    fast = verified(lambda x: x + torch.rand_like(x), Platform(Other()), splitting_ops=())
    for _ in range(3):
        fast(torch.zeros(4, 8))
    assert (fast.stats().verified, fast.stats().wrong) == (0, 0)
    assert caplog.text.count("cannot be verified: torch.rand_like at ") == 1


def test_torch_compile_s_door_verifies_too(caplog):
    model = Block()
    with torch.no_grad():
        fast = torch.compile(
            model,
            backend="piecewise",
            dynamic=True,
            options={
                "platform": Platform(Slightly(1)),
                "check": "verify",
                "verify_rate": 1.0,
                "splitting_ops": ("torch.softmax",),
            },
        )
        for _ in range(3):
            x = torch.randn(5, 8)
            torch.testing.assert_close(fast(x), model(x))
    assert "piece 2 differs first, stage compiled" in caplog.text


# Recorded functions -----------------------------------------------------------------------------


def recorded(fn, platform=None, **config):
    settings = {
        "dynamic": {"x": {0: N}},
        "capture_sizes": (4, 8),
        "check": "verify",
        "verify_rate": 1.0,
        **config,
    }
    return pw.record(fn, pw.Config(**settings), platform=platform or SimulatedPlatform())


def test_replayed_calls_of_a_recorded_function_are_compared():
    model = Block()
    fast = recorded(model, splitting_ops=("torch.softmax",), padding="capture_sizes")
    fast.warmup(torch.randn(3, 8), progress=False)
    right(fast, model, (4, 4, 3, 3, 3))
    # The first call of a padded size runs as written anyway.
    assert (fast.stats().verified, fast.stats().wrong) == (4, 0)


def test_a_recorded_graph_that_lost_an_operator_is_found(caplog):
    fast = recorded(lambda x: (x.sin() + 1) * 2, Platform(drop_op="aten.sin.default"))
    fast.warmup(torch.randn(3, 8), progress=False)
    right(fast, lambda x: (x.sin() + 1) * 2, (4, 4, 8, 8))
    stats = fast.stats()
    assert (stats.wrong, stats.calls["eager"]) == (2, 2)
    assert caplog.text.count("gave other results than the function as written: output: ") == 2
    assert "served as written: (4,)" in str(fast.explain())
    assert "(8,)" in json.loads(fast.explain().to_json())["as_written"]


def test_a_number_that_was_fixed_when_recorded_is_found():
    factor = [2.0]

    def fn(x):
        return x.sin() * factor[0]

    fast = recorded(fn)
    right(fast, fn, (4, 4))
    factor[0] = 3.0
    right(fast, fn, (4, 4))
    assert fast.stats().wrong <= 1


def test_writes_of_a_verified_recorded_call_happen_once():
    model, plain = Cached(), Cached()
    fast = recorded(model, dynamic={"x": {0: N}, "into": {0: N}})
    mine, theirs = torch.zeros(4, 8), torch.zeros(4, 8)
    for count in range(1, 5):
        x = torch.randn(4, 8)
        torch.testing.assert_close(fast(x, mine), plain(x, theirs))
        assert model.count.item() == count
    torch.testing.assert_close(mine, theirs)
    assert (fast.stats().verified, fast.stats().wrong) == (4, 0)


# Bisection --------------------------------------------------------------------------------------


def plain(model, platform=None, **config):
    return verified(model, platform, **{"check": "cheap", **config})


def test_bisection_says_where_nothing_differs():
    model = Block()
    report = plain(model, capture_sizes=(8,), padding="capture_sizes").bisect(torch.randn(5, 8))
    assert not report.differs
    assert report.runs == 2
    assert "replayed" in report.target
    assert "nothing differs" in str(report)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_bisection_names_the_compiled_piece(number):
    report = plain(Block(), Platform(Slightly(number))).bisect(torch.randn(5, 8))
    assert (report.stage, report.piece) == ("compiled", f"region 0 piece {2 * number}")
    assert "softmax" not in " ".join(report.ops)
    assert any("x = layer(x).sin() + place" in line for line in report.source)
    assert json.loads(report.to_json())["piece"] == report.piece


@pytest.mark.parametrize("mode", ["piecewise", "full"])
def test_bisection_names_the_stage_captured(mode):
    platform = Platform(drop_op="aten.sin.default")
    fast = plain(Block(), platform, capture_sizes=(4,), graph_mode=mode)
    report = fast.bisect(torch.randn(4, 8))
    assert report.stage == "captured"
    # A forward that is one graph leaves nothing between its pieces to look at.
    assert report.piece == ("region 0 piece 0" if mode == "piecewise" else "")


def test_bisection_names_the_stage_padded(monkeypatch):
    @torch.library.custom_op("pwverify::lies", mutates_args=(), tags=(torch.Tag.pointwise,))
    def lies(x: torch.Tensor) -> torch.Tensor:
        return x + x.sum(0)

    lies.register_fake(torch.empty_like)

    def fn(x):
        return lies(torch.softmax(x.cos(), -1) + 1) * 2

    fast = plain(fn, capture_sizes=(8,), padding="capture_sizes", check="off")
    report = fast.bisect(torch.randn(5, 8))
    assert (report.stage, report.piece) == ("padded", "region 0 piece 2")
    assert "lies" in " ".join(report.ops)


def test_bisection_leaves_memory_as_it_was():
    model = Cached()
    fast = plain(model, dynamic={"x": {0: N}, "into": {0: N}}, splitting_ops=())
    x, into = torch.randn(4, 8), torch.zeros(4, 8)
    assert not fast.bisect(x, into).differs
    assert (model.count.item(), into.abs().sum().item()) == (0, 0)


def test_bisection_takes_no_more_runs_than_it_may():
    import math

    model = Block()
    report = plain(model, Platform(Slightly(2))).bisect(torch.randn(3, 8))
    assert report.runs <= math.log2(report.pieces) + 2
    one = plain(lambda x: x * 2, splitting_ops=()).bisect(torch.randn(3, 8))
    assert one.runs <= math.log2(one.pieces) + 2


# What verification says and puts right ----------------------------------------------------------


def errors(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.zeros(8))

    def forward(self, x, into):
        y = torch.softmax(x.sin(), -1)
        self.total += y.sum(0)
        into.add_(y)
        return {"y": (y * 2, x.cos())}


class Changes(Slightly):
    """``change(run, args)`` in place of every piece's code."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def compile(self, graph, example_inputs, *, key, config):
        return CompiledGraph(lambda *args: self.change(graph.forward, args))


def on_copies(run, args):
    return run(*(a.clone() if isinstance(a, torch.Tensor) else a for a in args))


def scribbling(run, args):
    outs = run(*args)
    for a in args:
        if isinstance(a, torch.Tensor) and a.shape == (4, 8):
            a.mul_(3)
    return outs


def test_a_write_that_a_piece_s_code_makes_elsewhere_is_blamed_on_the_piece(caplog):
    model, plain = Twice(), Twice()
    fast = verified(model, Platform(Changes(on_copies)), dynamic={})
    mine, theirs = torch.zeros(4, 8), torch.zeros(4, 8)
    for _ in range(2):
        x = torch.randn(4, 8)
        torch.testing.assert_close(fast(x, mine), plain(x, theirs))
    torch.testing.assert_close((mine, model.total), (theirs, plain.total))
    assert "region 0 piece 2 differs first, stage compiled, from " in errors(caplog)[0]


@pytest.mark.parametrize("captured", [(), (4,)])
def test_code_that_writes_to_a_caller_s_input_is_found_and_the_input_put_right(captured, caplog):
    model = Block()
    fast = verified(model, Platform(Changes(scribbling)), capture_sizes=captured)
    x = torch.randn(4, 8)
    kept = x.clone()
    torch.testing.assert_close(fast(x), model(kept))
    torch.testing.assert_close(x, kept)
    # A graph writes to the copy of the input that it reads, which the next call brings anew.
    assert (fast.stats().verified, fast.stats().wrong) == (1, 0 if captured else 1)
    assert ("an input that the model does not write to: " in caplog.text) is not bool(captured)


def test_an_input_of_one_element_many_times_over_is_verified():
    model = Block()
    fast = verified(model)
    x = torch.randn(1, 8).expand(5, 8)
    torch.testing.assert_close(fast(x), model(x))
    assert (fast.stats().verified, fast.stats().wrong) == (1, 0)


@pytest.mark.parametrize("front", [pw.compile, pw.record])
@pytest.mark.parametrize("captured", [(), (4,)])
def test_an_input_that_is_written_to_under_another_name_is_verified(front, captured):
    def fn(x, y):
        x.add_(y * 2)
        return x * 1

    rows = {0: pw.Dim("rows", min=1, max=16)}
    config = pw.Config(
        dynamic={"x": rows, "y": rows},
        capture_sizes=captured,
        compiler="eager",
        check="verify",
        verify_rate=1.0,
    )
    fast = front(fn, config, platform=SimulatedPlatform())
    for ours in (lambda b: (b[:4], b[:4]), lambda b: (b[:4], b[4:]), lambda b: (b[:4], b[2:6])):
        for _ in range(2):
            mine = torch.randn(8, 3)
            theirs = mine.clone()
            torch.testing.assert_close(fast(*ours(mine)), fn(*ours(theirs)))
            torch.testing.assert_close(mine, theirs)
    assert fast.stats().wrong == 0


def test_results_of_a_forward_in_one_graph_are_blamed_on_the_line_that_makes_them(caplog):
    def fn(x):
        y = torch.softmax(x + 1, -1)
        return {"a": y * 2, "b": torch.softmax(x, -1).sin()}

    fast = verified(fn, Platform(drop_op="aten.sin.default"), capture_sizes=(4,), graph_mode="full")
    fast(torch.randn(4, 8))
    message, line = errors(caplog)[0], fn.__code__.co_firstlineno + 2
    assert "output['b']" in message
    assert "no single piece differs first, stage captured" in message
    assert f"test_verify.py:{line}" in message


def test_the_call_that_records_is_verified_and_the_line_is_named(caplog):
    def fn(x):
        y = x.sin()
        return {"a": [x * 2], "b": y + 1}

    fast = recorded(fn, Platform(drop_op="aten.sin.default"))
    x = torch.randn(4, 8)
    torch.testing.assert_close(fast(x), fn(x))
    assert (fast.stats().verified, fast.stats().wrong) == (1, 1)
    line = fn.__code__.co_firstlineno + 2
    assert "output['b']: " in errors(caplog)[0]
    assert f"stage captured, from {__file__}:{line}" in errors(caplog)[0]


def test_memory_that_a_recorded_function_writes_to_wrongly_is_blamed_on_the_line(caplog):
    model, plain = Cached(), Cached()
    fast = recorded(
        model, Platform(drop_op="aten.sum.dim_IntList"), dynamic={"x": {0: N}, "into": {0: N}}
    )
    mine, theirs = torch.zeros(4, 8), torch.zeros(4, 8)
    for _ in range(2):
        x = torch.randn(4, 8)
        torch.testing.assert_close(fast(x, mine), plain(x, theirs))
    torch.testing.assert_close(model.total, plain.total)
    assert fast.stats().wrong == 1
    assert "stage captured, from " in errors(caplog)[0]
    assert "test_verify.py:" in errors(caplog)[0]


def same_memory(kept):
    def change(run, args):
        return tuple(kept.setdefault(o.shape, torch.empty_like(o)).copy_(o) for o in run(*args))

    return change


def test_results_that_lie_in_an_earlier_one_s_memory_are_found(caplog):
    def fn(x):
        return {"y": x * 2 + 1}

    fast = verified(fn, Platform(Changes(same_memory({}))), splitting_ops=())
    x = torch.randn(4, 8)
    first, second, third = fast(x), fast(x + 1), fast(x + 2)
    torch.testing.assert_close((second, third), (fn(x + 1), fn(x + 2)))
    assert (fast.stats().verified, fast.stats().wrong) == (2, 1)
    assert "output['y']: lies in the memory of an earlier call's result" in errors(caplog)[0]
    line = fn.__code__.co_firstlineno + 1
    assert f"{__file__}:{line}" in errors(caplog)[0]
    assert first is not second


class Memo(nn.Module):
    """Returns what it was given, what it holds, and a view of it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.ones(8))

    def forward(self, x):
        return x, self.table, self.table[2:], x * 2


@pytest.mark.parametrize("captured", [(), (4,)])
def test_results_that_lie_in_the_model_s_memory_are_right(captured):
    fast = verified(Memo(), splitting_ops=(), capture_sizes=captured)
    x = torch.randn(4, 8)
    held = [fast(x) for _ in range(3)]
    assert (fast.stats().verified, fast.stats().wrong, len(held)) == (3, 0, 3)


def scratching(run, args):
    outs = run(*args)
    for a in args:
        if isinstance(a, torch.Tensor) and a.shape == (8, 8):
            a.mul_(1.5)
    return outs


@pytest.mark.parametrize("captured", [(), (4,)])
def test_code_that_writes_to_the_weights_is_refused(captured, caplog):
    model = Block()
    fast = verified(model, Platform(Changes(scratching)), capture_sizes=captured, rate=0.5)
    fast(torch.randn(4, 8))
    with pytest.raises(pw.errors.OpContractBroken) as raised:
        fast(torch.randn(4, 8))
    assert "float32 of shape (8, 8) of the model, which it does not write to" in str(raised.value)
    assert "region 0 piece 0 differs first, stage compiled, from " in str(raised.value)
    assert "test_verify.py:" in str(raised.value)
    model.load_state_dict(Block().state_dict())
    right(fast, model, (4,))
    assert fast.stats().calls["eager"] == 1
