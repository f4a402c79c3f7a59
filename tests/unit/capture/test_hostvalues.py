"""A device that keeps lengths in its graphs is told each call's own before it replays."""

from __future__ import annotations

import contextvars
import threading
from dataclasses import replace

import pytest
import torch

import piecewise_core as pw
from piecewise_core.building_blocks import host_values
from piecewise_core.capture.hostvalues import current_host_values
from piecewise_core.testing import SimulatedPlatform
from piecewise_core.testing.simulated.driver import SimulatedDriver
from piecewise_core.testing.simulated.recording import Operation


@torch.library.custom_op("piecewise_host::attend", mutates_args=())
def attend(x: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """Each row minus the mean of its sequence; rows behind the last sequence are 0."""
    out, start = torch.zeros_like(x), 0
    for length in lengths:
        rows = x[start : start + length]
        out[start : start + length] = rows - rows.mean(0)
        start += length
    return out


attend.register_fake(lambda x, lengths: torch.empty_like(x))


class LengthsDriver(SimulatedDriver):
    """As Ascend's graphs: attention keeps the lengths of its capture until it is updated."""

    def before_replay(self, graph, call):
        lengths, steps = call.host.get("lengths"), graph.recording.steps
        for place, step in enumerate(steps):
            if lengths and isinstance(step, Operation) and "attend" in str(step.function):
                steps[place] = replace(step, args=(step.args[0], list(lengths)))


class LengthsPlatform(SimulatedPlatform):
    def __init__(self):
        super().__init__()
        self.graphs = LengthsDriver(self.graphs._device)


def model(x):
    return torch.ops.piecewise_host.attend(x * 2, [8]) + 1


def expected(x, lengths):
    return attend(x * 2, lengths) + 1


def test_captured_attention_follows_the_lengths_that_each_call_brings():
    config = pw.Config(dynamic={"x": {0: pw.Dim("rows", 1, 8)}}, capture_sizes=(8,))
    fast = pw.compile(model, config, LengthsPlatform())
    with torch.inference_mode():
        fast.warmup(torch.randn(8, 4), progress=False)
        for lengths in ([8], [3, 5], [1, 1, 6], [8]):
            x = torch.randn(8, 4)
            with host_values(lengths=lengths):
                torch.testing.assert_close(fast(x), expected(x, lengths))
        assert fast.stats().calls["replayed"] == 4


def test_values_nest_add_up_and_end_with_their_block():
    with host_values(lengths=[1], slot=7):
        with host_values(lengths=[2]):
            assert dict(current_host_values()) == {"lengths": [2], "slot": 7}
        assert current_host_values()["lengths"] == [1]
        with pytest.raises(KeyError), host_values(slot=8):
            raise KeyError
        assert current_host_values()["slot"] == 7
        with pytest.raises(TypeError):
            current_host_values()["slot"] = 9
    assert not current_host_values()


def test_another_thread_has_values_of_its_own():
    seen = []
    with host_values(lengths=[1]):
        thread = threading.Thread(target=lambda: seen.append(dict(current_host_values())))
        thread.start()
        thread.join()
        copied = contextvars.copy_context()
    assert seen == [{}]
    assert copied.run(lambda: dict(current_host_values())) == {"lengths": [1]}
