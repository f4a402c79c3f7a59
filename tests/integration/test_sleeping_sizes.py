"""Captured sizes that sleep and wake by themselves: release(sizes), restore(sizes, lazy)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

import piecewise_core as pw
from piecewise_core.errors import ConfigError
from piecewise_core.testing import SimulatedPlatform

N = pw.Dim("n", 1, 16)
SIZES = (1, 4, 8)
FRONTS = {"compiled": pw.compile, "recorded": pw.record}


class Block(nn.Module):
    def __init__(self, dtype=torch.float32) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8, dtype=dtype)
        self.register_buffer("seen", torch.zeros(8, dtype=dtype))

    def forward(self, x):
        return torch.softmax(self.inner(x).sin(), -1) * 2


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def made(front, *, platform=None, dtype=torch.float32, pool=None, model=None, **changes):
    wanted = {
        "dynamic": {"x": {0: N}},
        "splitting_ops": ("torch.softmax",),
        "capture_sizes": SIZES,
        "capture_max": False,
        **({"compiler": "eager"} if front == "compiled" else {}),
        **changes,
    }
    model = model or Block(dtype)
    make, platform = FRONTS[front], platform or SimulatedPlatform()
    fast = make(model, pw.Config(**wanted), platform=platform, pool=pool)
    fast.warmup(torch.zeros(2, 8, dtype=dtype), progress=False)
    return fast, model


def served(fast, model, rows, dtype=torch.float32):
    """By replay or not; its numbers are the model's."""
    before = fast.stats().calls["replayed"]
    x = torch.randn(rows, 8, dtype=dtype)
    torch.testing.assert_close(fast(x), model(x))
    return fast.stats().calls["replayed"] > before


def states(fast):
    return {t.sizes: t.state for t in fast.status().targets if t.kind == "replayed"}


front = pytest.mark.parametrize("front", FRONTS)


@front
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_size_sleeps_and_wakes_while_others_replay(front, dtype):
    fast, model = made(front, dtype=dtype)
    captures = fast.stats().captures
    driver = fast.stats().driver_bytes
    assert fast.release(sizes=[4]) is fast
    assert [served(fast, model, rows, dtype) for rows in SIZES] == [True, False, True]
    assert states(fast) == {"n 1": "ready", "n 4": "pending", "n 8": "ready"}
    assert fast.stats().driver_bytes < driver
    assert fast.status().ready
    fast.release(sizes=[4])  # sleeps already
    assert fast.restore(sizes=[4]) is fast
    assert [served(fast, model, rows, dtype) for rows in SIZES] == [True] * 3
    assert (fast.stats().driver_bytes, fast.status().ready) == (driver, True)
    assert fast.stats().captures == captures + 2


@front
def test_of_all_that_sleep_one_is_woken(front):
    fast, model = made(front)
    fast.release()
    fast.restore([1, 8])
    assert [served(fast, model, rows) for rows in SIZES] == [True, False, True]
    fast.restore()
    assert [served(fast, model, rows) for rows in SIZES] == [True] * 3


@front
@pytest.mark.parametrize("sizes", [None, [8]])
def test_a_lazy_restore_captures_at_the_next_call(front, sizes):
    fast, model = made(front)
    fast.seal()
    fast.release(sizes)
    captures = fast.stats().captures
    fast.restore(sizes, lazy=True)
    assert fast.stats().captures == captures
    assert not fast.status().ready
    assert states(fast)["n 8"] == "pending"
    assert served(fast, model, 8)
    assert fast.stats().captures == captures + 2
    assert fast.status().ready is (sizes is not None)
    assert [served(fast, model, rows) for rows in SIZES] == [True] * 3
    assert fast.status().ready


@front
def test_calls_of_a_sleeping_size_are_padded_to_the_next_one_awake(front):
    fast, model = made(front, padding="capture_sizes", max_padding_factor=None)
    for rows in (3, 7, 3, 7):
        served(fast, model, rows)
    fast.release([4])
    served(fast, model, 3)  # recorded functions look at the first padded call
    served(fast, model, 4)
    assert served(fast, model, 3)
    assert served(fast, model, 4)
    fast.release([8])
    assert not served(fast, model, 3)
    assert not served(fast, model, 8)
    fast.restore([4])
    served(fast, model, 3)
    assert served(fast, model, 3)
    assert not served(fast, model, 7)


