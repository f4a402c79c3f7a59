"""What replays do whoever supplies the program: capture, seal, evict, release, pad, write back."""

from __future__ import annotations

import pytest
import torch

import piecewise_core as pw
from piecewise_core.capture.graphmemory import graph_memory
from piecewise_core.capture.recorder import Recorder
from piecewise_core.counters import Counters
from piecewise_core.graph.binder import Binder
from piecewise_core.graph.describe import describe_call
from piecewise_core.plugins import declared
from piecewise_core.replay.replayable import Alone, Facts, Recording
from piecewise_core.replay.replays import Replays
from piecewise_core.testing import SimulatedPlatform

ROWS = pw.Dim("rows", min=1, max=8)


class Padded:
    checked = 2

    def __init__(self, program):
        self.proved = 0
        self.program, self.refused, self.asks = program, [], False

    def allows(self, sizes):
        return not self.refused

    def learns(self, sizes):
        return False

    def alone(self, t, b, sizes, args, kwargs):
        self.proved += 1
        return Alone([self.program.work(t[0])], comparable=True, wild=True)

    def made_at(self, place):
        return f"model.py:{place}"

    def refuse(self, sizes, why):
        self.refused.append(why)
        self.asks = True

    def cut(self, outputs, sizes):
        return [outputs[0][: sizes[0]]], lambda o, t, b: o[0]


class Program:
    """One piece: ``work`` of one tensor."""

    graphs_per_size = 1

    def __init__(self, work, mutated=(), *, pads=False):
        self.work, self.mutated, self.tried = work, mutated, 0
        self.pads = Padded(self) if pads else None

    def recording(self, captured, inputs, bound):
        def build(recorder: Recorder):
            piece = recorder.piece("the piece", lambda x: (self.work(x),))
            return lambda t, b, *sizes: piece(t[0])

        return Recording(build)

    def facts(self, captured):
        return Facts(lambda o, t, b: o[0], False, self.mutated)

    def captured(self):
        self.tried += 1

    def padded(self, captured, outputs):
        return self.pads


class Door:
    """Sends every call to the one entry."""

    def __init__(self, program, **config):
        self.config = pw.Config(dynamic={"x": {0: ROWS}}, capture_sizes=(4, 8), **config)
        self.counters = Counters()
        self.replays = Replays(
            graph_memory(declared(SimulatedPlatform()), self.config, self.counters),
            self.config,
            self.counters,
        )
        fn = lambda x: program.work(x)  # noqa: E731
        self.binder = Binder(describe_call(fn, (torch.ones(2, 3),), {}, self.config))
        self.replays.begin(self.binder)
        self.program, self.plain = program, 0
        self.reset()

    def reset(self):
        self.entry = self.replays.pending(self.program, (4,), self.otherwise, self.put)

    def otherwise(self, t, b, sizes, args, kwargs):
        self.plain += 1
        return self.program.work(t[0])

    def put(self, sizes, entry):
        self.entry = entry

    def __call__(self, x):
        tensors, sizes = self.binder.bind(x)
        return self.entry(tensors, (), sizes, (x,), {})


@torch.inference_mode()
def test_the_first_call_captures_and_the_next_replay():
    door = Door(Program(lambda x: x * 2))
    for turn in (1.0, 2.0, 3.0):
        torch.testing.assert_close(door(torch.full((4, 3), turn)), torch.full((4, 3), turn * 2))
    assert (door.program.tried, door.plain, door.counters.calls["replayed"]) == (1, 0, 3)


@torch.inference_mode()
def test_a_lazy_capture_is_at_the_second_call_of_its_size_and_warmup_does_not_wait():
    door = Door(Program(lambda x: x * 2), capture="lazy")
    for turn in (1.0, 2.0, 3.0):
        torch.testing.assert_close(door(torch.full((4, 3), turn)), torch.full((4, 3), turn * 2))
    assert (door.program.tried, door.plain, door.counters.calls["replayed"]) == (1, 1, 2)
    warm = Door(Program(lambda x: x * 2), capture="lazy")
    assert warm.replays.capture_all([(warm.program, (4,))], ()) == [(4,)]
    warm(torch.ones(4, 3))
    assert (warm.plain, warm.counters.calls["replayed"]) == (0, 1)


@torch.inference_mode()
def test_writes_go_back_to_the_caller_once_a_call():
    door, x = Door(Program(lambda x: x.add_(1), mutated=(0,))), torch.zeros(4, 3)
    for turn in (1.0, 2.0, 3.0):
        door(x)
        torch.testing.assert_close(x, torch.full((4, 3), turn))


@torch.inference_mode()
def test_what_is_not_captured_before_a_seal_is_refused_at_calls_and_in_warmup():
    door = Door(Program(lambda x: x * 2))
    door.replays.sealed = "error"
    with pytest.raises(pw.errors.Sealed, match=r"sizes \(4,\) would be captured after seal"):
        door(torch.ones(4, 3))
    with pytest.raises(pw.errors.Sealed):
        door.replays.capture_all([(door.program, (4,))], ())


@torch.inference_mode()
def test_what_was_released_is_captured_again_whatever_the_seal():
    door = Door(Program(lambda x: x * 2))
    door(torch.ones(4, 3))
    door.replays.sealed = "error"
    assert door.replays.release() == [(4,)]
    door.reset()
    door(torch.ones(4, 3))
    assert door.plain == 1
    door.replays.released = False
    assert door.replays.capture_all([(door.program, (4,))], ()) == [(4,)]


@torch.inference_mode()
def test_an_evicted_size_is_served_without_graphs():
    door = Door(Program(lambda x: x * 2), memory_limit=1)
    for _ in range(2):
        torch.testing.assert_close(door(torch.ones(4, 3)), torch.full((4, 3), 2.0))
    assert door.plain == 2
    assert "evicted" in door.replays.dropped()[0]


@torch.inference_mode()
def test_the_first_padded_calls_are_proved_once_each_and_all_are_cut():
    door = Door(Program(lambda x: x * 2, pads=True), padding="capture_sizes")
    for turn in range(4):
        torch.testing.assert_close(door(torch.ones(3, 3)), torch.full((3, 3), 2.0))
        assert door.program.pads.proved == min(turn + 1, Padded.checked)
    assert door.counters.stats().padded_rows == 4


@torch.inference_mode()
def test_a_padded_call_whose_rows_are_mixed_is_served_without_padding():
    door = Door(Program(lambda x: x + x.sum(), pads=True), padding="capture_sizes")
    for _ in range(2):
        torch.testing.assert_close(door(torch.ones(3, 3)), torch.full((3, 3), 10.0))
    assert door.plain == 2
    assert "without padding from now on" in door.program.pads.refused[0]


@torch.inference_mode()
@pytest.mark.parametrize("front", [pw.compile, pw.record])
def test_both_front_ends_refuse_a_warmup_that_would_capture_after_a_seal(front):
    config = pw.Config(dynamic={"x": {0: ROWS}}, capture_sizes=(4, 8), compiler="eager")
    fast = front(lambda x: x * 2, config, platform=SimulatedPlatform())
    fast(torch.ones(4, 3))
    fast.seal()
    with pytest.raises(pw.errors.Sealed, match=r"sizes \(8,\) would be captured after seal"):
        fast.warmup(torch.ones(4, 3), progress=False)
    torch.testing.assert_close(fast(torch.ones(4, 3)), torch.full((4, 3), 2.0))
