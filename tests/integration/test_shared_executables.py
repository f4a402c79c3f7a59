"""Graphs of several sizes that one executable launches: the same numbers, fewer executables."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import piecewise_core as pw
from piecewise_core.errors import ConfigError
from piecewise_core.testing import SimulatedPlatform

SIZES = (2, 4, 8)


class Block(nn.Module):
    def __init__(self, draws: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down, self.draws = nn.Linear(4, 8), nn.Linear(8, 4), draws

    def forward(self, x):
        y = self.down(torch.softmax(self.up(x), -1))
        return y + torch.rand_like(y) if self.draws else y


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


def made(platform=None, model=None, door=pw.compile, pool=None, warm=True, **config):
    settings = {
        "dynamic": {0: {0: pw.Dim("rows", min=1, max=8)}},
        "splitting_ops": ("torch.softmax",),
        "capture_sizes": SIZES,
        "compiler": "eager",
        "graph_executables": "shared",
        **config,
    }
    more = {} if pool is None else {"pool": pool}
    fast = door(model or Block(), pw.Config(**settings), platform or SimulatedPlatform(), **more)
    if warm:
        fast.warmup(torch.randn(8, 4))
    return fast


def served(fast, sizes=SIZES, model=None):
    """Whether calls of ``sizes``, in every order, are as the model's."""
    model = model or Block()
    for order in itertools.permutations(sizes):
        for rows in order:
            x = torch.randn(rows, 4)
            if not torch.equal(fast(x), model(x)):
                return False
    return True


@pytest.mark.parametrize("door", [pw.compile, pw.record])
@pytest.mark.parametrize(("mode", "cuts"), [("piecewise", ("torch.softmax",)), ("full", ())])
def test_sizes_in_every_order_are_as_the_model_and_share_executables(door, mode, cuts):
    fast = made(door=door, graph_mode=mode, splitting_ops=cuts)
    assert served(fast)
    stats = fast.stats()
    assert stats.calls["replayed"] == sum(stats.calls.values())
    assert stats.executables * len(SIZES) == stats.captures
    assert f"executables {stats.executables}" in str(fast.explain()) or door is pw.record


def test_padded_calls_and_sizes_captured_as_they_come_are_right():
    model, fast = Block(), made(padding="capture_sizes")
    lazy = made(padding="capture_sizes", warm=False)
    for rows in (3, 8, 1, 2, 5, 4, 3, 7, 1, 8):
        x = torch.randn(rows, 4)
        assert torch.allclose(fast(x), model(x), atol=1e-6)
        assert torch.allclose(lazy(x), model(x), atol=1e-6)
    assert lazy.stats().executables == fast.stats().executables == 2


def test_the_door_takes_the_setting():
    model, platform = Block(), SimulatedPlatform()
    options = {
        "platform": platform,
        "compiler": "eager",
        "splitting_ops": ("torch.softmax",),
        "capture_sizes": SIZES,
        "graph_executables": "shared",
    }
    fast = torch.compile(model, backend="piecewise", dynamic=True, options=options)
    for rows in (8, 4, 2) * 3:
        x = torch.randn(rows, 4)
        assert torch.equal(fast(x), model(x))
    pools = {id(g.pool): g.pool for g in platform.graphs._shared}
    assert [platform.graphs.executables(pool) for pool in pools.values()] == [1]
    assert sum(1 for g in platform.graphs._shared if g.recording is not None) == len(SIZES)


def test_graphs_have_executables_of_their_own_where_nobody_asked():
    fast = made(graph_executables="own")
    assert served(fast)
    assert fast.stats().executables == fast.stats().captures == 6


@pytest.mark.parametrize("door", [pw.compile, pw.record])
def test_a_program_that_draws_shares_nothing_and_draws_anew(door):
    fast = made(model=Block(draws=True), door=door)
    assert fast.stats().executables == fast.stats().captures
    for rows in (8, 2, 4, 2):
        x = torch.randn(rows, 4)
        assert not torch.equal(fast(x).clone(), fast(x))


def test_graphs_of_other_operators_have_executables_of_their_own():
    class Switched(Block):
        def forward(self, x):
            y = super().forward(x)
            return y.cos() if x.shape[0] > 4 else y.sin() + 1

    fast = made(model=Switched())
    assert served(fast, model=Switched())
    assert fast.stats().executables == 3  # two of the second pieces


def test_released_sizes_leave_the_others_and_come_again():
    fast = made()
    fast.release([8])
    assert served(fast, (4, 2))
    assert fast.stats().executables == 2
    fast.restore()
    assert served(fast)
    assert (fast.stats().executables, fast.stats().captures) == (2, 8)
    fast.release()
    assert fast.stats().executables == fast.stats().driver_bytes == 0
    fast.restore()
    assert served(fast)


def test_what_is_evicted_leaves_the_others():
    platform = SimulatedPlatform()
    most = made(platform).stats()
    fast = made(memory_limit=most.pool_bytes + most.driver_bytes - 1)
    assert served(fast)
    left = [sizes for sizes in SIZES if f"rows {sizes}" in "; ".join(fast.explain().captured)]
    assert left
    assert len(left) < len(SIZES)
    stats = fast.stats()
    assert stats.pool_bytes + stats.driver_bytes < most.pool_bytes + most.driver_bytes


@pytest.mark.parametrize("fails", [1, 2, 3, 4, 6])
def test_a_capture_that_fails_leaves_the_others(fails):
    fast = made(SimulatedPlatform(fail_capture_at=fails))
    assert served(fast)
    assert len(fast.explain().dropped) == 1
    assert fast.stats().executables == 2


def test_models_of_a_pool_share_none_with_one_another():
    platform, pool = SimulatedPlatform(), pw.Pool()
    one, other = made(platform, pool=pool), made(platform, pool=pool)
    for rows in (8, 2, 4):
        x = torch.randn(rows, 4)
        assert torch.equal(one(x), other(x))
    one.release()
    assert served(other)
    assert platform.graphs.executables(other._pw_session.shared.memory.pool) == 2


def test_what_is_estimated_is_what_is_taken():
    fast = made()
    stats, estimate = fast.stats(), fast.estimate(SIZES)
    assert (estimate.pool_bytes, estimate.driver_bytes) == (stats.pool_bytes, stats.driver_bytes)
    own = made(graph_executables="own").stats()
    assert 2 * stats.driver_bytes == own.driver_bytes


@pytest.mark.parametrize("door", [pw.compile, pw.record])
@pytest.mark.parametrize(
    ("shares", "config", "why"),
    [(False, {}, "offers no graph_like"), (True, {"ranks": None}, "looks for collectives")],
)
def test_where_nothing_is_shared_that_is_told_and_all_is_served(door, shares, config, why):
    fast = made(SimulatedPlatform(shares=shares), door=door, **config)
    assert served(fast)
    assert fast.stats().executables == fast.stats().captures
    (advice,) = fast.status().advice
    assert why in advice
    assert f"advice: {advice[:20]}" in str(fast.explain())
    quiet = made(SimulatedPlatform(shares=shares), door=door, graph_executables="own", **config)
    assert quiet.status().advice == ()


def test_another_word_is_refused():
    with pytest.raises(ConfigError, match="graph_executables"):
        pw.Config(graph_executables="both")
