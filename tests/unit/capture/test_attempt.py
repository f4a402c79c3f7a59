"""One capture: what it leaves behind, in success and in failure."""

from __future__ import annotations

import gc
from dataclasses import replace
from functools import partial

import pytest
import torch

from piecewise_core.capture.attempt import capture
from piecewise_core.capture.source import Source, beside
from piecewise_core.errors import CaptureFailed, OutOfGraphMemory
from piecewise_core.plugins import declared
from piecewise_core.testing import SimulatedPlatform


class Program:
    """``sin``, an operator, ``cos``; it adds one to ``state`` in its second piece."""

    def __init__(self, size=4, op=torch.neg, second=torch.cos):
        self.x = torch.randn(size)
        self.state = torch.zeros(size)
        self.op, self.second = op, second

    def source(self):
        def finish(t, state):
            state.add_(1)
            return (self.second(t) + state,)

        def build(recorder):
            first = recorder.piece("first piece", lambda t: (t.sin(),))
            op = recorder.op(self.op)
            last = recorder.piece("second piece", finish)

            def run(tensors, bound, *sizes):
                (a,) = first(tensors[0])
                return last(op(a), bound[0])

            return run

        def stage(tensors, sizes):
            self.x.copy_(tensors[0])

        return Source(build, (self.x,), (self.state,), (self.state,), stage)

    def take(self, platform, **options):
        stream = platform.device.new_stream()
        pool = platform.graphs.new_pool()
        with torch.inference_mode():
            return capture(declared(platform), pool, stream, self.source(), (4,), **options)


def test_graphs_are_made_like_those_of_the_last_plan_but_not_with_other_ranks():
    platform = SimulatedPlatform()
    first, last = Program().take(platform), Program().take(platform)
    source, plans = replace(Program().source(), like=()), {(1,): first, (2,): last}
    assert beside(source, plans, alone=True).like is last.graphs
    assert beside(source, {}, alone=True).like == ()
    assert beside(source, plans, alone=False).like is None
    assert beside(Program().source(), plans, alone=True).like is None


@pytest.mark.parametrize("whole", [False, True])
def test_a_plan_does_what_the_program_does(whole):
    program = Program()
    plan = program.take(SimulatedPlatform(), whole=whole)
    assert len(plan.graphs) == (1 if whole else 2)
    assert len(plan.steps) == (1 if whole else 3)
    for count in (1, 2, 3):
        x = torch.randn(4)
        with torch.inference_mode():
            plan.prepare([x], (4,))
            plan.replay()
        (out,) = plan.outputs
        torch.testing.assert_close(out, x.sin().neg().cos() + count)


def test_the_users_state_is_as_before():
    program = Program()
    program.take(SimulatedPlatform())
    assert torch.equal(program.state, torch.zeros(4))


@pytest.mark.parametrize("nth", [1, 2])
def test_a_failure_names_its_piece_and_leaves_nothing(nth):
    platform, program = SimulatedPlatform(fail_capture_at=nth), Program()
    stream = platform.device.current_stream()
    with pytest.raises(CaptureFailed, match=f"{['first', 'second'][nth - 1]} piece") as info:
        program.take(platform)
    assert "asked for" in str(info.value)
    assert torch.equal(program.state, torch.zeros(4))
    assert platform.device.current_stream() is stream
    assert not platform.graphs.is_capturing()
    assert platform.graphs.live_graphs == 0
    assert platform.device.memory_stats()["reserved_bytes"] == 0
    assert gc.isenabled()


def test_out_of_memory_has_a_class_of_its_own_and_says_how_much():
    with pytest.raises(OutOfGraphMemory, match=r"sizes \(4,\).*bytes wanted"):
        Program(size=1000).take(SimulatedPlatform(memory_bytes=1000))


def test_an_error_of_the_operator_is_explained_with_its_name():
    def broken(t):
        raise RuntimeError("no such thing")

    with pytest.raises(CaptureFailed, match="broken: RuntimeError: no such thing"):
        Program(op=broken).take(SimulatedPlatform())


def test_an_interrupt_is_not_turned_into_something_else():
    def stop(t):
        raise KeyboardInterrupt

    platform = SimulatedPlatform()
    with pytest.raises(KeyboardInterrupt):
        Program(second=stop).take(platform)
    assert not platform.graphs.is_capturing()
    assert platform.graphs.live_graphs == 0


def test_a_whole_capture_names_the_operator_that_failed():
    def broken(t):
        raise RuntimeError("no")

    with pytest.raises(CaptureFailed, match="at broken"):
        Program(op=broken).take(SimulatedPlatform(), whole=True)


def test_after_a_failure_the_device_is_waited_for_before_anything_is_put_back():
    events = []

    def broken(t):
        events.append("failed")
        raise RuntimeError("no")

    class State(torch.Tensor):
        def copy_(self, other):
            events.append("put back")
            return super().copy_(other)

    platform, program = SimulatedPlatform(), Program(op=broken)
    program.state = program.state.as_subclass(State)
    wait = platform.device.synchronize
    platform.device.synchronize = lambda: events.append("waited") or wait()
    with pytest.raises(CaptureFailed):
        program.take(platform)
    assert events == ["waited", "failed", "waited", "put back"]


def test_memory_that_runs_out_before_the_first_run_is_a_failed_capture_too():
    class Huge(torch.Tensor):
        def clone(self):
            raise torch.OutOfMemoryError("out of memory: no room for a copy")

    program = Program()
    program.state = program.state.as_subclass(Huge)
    with pytest.raises(OutOfGraphMemory, match="no room for a copy"):
        program.take(SimulatedPlatform())


def test_memory_that_runs_out_after_the_last_capture_leaves_nothing():
    platform = SimulatedPlatform()
    platform.graphs.weak_ref = lambda tensor: [][0]
    with pytest.raises(CaptureFailed, match="IndexError"):
        Program().take(platform)
    assert platform.graphs.live_graphs == 0
    assert platform.device.memory_stats()["reserved_bytes"] == 0


class OnDevice(torch.Tensor):
    """Says that it is on another device than it is."""

    @property
    def device(self):
        return torch.device("cuda", 1)


@pytest.mark.parametrize("stream_on", [torch.device("cuda", 0), torch.device("cpu")])
def test_tensors_on_another_device_than_the_stream_are_refused(stream_on):
    platform, program = SimulatedPlatform(), Program()
    stream = platform.device.new_stream()
    stream.device = stream_on
    pool = platform.graphs.new_pool()
    take = partial(capture, declared(platform), pool, stream, sizes=(4,))
    assert len(take(program.source()).graphs) == 2
    program.x = program.x.as_subclass(OnDevice)
    if stream_on.type == "cuda":
        with pytest.raises(CaptureFailed, match=r"cuda:1.*captured on cuda:0.*set_device\(1\)"):
            take(program.source())


def test_random_state_is_put_back():
    program = Program(second=torch.rand_like)
    state = torch.get_rng_state()
    program.take(SimulatedPlatform())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_driver_without_graphs_says_so():
    platform = SimulatedPlatform()
    driver, platform.graphs = platform.graphs, None
    with pytest.raises(CaptureFailed, match="graph_mode"):
        capture(declared(platform), driver.new_pool(), None, Program().source(), (4,))