@front
def test_events_tell_what_sleeps_and_what_is_captured_again(front):
    events: list[pw.Event] = []
    fast, _ = made(front, on_event=events.append)
    events.clear()
    fast.release([4])
    fast.restore([4])
    assert [(e.kind, e.sizes) for e in events] == [("released", "(4,)"), ("captured", "(4,)")]


@front
def test_weights_replaced_while_some_sleep_are_those_of_later_replays(front):
    fast, model = made(front)
    fast.release([4])
    model.inner.weight = nn.Parameter(torch.randn(8, 8), requires_grad=False)
    assert not served(fast, model, 8)
    fast.restore([4])
    assert [served(fast, model, rows) for rows in SIZES] == [False, True, False]
    fast.restore()
    assert [served(fast, model, rows) for rows in SIZES] == [True] * 3


@front
def test_a_retrace_and_a_warm_up_wake_all(front):
    fast, model = made(front)
    fast.release([4])
    fast.warmup(progress=False)
    assert served(fast, model, 4)
    fast.release()
    fast.warmup(progress=False)
    assert served(fast, model, 4)
    fast.retrace()
    served(fast, model, 4)
    assert served(fast, model, 4)


@front
def test_inputs_that_never_move_are_captured_again_at_the_next_call(front):
    fast, model = made(front, inputs="static")
    x = torch.randn(4, 8)
    fast(x)
    fast.release([4])
    before = fast.stats().calls["replayed"]
    fast(x)
    assert fast.stats().calls["replayed"] == before
    fast.restore([4])
    torch.testing.assert_close(fast(x), model(x))
    assert fast.stats().calls["replayed"] == before + 1


@front
def test_room_that_sleeping_sizes_make_counts(front):
    platform = SimulatedPlatform()
    fast, _ = made(front, platform=platform)
    limit = fast.stats().pool_bytes + fast.stats().driver_bytes
    fast, model = made(front, memory_limit=limit)
    fast.release([1, 4])
    fast.restore([1, 4])
    assert [served(fast, model, rows) for rows in SIZES] == [True] * 3
    assert fast.stats().pool_bytes + fast.stats().driver_bytes <= limit


def test_a_pool_puts_all_its_models_to_sleep_and_wakes_them():
    pool, platform = pw.Pool(), SimulatedPlatform()
    pairs = [made(front, platform=platform, pool=pool) for front in FRONTS]
    pool.release()
    assert pool.status().pool_bytes == 0 == pool.status().sizes
    assert [served(*pair, 4) for pair in pairs] == [False, False]
    pool.restore(lazy=True)
    assert pool.status().sizes == 0
    assert [served(*pair, 4) for pair in pairs] == [True, True]
    assert pool.status().sizes == 2
    pool.restore()
    assert pool.status().sizes == 6
    pairs[0][0].release([8])
    assert pool.status().sizes == 5


@front
@pytest.mark.parametrize("method", ["release", "restore"])
@pytest.mark.parametrize("sizes", [[3], 4, "4", [True], [(4, 4)], [4, 32], [None]])
def test_what_is_no_capture_size_is_named(front, method, sizes):
    fast, model = made(front)
    with pytest.raises(ConfigError, match=rf"{method}\(sizes="):
        getattr(fast, method)(sizes)
    assert served(fast, model, 4)


def test_two_dims_are_named_by_tuples():
    def fn(x):
        return torch.softmax(x.sin(), -1) * 2

    config = pw.Config(
        dynamic={"x": {0: N, 1: pw.Dim("m", 1, 16)}},
        splitting_ops=("torch.softmax",),
        capture_sizes=((2, 4), (8, 8)),
        capture_max=False,
        compiler="eager",
    )
    fast = pw.compile(fn, config, platform=SimulatedPlatform())
    fast.warmup(torch.randn(2, 4), progress=False)
    fast.release([(8, 8)])
    for shape, replays in (((2, 4), 1), ((8, 8), 1)):
        x = torch.randn(shape)
        torch.testing.assert_close(fast(x), fn(x))
        assert fast.stats().calls["replayed"] == replays
    with pytest.raises(ConfigError, match=r"8 is no capture size; they are \(2, 4\), \(8, 8\)"):
        fast.restore([8])
