"""FAULTS 51 to 53: whose the graphs' memory is: calls in calls, threads, outputs put back in."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

import piecewise_core as pw
from piecewise_core.errors import CaptureFailed
from piecewise_core.testing import SimulatedPlatform

LIBRARY = "faults_ownership"
INSIDE: dict[str, object] = {}


@torch.library.custom_op(f"{LIBRARY}::call", mutates_args=())
def call(x: torch.Tensor) -> torch.Tensor:
    """Do once what INSIDE says, in the middle of a forward."""
    inner = INSIDE.pop("do", None)
    return x * 2 if inner is None else inner(x).clone()


@call.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    torch.manual_seed(0)
    INSIDE.clear()
    with torch.inference_mode():
        yield


@pytest.fixture(params=["cpu", "simulated"])
def device(request):
    return SimulatedPlatform() if request.param == "simulated" else "cpu"


@pytest.fixture(params=["compile", "record"])
def made(request, device):
    """``made(fn, **config)``: a compiled or a recorded function with two capture sizes."""

    def make(fn, **changes):
        settings = {
            "dynamic": {"x": {0: pw.Dim("rows", min=1, max=16)}},
            "splitting_ops": (f"{LIBRARY}::call",),
            "capture_sizes": (4, 8),
            "capture_max": False,
            **changes,
        }
        if request.param == "record":
            return pw.record(fn, pw.Config(**settings), platform=device)
        return pw.compile(fn, pw.Config(compiler="eager", **settings), platform=device)

    return make


def elsewhere(fn):
    """``fn()`` in another thread, which is alive until the test ends."""
    found, done = [], threading.Event()

    def run():
        with torch.inference_mode():
            try:
                found.append(fn())
            except BaseException as error:
                found.append(error)
        done.set()

    threading.Thread(target=run, daemon=True).start()
    assert done.wait(60)
    return found[0]


def model(x):
    return torch.ops.faults_ownership.call(x + 1) + x


def warm(fast, *sizes):
    for size in sizes:
        for _ in range(2):
            fast(torch.ones(size, 2))


# 52: calls inside of calls -----------------------------------------------------------------


@pytest.mark.parametrize("size", [4, 8, 5])
def test_an_operator_that_calls_its_own_model_is_served_without_its_graphs(made, size):
    fast = made(model)
    warm(fast, 4, 8)
    replayed = fast.stats().calls["replayed"]
    INSIDE["do"] = lambda x: fast(torch.full((size, 2), 7.0)).mean() + torch.zeros_like(x)
    got = fast(torch.ones(4, 2))
    assert got.flatten().tolist() == [(7.0 + 1) * 2 + 7 + 1] * 8
    assert fast.stats().calls["replayed"] == replayed + 1
    assert fast(torch.ones(4, 2)).flatten().tolist() == [5.0] * 8  # and graphs go on


def test_a_first_call_of_a_capture_size_from_inside_of_a_replay_is_captured_later(made):
    fast = made(model)
    warm(fast, 4)
    captures = fast.stats().captures
    INSIDE["do"] = lambda x: fast(torch.full((8, 2), 7.0)).mean() + torch.zeros_like(x)
    assert fast(torch.ones(4, 2)).flatten().tolist() == [24.0] * 8
    assert fast.stats().captures == captures
    warm(fast, 8)
    assert fast.stats().captures > captures


@pytest.mark.parametrize("what", ["release", "warmup"])
def test_what_frees_or_captures_is_refused_inside_of_a_replay(made, what):
    fast = made(model)
    warm(fast, 4)
    extra = {"progress": False} if what == "warmup" else {}
    INSIDE["do"] = lambda x: (getattr(fast, what)(**extra), x)[1]
    with pytest.raises(CaptureFailed, match="between calls"):
        fast(torch.ones(4, 2))
    assert fast(torch.ones(4, 2)).flatten().tolist() == [5.0] * 8


def test_an_operator_that_fails_inside_of_a_replay_leaves_graphs_that_serve(made):
    fast = made(model)
    warm(fast, 4)
    INSIDE["do"] = lambda x: x.view(-1, 3)
    with pytest.raises(RuntimeError):
        fast(torch.ones(4, 2))
    before = fast.stats().calls["replayed"]
    assert fast(torch.ones(4, 2)).flatten().tolist() == [5.0] * 8
    assert fast.stats().calls["replayed"] == before + 1


# 53: other threads -------------------------------------------------------------------------


def sloped(x):
    return x.softmax(-1) * 3


def with_graphs(made, **changes):
    """A function whose size 4 is captured, and what this thread holds of its last call."""
    fast = made(sloped, splitting_ops=(), **changes)
    fast(torch.randn(5, 6))
    held = fast(torch.randn(4, 6))
    return fast, held, held.clone()


@pytest.mark.parametrize(
    "act",
    [
        lambda fast: fast(torch.randn(8, 6)),
        lambda fast: fast(torch.randn(4, 6)),
        lambda fast: fast.warmup(progress=False),
        lambda fast: fast.release(),
        lambda fast: fast.release().restore(),
        lambda fast: [fast.release(), fast.warmup(progress=False), fast(torch.randn(8, 6))],
    ],
    ids=["capture", "replay", "warmup", "release", "restore", "again"],
)
def test_what_a_thread_holds_stays_whatever_another_asks_for(made, act):
    fast, held, kept = with_graphs(made)
    result = elsewhere(lambda: act(fast))
    assert not isinstance(result, BaseException)
    torch.testing.assert_close(held, kept)
    for size in (4, 8):
        x = torch.randn(size, 6)
        torch.testing.assert_close(fast(x), sloped(x))


def test_memory_that_a_release_could_not_free_is_freed_when_the_thread_calls_again(device):
    rows = {"x": {0: pw.Dim("rows", min=1, max=16)}}
    config = pw.Config(dynamic=rows, capture_sizes=(4,), capture_max=False, compiler="eager")
    fast = pw.compile(sloped, config, platform=device)
    held = fast(torch.randn(4, 6))
    kept = held.clone()
    elsewhere(fast.release)
    memory = fast._pw_session.shared.memory
    assert memory.retired
    torch.testing.assert_close(held, kept)
    fast(torch.randn(4, 6))
    assert not memory.retired
    assert fast.restore().stats().captures == 2


def test_a_weight_replaced_under_another_thread_s_outputs_leaves_them_alone(device):
    linear = torch.nn.Linear(6, 6).eval()
    rows = {"input": {0: pw.Dim("rows", min=1, max=16)}}
    config = pw.Config(dynamic=rows, capture_sizes=(4,), capture_max=False, compiler="eager")
    fast = pw.compile(linear, config, platform=device)
    x = torch.randn(4, 6)
    held = fast(x)
    kept = held.clone()
    linear.weight = torch.nn.Parameter(torch.randn(6, 6), requires_grad=False)
    torch.testing.assert_close(elsewhere(lambda: fast(x)), linear(x))
    torch.testing.assert_close(held, kept)
    torch.testing.assert_close(fast(x), linear(x))


# 51: outputs put back in -------------------------------------------------------------------


def stepped(x):
    x.add_(1)
    return x.softmax(-1) * 3


@pytest.mark.parametrize("cut", ["whole", "rows", "other"])
@pytest.mark.parametrize("config", [{}, {"clone_outputs": True}, {"padding": "capture_sizes"}])
def test_a_result_put_back_as_the_input_that_is_written_is_right(made, cut, config):
    fast, x = made(stepped, splitting_ops=(), **config), torch.randn(8, 6)
    for size in (4, 8):
        fast(x[:size].clone()), fast(x[:size].clone())
    first, want = fast(x.clone()), stepped(x.clone())
    parts = {
        "whole": lambda t: t,
        "rows": lambda t: t[:4],
        "other": lambda t: t[2:7],
    }
    second = fast(parts[cut](first))
    torch.testing.assert_close(second, stepped(parts[cut](want)))
    torch.testing.assert_close(first, want)


def two(x, y):
    y.mul_(2)
    return x.sin() + y, x[1:] * 1


@pytest.mark.parametrize("written", [True, False])
def test_results_of_other_sizes_are_read_before_a_first_capture_overwrites_them(made, written):
    rows = pw.Dim("rows", min=1, max=16)
    fast = made(two, splitting_ops=(), dynamic={"x": {0: rows}, "y": {0: rows}})
    x, y, other = torch.randn(8, 3), torch.randn(8, 3), torch.randn(4, 3)

    def again(fn, result):
        part = result[0][2:6]
        return fn(other, part) if written else fn(part, other.clone())

    for _ in range(4):
        out, want = fast(x, y.clone()), two(x, y.clone())
        torch.testing.assert_close(out, want)
        torch.testing.assert_close(again(fast, out), again(two, want))


def turned(x, y):
    return x.t(), x * 2 + y, y[::2]


@pytest.mark.parametrize("config", [{}, {"padding": "capture_sizes"}])
def test_a_view_of_an_input_put_back_in_is_read_before_the_input_is_staged(made, config):
    rows = pw.Dim("rows", min=1, max=6)
    fast = made(
        turned,
        splitting_ops=(),
        dynamic={"x": {0: rows}, "y": {0: rows}},
        capture_sizes=(6,),
        **config,
    )
    x, y = torch.randn(6, 6), torch.randn(6, 6)
    for _ in range(2):
        fast(x, y)
    out, want = fast(x, y), turned(x, y)
    for _ in range(3):
        torch.testing.assert_close(out, want)
        out, want = fast(out[1], out[0]), turned(want[1], want[0])


def test_graphs_never_read_results_as_static_inputs(made):
    fast, x = made(sloped, splitting_ops=(), inputs="static"), torch.randn(8, 6)
    for _ in range(3):
        x.copy_(torch.randn(8, 6))
        out = fast(x)  # captured, and size 4 is not
        torch.testing.assert_close(fast(out[:4]), sloped(sloped(x)[:4]))
    assert fast.stats().captures == 1
    x.copy_(torch.randn(8, 6))
    torch.testing.assert_close(fast(x), sloped(x))


def test_a_weight_replaced_between_calls_does_not_free_what_the_next_call_reads(made):
    linear = torch.nn.Linear(6, 6).eval()
    fast = made(linear.forward, splitting_ops=(), dynamic={"input": {0: pw.Dim("rows", 1, 16)}})
    x = torch.randn(4, 6)
    for _ in range(2):
        out = fast(x)
    want = linear(x)
    linear.weight = torch.nn.Parameter(torch.randn(6, 6), requires_grad=False)
    torch.testing.assert_close(fast(out), linear(want))
    fast.restore()
    torch.testing.assert_close(fast(x), linear(x))


def test_what_another_thread_s_release_left_may_be_the_next_input(made):
    fast, held, kept = with_graphs(made)
    elsewhere(fast.release)
    torch.testing.assert_close(fast(held), sloped(kept))
    fast.restore()
    torch.testing.assert_close(fast(kept), sloped(kept))


def test_a_padded_call_that_is_compared_reads_its_input_before_that_is_overwritten(made):
    fast = made(sloped, splitting_ops=(), padding="capture_sizes")
    x = torch.randn(8, 6)
    for _ in range(2):
        out, want = fast(x), sloped(x)
    for rows in (7, 6, 5, 3, 2):
        torch.testing.assert_close(fast(out[:rows]), sloped(want[:rows]))
        out = fast(x)
