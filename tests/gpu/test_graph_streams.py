"""Forks on two streams of one captured graph: the same numbers as on one, replay after replay."""

from __future__ import annotations

import contextlib
import random

import pytest
import torch
from parallel_models import MODELS, Drawing, Noting, Sides, Usual, inputs

import piecewise_core as pw
from piecewise_core.capture.graphstreams import GraphStreams
from piecewise_core.capture.twostreams import TwoStreams

pytestmark = pytest.mark.gpu

SIZES = (1, 7, 24, 64)


def built(gpu, model, name, **config):
    given = 2 if name == "mm-dit" else 1
    dims = {place: {0: pw.Dim("rows", 1, 64)} for place in range(given)}
    settings = {
        "dynamic": dims,
        "splitting_ops": (),
        "capture_sizes": SIZES,
        "graph_mode": "full",
        "graph_streams": "two",
        "capture_compile": "range",
        **config,
    }
    fast = gpu.compile(model, **settings)
    fast.warmup(*given_to(gpu, name, 64, model))
    return fast


def check(fast, model, calls, monkeypatch):
    """Each of ``calls`` twice on two streams, then on one with the same code: bitwise the same."""
    assert all(plan.forks for plan in plans(fast)), str(fast.explain())
    found = [leaves(fast(*given)) for given in calls]
    again = [leaves(fast(*given)) for given in reversed(calls)][::-1]
    fast.release()
    with monkeypatch.context() as patch:
        patch.setattr(GraphStreams, "side", lambda self, whole: None)
        fast.restore()
    assert {plan.forks for plan in plans(fast)} == {0}
    one = [leaves(fast(*given)) for given in calls]
    for place, given in enumerate(calls):
        off = [(a - b).abs().max().item() for a, b in zip(found[place], one[place], strict=True)]
        assert same(found[place], again[place]), f"call {place} is not as it was before"
        assert same(found[place], one[place]), f"call {place} is off by {off}"
        for a, b in zip(found[place], leaves(model(*given)), strict=True):
            loose = 1e-3 if a.dtype is torch.float32 else 0.1
            torch.testing.assert_close(a, b, rtol=loose, atol=loose)


def made(gpu, name, width, dtype=torch.float32):
    torch.manual_seed(3)
    return MODELS[name](width).eval().to(gpu.device, dtype)


def given_to(gpu, name, rows, model):
    dtype = next(model.parameters()).dtype
    width = next(p.shape[-1] for p in model.parameters() if p.dim() == 2)
    return tuple(t.to(dtype) for t in inputs(name, rows, width, gpu.device))


def plans(fast):
    return list(fast._pw_session.forms[0].capturing.plans)


def leaves(result):
    return [t.clone() for t in torch.utils._pytree.tree_leaves(result)]


def same(one, other):
    return all(map(torch.equal, one, other))


@pytest.mark.parametrize("compiler", ["eager", None])
@pytest.mark.parametrize("name", MODELS)
def test_two_hundred_replays_are_bitwise_those_of_one_stream(gpu, name, compiler, monkeypatch):
    model = made(gpu, name, 128)
    fast = built(gpu, model, name, compiler=compiler)
    assert len(plans(fast)) == len(SIZES)
    draw = random.Random(5)
    calls = [given_to(gpu, name, draw.choice(SIZES), model) for _ in range(200)]
    check(fast, model, calls, monkeypatch)
    stats = fast.stats()
    assert stats.calls["replayed"] == sum(stats.calls.values()) == 600


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_that_use_a_workspace_do_not_share_it(gpu, dtype, monkeypatch):
    """Few rows and wide weights: libraries split the sum, and add up in a workspace."""
    model = made(gpu, "gpt-j", 1024, dtype)
    fast = built(gpu, model, "gpt-j", compiler="eager")
    calls = [given_to(gpu, "gpt-j", SIZES[turn % len(SIZES)], model) for turn in range(50)]
    check(fast, model, calls, monkeypatch)


def test_replays_are_right_when_the_caller_takes_and_frees_all_memory(gpu, monkeypatch):
    """What a lane's memory would be, were it let go too early, is filled by others meanwhile."""
    model = made(gpu, "long", 256)
    fast = built(gpu, model, "long", compiler="eager")
    draw = random.Random(7)
    calls = [given_to(gpu, "long", draw.choice(SIZES), model) for _ in range(40)]
    found = []
    for given in calls:
        torch.cuda.empty_cache()
        junk = [
            torch.full((draw.randint(1, 1 << 20),), float("nan"), device=gpu.device)
            for _ in range(20)
        ]
        found.append(leaves(fast(*given)))
        del junk
    assert all(same(leaves(fast(*given)), y) for given, y in zip(calls, found, strict=True))
    check(fast, model, calls, monkeypatch)


def test_calls_on_streams_in_turn_are_right(gpu):
    model = made(gpu, "towers", 128)
    fast = built(gpu, model, "towers", compiler="eager", clone_outputs=True)
    streams = [torch.cuda.Stream() for _ in range(3)]
    given = [given_to(gpu, "towers", n, model) for n in SIZES * 5]
    torch.cuda.synchronize()
    found = []
    for turn, args in enumerate(given):
        with torch.cuda.stream(streams[turn % 3]):
            found.append(fast(*args))
    torch.cuda.synchronize()
    for args, y in zip(given, found, strict=True):
        torch.testing.assert_close(y, model(*args), rtol=1e-3, atol=1e-3)


