"""One model called on several streams: its replays share buffers, and wait for each other."""

from __future__ import annotations

import pytest
import torch

import piecewise_core as pw
from piecewise_core.testing import SimulatedPlatform

ROWS = {"x": {0: pw.Dim("rows", 1, 8)}}


class Waiting(SimulatedPlatform):
    """A device that tells of every replay and every wait, in order."""

    def __init__(self):
        super().__init__()
        self.seen = []
        made, wait = self.graphs.replayer, self.device.synchronize
        self.graphs.replayer = lambda graph: self._noted(made(graph))
        self.device.synchronize = lambda: (self.seen.append("wait"), wait())

    def _noted(self, replay):
        def run():
            self.seen.append("replay")
            replay()

        return run

    def served(self, fast, *args):
        """One call; what the device saw of it."""
        self.seen.clear()
        fast(*args)
        return list(self.seen)


def model(x):
    return torch.softmax(x * 2, -1) + 1


def compiled(platform, pool=None, **settings):
    config = pw.Config(
        dynamic=ROWS,
        splitting_ops=("torch.softmax",),
        compiler="eager",
        capture_sizes=(4, 8),
        **settings,
    )
    return pw.compile(model, config, platform=platform, pool=pool)


def recorded(platform, **settings):
    config = pw.Config(
        dynamic=ROWS, splitting_ops=("torch.softmax",), capture_sizes=(4, 8), **settings
    )
    return pw.record(model, config, platform=platform)


FORMS = {
    "pieces": compiled,
    "full": lambda platform: compiled(platform, graph_mode="full"),
    "padded": lambda platform: compiled(platform, padding="capture_sizes"),
    "copies": lambda platform: compiled(platform, clone_outputs=True),
    "pool": lambda platform: compiled(platform, pool=pw.Pool()),
    "limit": lambda platform: compiled(platform, memory_limit=1 << 30),
    "recorded": recorded,
}


@pytest.mark.parametrize("form", FORMS)
def test_a_replay_waits_for_the_one_before_it_on_another_stream(form):
    platform = Waiting()
    fast = FORMS[form](platform)
    x, y = torch.randn(3 if form == "padded" else 4, 5), torch.randn(8, 5)
    fast.warmup(x, progress=False)
    for _ in range(3):
        fast(x), fast(y)
    here, there = platform.device.new_stream(), platform.device.new_stream()
    with platform.device.stream(here):
        fast(x)  # waits for the warm-up
        assert "wait" not in platform.served(fast, x)
    with platform.device.stream(there):
        seen = platform.served(fast, y)
        assert seen[0] == "wait"
        assert seen[1:]
        assert set(seen[1:]) == {"replay"}
        assert "wait" not in platform.served(fast, x)
    with platform.device.stream(here):
        seen = platform.served(fast, y)
        assert seen[0] == "wait"
        assert seen[1:]
        assert set(seen[1:]) == {"replay"}
        torch.testing.assert_close(fast(x), model(x))


def test_models_of_one_pool_wait_for_each_other():
    platform, pool = Waiting(), pw.Pool()
    first, second = (compiled(platform, pool=pool) for _ in range(2))
    x = torch.randn(4, 5)
    for fast in (first, second):
        fast.warmup(x, progress=False)
        fast(x)
    with platform.device.stream(platform.device.new_stream()):
        assert platform.served(first, x)[0] == "wait"
    assert platform.served(second, x)[0] == "wait"
    assert "wait" not in platform.served(first, x)


def test_at_torch_compile_s_door():
    platform = Waiting()
    torch._dynamo.reset()
    options = {"platform": platform, "compiler": "eager"}
    fast = torch.compile(model, backend="piecewise", dynamic=False, options=options)
    x = torch.randn(4, 5)
    with torch.inference_mode():
        for _ in range(4):
            fast(x)
        assert "replay" in platform.seen
        with platform.device.stream(platform.device.new_stream()):
            assert platform.served(fast, x)[0] == "wait"
        assert platform.served(fast, x)[0] == "wait"
        assert "wait" not in platform.served(fast, x)
