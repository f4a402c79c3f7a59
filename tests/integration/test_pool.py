"""Models that share one pool and one budget: ``pw.Pool``."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import threading
import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import piecewise_core as pw
from piecewise_core.errors import ConfigError, PiecewiseError
from piecewise_core.testing import SimulatedPlatform
from piecewise_cpu.platform import CpuPlatform

N = pw.Dim("n", 0, 16)
SIZES = (1, 4, 8)
MAKE = {"compiled": pw.compile, "recorded": pw.record}


@torch.library.custom_op("pwpool::calls", mutates_args=())
def calls(x: torch.Tensor) -> torch.Tensor:
    for call in CALLED:
        call()
    return x + 1


@calls.register_fake
def _(x):
    return torch.empty_like(x)


CALLED: list = []
"""What the operator above calls, from inside of a forward."""


class Block(nn.Module):
    """``width`` columns; a cut in the middle."""

    def __init__(self, width: int = 8, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.inner = nn.Linear(width, 4 * width, dtype=dtype)
        self.outer = nn.Linear(4 * width, width, dtype=dtype)

    def forward(self, x):
        return self.outer(torch.softmax(self.inner(x).sin(), -1)) * 2


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield
    CALLED.clear()


def settings(**changes):
    wanted = {
        "dynamic": {"x": {0: N}},
        "splitting_ops": ("torch.softmax",),
        "capture_sizes": SIZES,
        "capture_max": False,
        **changes,
    }
    return pw.Config(**wanted)


def made(pool, platform, *, front="compiled", width=8, dtype=torch.float32, fn=None, **changes):
    config = settings(**({"compiler": "eager"} if front == "compiled" else {}) | changes)
    model = Block(width, dtype) if fn is None else fn
    fast = MAKE[front](model, config, platform=platform, pool=pool)
    fast.warmup(torch.zeros(2, width, dtype=dtype), progress=False)
    return fast, model


def replayed(fast):
    return fast.stats().calls["replayed"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "fronts", [("compiled",) * 2, ("recorded",) * 2, ("compiled", "recorded")], ids="-".join
)
def test_results_of_one_model_outlive_replays_and_captures_of_another(fronts, dtype):
    pool, platform = pw.Pool(), SimulatedPlatform()
    a, as_written_a = made(pool, platform, front=fronts[0], dtype=dtype)
    x = torch.randn(4, 8, dtype=dtype)
    kept = a(x)
    b, as_written_b = made(pool, platform, front=fronts[1], dtype=dtype)  # captures beside ``kept``
    torch.testing.assert_close(kept, as_written_a(x))
    results = [
        (model(y), written, y)
        for y in (x, x[:1], torch.randn(8, 8, dtype=dtype))
        for model, written in ((a, as_written_a), (b, as_written_b))
    ]
    for got, written, y in results:
        torch.testing.assert_close(got, written(y))
    torch.testing.assert_close(a(b(x)), as_written_a(as_written_b(x)))  # chained
    assert a(torch.zeros(0, 8, dtype=dtype)).shape == (0, 8)
    assert replayed(a) == 5
    assert replayed(b) == 4


def test_a_pool_takes_less_than_two_and_is_counted_once():
    alone, shared = SimulatedPlatform(), SimulatedPlatform()
    apart = [made(None, alone)[0] for _ in range(2)]
    before = pw.counters.pool_bytes
    pool = pw.Pool()
    together = [made(pool, shared)[0] for _ in range(2)]
    held = pool.stats().pool_bytes
    assert 0 < held < sum(fast.stats().pool_bytes for fast in apart)
    assert held == shared.device.memory_stats()["reserved_bytes"]
    assert [fast.stats().pool_bytes for fast in together] == [0, 0]
    assert pw.counters.pool_bytes - before == held
    assert [fast.stats().captures for fast in together] == [6, 6]
    status = pool.status()
    assert (status.graphs, status.sizes, status.pool_bytes) == (12, 6, held)
    assert status.models == ("Block", "Block")
    assert "12 graphs of 6 sizes" in str(status)
    assert together[0].histogram().graph_bytes == together[1].histogram().graph_bytes
    report = together[1].warmup(progress=False)
    assert report.graph_bytes == held + pool.stats().driver_bytes
    assert together[0].estimate().bytes > 0
    assert pool.stats().pool_bytes == held


@pytest.mark.parametrize("front", MAKE)
def test_one_model_sleeps_while_the_other_serves(front):
    pool, platform = pw.Pool(), SimulatedPlatform()
    (a, written), (b, _) = made(pool, platform, front=front), made(pool, platform, width=16)
    x, wide = torch.randn(4, 8), torch.randn(4, 16)
    full = pool.status()
    kept = b(wide)
    before = kept.clone()
    b.release()
    asleep = pool.status()
    assert asleep.driver_bytes < full.driver_bytes
    assert asleep.sizes == 3
    torch.testing.assert_close(a(x), written(x))
    assert (replayed(a), replayed(b)) == (1, 1)
    b(wide)
    assert replayed(b) == 1
    b.restore()
    torch.testing.assert_close(b(wide), before)
    torch.testing.assert_close(kept, before)
    assert replayed(b) == 2
    assert pool.status().sizes == 6
    assert pool.status().pool_bytes <= full.pool_bytes  # what was freed serves again
    a.release()
    b.release()
    assert pool.status().pool_bytes == 0 == platform.device.memory_stats()["reserved_bytes"]
    a.restore()
    torch.testing.assert_close(a(x), written(x))
    assert replayed(a) == 2


@pytest.mark.parametrize("own", [False, True], ids=["the pool's", "a model's"])
def test_the_smaller_limit_counts_and_the_least_used_size_goes_whosever_it_is(own):
    platform = SimulatedPlatform()
    pool = pw.Pool()
    made(pool, platform)
    room = pool.status().pool_bytes + pool.status().driver_bytes
    limits = (None, room + 1) if own else (room + 1, 1 << 40)
    pool, platform = pw.Pool(limits[0]), SimulatedPlatform()
    a, written = made(pool, platform)
    assert a.status().of("failed") == ()
    x = torch.randn(4, 8)
    a(x)
    b, other = made(pool, platform, dtype=torch.float64, memory_limit=limits[1])
    status = pool.status()
    assert status.memory_limit == room + 1
    assert status.pool_bytes + status.driver_bytes <= room + 1
    gone = a.status().of("failed") + b.status().of("failed")
    assert gone
    assert all("memory_limit" in row.reason for row in gone)
    for y in (x, x[:1], torch.randn(8, 8)):
        torch.testing.assert_close(a(y), written(y))
        torch.testing.assert_close(b(y.double()), other(y.double()))


def test_a_smaller_limit_counts_as_soon_as_its_model_is_there_and_not_when_it_is_gone():
    pool, platform = pw.Pool(1 << 30), SimulatedPlatform()
    a, _ = made(pool, platform)
    b, _ = made(pool, platform, memory_limit=1)
    assert pool.status().pool_bytes == 0
    assert pool.status().memory_limit == 1
    assert len(a.status().of("failed")) == len(SIZES)
    del b
    gc.collect()
    made(pool, platform)
    assert pool.status().memory_limit == 1 << 30


@pytest.mark.parametrize("front", MAKE)
def test_a_model_that_is_let_go_gives_its_graphs_and_weights_back(front):
    pool, platform = pw.Pool(), SimulatedPlatform()
    a, written = made(pool, platform, front=front)
    only = pool.status()
    b, wide = made(pool, platform, front=front, width=64)
    weight = weakref.ref(wide.inner.weight)
    b(torch.randn(4, 64))
    assert pool.stats().driver_bytes > only.driver_bytes
    del b, wide
    gc.collect()
    assert pool.stats().driver_bytes == only.driver_bytes  # with no call in between
    assert pool.status().sizes == 3
    assert weight() is None
    both = pool.status().pool_bytes
    made(pool, platform, front=front, width=64)
    assert pool.status().pool_bytes <= both  # what was freed serves again
    gc.collect()
    x = torch.randn(4, 8)
    torch.testing.assert_close(a(x), written(x))
    del a
    gc.collect()
    assert platform.device.memory_stats()["reserved_bytes"] == 0


def test_a_model_that_goes_in_the_middle_of_a_call_is_freed_behind_it():
    pool, platform = pw.Pool(), SimulatedPlatform()
    left = [made(pool, platform, width=64)]

    def fn(x):
        return torch.ops.pwpool.calls(x.sin()).cos()

    a, _ = made(pool, platform, fn=fn, splitting_ops=("pwpool::calls",))
    x = torch.randn(4, 8)
    CALLED.append(left.clear)
    CALLED.append(gc.collect)
    torch.testing.assert_close(a(x), (x.sin() + 1).cos())
    CALLED.clear()
    assert len(pool.status().models) == 1
    assert pool.status().sizes == 3
    torch.testing.assert_close(a(x), (x.sin() + 1).cos())
    assert replayed(a) == 2


def test_a_model_called_from_inside_of_another_one_s_replay_runs_without_graphs():
    pool, platform = pw.Pool(), SimulatedPlatform()
    b, written = made(pool, platform)
    x, got = torch.randn(4, 8), []

    def fn(x):
        return torch.ops.pwpool.calls(x.sin()).cos()

    a, _ = made(pool, platform, fn=fn, splitting_ops=("pwpool::calls",))
    CALLED.append(lambda: got.append(b(x)))
    torch.testing.assert_close(a(x), (x.sin() + 1).cos())
    torch.testing.assert_close(got[0], written(x))
    assert (replayed(a), replayed(b)) == (1, 0)


@pytest.mark.parametrize("front", MAKE)
def test_threads_that_call_one_model_each_never_read_each_other_s_results(front):
    pool, platform = pw.Pool(), SimulatedPlatform()
    pairs = [made(pool, platform, front=front) for _ in range(3)]
    barrier, wrong = threading.Barrier(len(pairs)), []

    def serve(fast, written, seed):
        with torch.inference_mode():
            given = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))
            expected = written(given)
            barrier.wait()
            kept = [fast(given) for _ in range(30)]
            wrong.extend(k for k in kept if not torch.allclose(k, expected))

    threads = [
        threading.Thread(target=serve, args=(*pair, seed)) for seed, pair in enumerate(pairs)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert [replayed(fast) for fast, _ in pairs] == [30] * 3


def test_another_platform_is_refused_by_name():
    pool = pw.Pool()
    made(pool, SimulatedPlatform())
    with pytest.raises(ConfigError, match=r"another object of platform 'simulated'.*a pw.Pool for"):
        made(pool, SimulatedPlatform())
    with pytest.raises(ConfigError, match=r"platform 'simulated'.*of platform 'cpu'"):
        pw.compile(Block(), settings(), platform="cpu", pool=pool)
    with pytest.raises(ConfigError, match=r"platform 'simulated'.*of platform 'cpu'"):
        pw.record(Block(), settings(), platform=CpuPlatform(), pool=pool)
    assert pool.status().platform == "simulated"


def test_bad_input_is_named():
    with pytest.raises(ConfigError, match=r"Pool.memory_limit: 0 bytes"):
        pw.Pool(0)
    with pytest.raises(ConfigError, match=r"Pool.memory_limit"):
        pw.Pool("2GB")
    for make in MAKE.values():
        with pytest.raises(ConfigError, match=r"pool: int is no pool; make one by pw.Pool\(\)"):
            make(Block(), settings(), pool=1 << 30)
    for copied in (pickle.dumps, copy.deepcopy):
        with pytest.raises(PiecewiseError, match="cannot be copied or pickled"):
            copied(pw.Pool())


def test_a_copy_of_a_model_is_in_the_same_pool():
    pool, platform = pw.Pool(), SimulatedPlatform()
    fast, _ = made(pool, platform)
    another = copy.deepcopy(fast)
    another.warmup(torch.zeros(2, 8), progress=False)
    assert pool.status().models == ("Block", "Block")
    assert pool.status().sizes == 6


def test_models_of_one_name_share_the_cpu_s_static_plans(tmp_path):
    pool = pw.Pool()
    pairs = [made(pool, "cpu", compiler=None, cache_dir=tmp_path) for _ in range(2)]
    x = torch.randn(4, 8)
    kept = [(fast(x), written(x)) for fast, written in pairs * 2]
    for got, expected in kept:
        torch.testing.assert_close(got, expected)
    assert [replayed(fast) for fast, _ in pairs] == [2, 2]
    assert pool.status().platform == "cpu"
    assert pool.status().sizes == 6
    pairs[0][0].save(tmp_path / "model.pwb")
    loaded = pw.load(tmp_path / "model.pwb", pairs[0][1], pool=pool)
    torch.testing.assert_close(loaded(x), kept[0][1])
    assert len(pool.status().models) == 3
    assert replayed(loaded) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("front", MAKE)
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_serves_its_pool(front):
    pool, platform = pw.Pool(), SimulatedPlatform()
    pairs = [made(pool, platform, front=front) for _ in range(2)]
    x = torch.randn(4, 8)
    stands, go = threading.Event(), threading.Event()

    def hold():
        with pool.lock:
            stands.set()
            go.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    stands.wait(60)
    child = os.fork()
    if child == 0:
        with torch.inference_mode():
            good = all(torch.allclose(fast(x), model(x)) for fast, model in pairs * 2)
            good &= all(replayed(fast) == 2 for fast, _ in pairs) and pool.status().sizes == 2
        os._exit(0 if good else 1)
    go.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert torch.allclose(pairs[0][0](x), pairs[0][1](x))