def test_sizes_share_executables_with_forks(gpu, monkeypatch):
    model = made(gpu, "gpt-j", 128)
    fast = built(gpu, model, "gpt-j", compiler="eager", graph_executables="shared")
    calls = [given_to(gpu, "gpt-j", SIZES[turn * 3 % len(SIZES)], model) for turn in range(40)]
    check(fast, model, calls, monkeypatch)


def test_padded_calls_and_sizes_captured_at_calls_are_right(gpu):
    torch.manual_seed(3)
    rowwise = Sides(128).eval().to(gpu.device)
    settings = {
        "dynamic": {0: {0: pw.Dim("rows", 1, 64)}},
        "splitting_ops": (),
        "capture_sizes": SIZES,
        "graph_mode": "full",
        "graph_streams": "two",
    }
    padded = gpu.compile(rowwise, padding="capture_sizes", **settings)
    late = made(gpu, "gpt-j", 128)
    fast = gpu.compile(late, **settings)
    for turn in range(40):
        x = gpu.randn(1 + turn * 5 % 64, 128)
        torch.testing.assert_close(padded(x), rowwise(x), rtol=1e-3, atol=1e-3)
        (x,) = given_to(gpu, "gpt-j", SIZES[turn % len(SIZES)], late)
        torch.testing.assert_close(fast(x), late(x), rtol=1e-3, atol=1e-3)
    assert padded.stats().calls["replayed"] == 40
    assert all(plan.forks for plan in (*plans(padded), *plans(fast)))


def test_auto_keeps_what_is_faster_and_leaves_state_and_numbers_alone(gpu):
    torch.manual_seed(3)
    model = Noting(128).eval().to(gpu.device)
    fast = built(gpu, model, "noting", compiler="eager", graph_streams="auto")
    assert not model.seen.any()
    assert not model.place.any()
    said = [line for line in str(fast.explain()).splitlines() if line.startswith("graph of")]
    assert len(said) == len(SIZES)
    assert all(" us on two, " in line for line in said)
    for plan, line in zip(plans(fast), said, strict=True):
        assert bool(plan.forks) == (": two streams for " in line), line
    total = torch.zeros_like(model.seen)
    for turn in range(40):
        (x,) = given_to(gpu, "noting", SIZES[turn % len(SIZES)], model)
        y = super(Noting, model).forward(x)
        total += y.mean(0)
        torch.testing.assert_close(fast(x), y + total, rtol=1e-3, atol=1e-3)
    assert int(model.place) == 40


def test_auto_leaves_the_generator_where_it_was(gpu):
    model = Drawing(128).eval().to(gpu.device)
    (x,) = given_to(gpu, "drawing", 24, model)
    before = torch.cuda.get_rng_state()
    fast = gpu.compile(
        model,
        dynamic={0: {0: pw.Dim("rows", 1, 64)}},
        splitting_ops=(),
        capture_sizes=SIZES,
        graph_mode="full",
        graph_streams="auto",
    )
    fast.warmup(x)
    assert torch.equal(before, torch.cuda.get_rng_state())
    assert not torch.equal(fast(x).clone(), fast(x))


def test_a_model_without_parallel_parts_is_as_it_was(gpu):
    model = Usual(128).eval().to(gpu.device)
    fast = built(gpu, model, "usual", compiler="eager")
    assert {plan.forks for plan in plans(fast)} == {0}
    (x,) = given_to(gpu, "usual", 24, model)
    torch.testing.assert_close(fast(x), model(x), rtol=1e-3, atol=1e-3)


@contextlib.contextmanager
def _failing(self):
    with _SIDE(self):
        yield
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError("this lane fails")


_SIDE = TwoStreams.side


@pytest.mark.parametrize("fault", ["lane", "join"])
def test_a_capture_that_fails_in_a_fork_is_made_on_one_stream(gpu, fault, monkeypatch):
    model = made(gpu, "towers", 128)
    x = given_to(gpu, "towers", 24, model)
    with monkeypatch.context() as patch:
        if fault == "lane":
            patch.setattr(TwoStreams, "side", _failing)
        else:
            patch.setattr(TwoStreams, "join", lambda self: None)
        failed = built(gpu, model, "towers", compiler="eager")
        assert [plan.forks for plan in plans(failed)] == [0] * len(SIZES)
        said = [line for line in str(failed.explain()).splitlines() if "as two failed" in line]
        assert len(said) == len(SIZES)
        torch.cuda.synchronize()
        torch.testing.assert_close(failed(*x), model(*x), rtol=1e-3, atol=1e-3)
    fast = built(gpu, model, "towers", compiler="eager")
    assert len(plans(fast)) == len(SIZES)
    for turn in range(20):
        x = given_to(gpu, "towers", SIZES[turn % len(SIZES)], model)
        torch.testing.assert_close(fast(*x), model(*x), rtol=1e-3, atol=1e-3)


def test_released_memory_goes_back_and_sizes_are_captured_again(gpu):
    model = made(gpu, "towers", 256)
    fast = built(gpu, model, "towers", compiler="eager")
    torch.cuda.synchronize()
    before = fast.stats().pool_bytes
    assert before
    fast.release()
    assert fast.stats().pool_bytes == 0
    fast.restore()
    for turn in range(12):
        x = given_to(gpu, "towers", SIZES[turn % len(SIZES)], model)
        torch.testing.assert_close(fast(*x), model(*x), rtol=1e-3, atol=1e-3)
    assert all(plan.forks for plan in plans(fast))


def test_estimate_counts_what_two_streams_take(gpu):
    model = made(gpu, "towers", 256)
    fast = built(gpu, model, "towers", compiler="eager", capture="lazy")
    found = fast.estimate()
    assert sum(one.bytes for one in found.sizes) > 0
