"""A plan run twice becomes steps: which, in what order, into what memory."""

from __future__ import annotations

import pytest
import torch

from piecewise_core.capture.recorder import Recorder
from piecewise_core.capture.whole import WholeRecorder
from piecewise_core.errors import CaptureFailed
from piecewise_core.plugins import declared
from piecewise_core.testing import SimulatedPlatform


def record(build, kind=Recorder, runs_captures=True, **knobs):
    """``build(piece, op) -> run``; gives the recorder, its pool and the run's result."""
    platform = SimulatedPlatform(**knobs)
    driver, stream = platform.graphs, platform.device.new_stream()
    driver.runs_captures = runs_captures
    pool = driver.new_pool()
    recorder = kind(declared(platform), pool, stream)
    run = build(lambda fn: recorder.piece(fn.__name__, fn), recorder.op)
    with torch.inference_mode(), platform.device.stream(stream):
        recorder.rehearse(run)
        recorder.capturing = True
        result = recorder.record(run)
    return recorder, pool, result


def steps(recorder):
    found, direct = recorder.sequence.steps(lambda graph: graph.replay, lambda tensor: tensor)
    assert direct == found  # no operator has a kernel to call directly
    return found


def sin(t):
    return (t.sin(),)


def cos(t):
    return (t.cos(),)


def both(t):
    return t + 1, [t * 2, None]


def test_steps_are_a_graph_per_piece_and_a_call_per_operator_in_order():
    x, seen = torch.randn(4), []

    def build(piece, op):
        first, mid, last = piece(sin), op(lambda t: seen.append("op") or t.neg()), piece(cos)
        return lambda: last(mid(first(x)[0]))

    recorder, _, (out,) = record(build)
    seen.clear()
    x.normal_()
    found = steps(recorder)
    assert len(found) == 3
    with torch.inference_mode():
        found[0]()
        assert seen == []
        found[1]()
        assert seen == ["op"]
        found[2]()
    torch.testing.assert_close(out, x.sin().neg().cos())


def test_nested_results_of_an_operator_go_to_memory_of_the_pool():
    x = torch.randn(4)

    def build(piece, op):
        first, mid = piece(sin), op(both)
        last = piece(_times)

        def run():
            a, (b, _) = mid(first(x)[0])
            return last(a, b)

        return run

    recorder, pool, (out,) = record(build)
    assert pool.live_bytes > 0
    x.normal_()
    with torch.inference_mode():
        for step in steps(recorder):
            step()
    y = x.sin()
    torch.testing.assert_close(out, (y + 1) * (y * 2))


def _times(a, b):
    return (a * b,)


def test_an_operator_that_returns_an_argument_is_not_copied():
    x = torch.randn(4)

    def build(piece, op):
        first, mid, last = piece(sin), op(lambda t: t.mul_(3)), piece(cos)
        return lambda: last(mid(first(x)[0]))

    recorder, _, (out,) = record(build)
    x.normal_()
    with torch.inference_mode():
        for step in steps(recorder):
            step()
    torch.testing.assert_close(out, (x.sin() * 3).cos())


def test_an_operator_that_returns_an_object_is_refused():
    def build(piece, op):
        first, mid = piece(sin), op(lambda t: object())
        return lambda: mid(first(torch.ones(2))[0])

    with pytest.raises(CaptureFailed, match="object"):
        record(build)


def test_generators_are_registered_before_each_capture():
    x = torch.zeros(4)
    generator = torch.Generator()

    def build(piece, op):
        def noisy(t):
            return (t + torch.rand(4, generator=generator),)

        run = piece(noisy)
        return lambda: run(x)

    platform = SimulatedPlatform()
    driver, stream = platform.graphs, platform.device.new_stream()
    recorder = Recorder(declared(platform), driver.new_pool(), stream)
    recorder.generator = generator
    run = build(lambda fn: recorder.piece("noisy", fn), recorder.op)
    with torch.inference_mode(), platform.device.stream(stream):
        recorder.rehearse(run)
        recorder.capturing = True
        (out,) = recorder.record(run)
        first = out.clone()
        steps(recorder)[0]()
    assert not torch.equal(out, first)


def test_a_whole_recorder_makes_one_graph_of_all():
    x = torch.randn(4)

    def build(piece, op):
        first, mid, last = piece(sin), op(torch.neg), piece(cos)
        return lambda: last(mid(first(x)[0]))

    recorder, _, (out,) = record(build, WholeRecorder)
    assert len(steps(recorder)) == len(recorder.graphs) == 1
    x.normal_()
    with torch.inference_mode():
        steps(recorder)[0]()
    torch.testing.assert_close(out, x.sin().neg().cos())


def test_a_whole_recorder_refuses_random_operators_that_would_repeat():
    def build(piece, op):
        draw = op(torch.rand_like)
        return lambda: draw(torch.ones(3))

    with pytest.raises(CaptureFailed, match="same"):
        record(build, WholeRecorder, generators=False)
    record(build, WholeRecorder)


def test_operators_run_once_where_a_capture_runs_nothing():
    x, threes, seen = torch.randn(4), torch.full((4,), 3.0), []

    def mid(t):
        seen.append(1)
        return t.neg(), 3, None

    def build(piece, op):
        first, between, last = piece(sin), op(mid), piece(_times)

        def run():
            value, number, nothing = between(first(x)[0])
            assert (number, nothing) == (3, None)
            return last(value, threes)

        return run

    recorder, _, (out,) = record(build, runs_captures=False)
    assert len(seen) == 1
    x.normal_()
    with torch.inference_mode():
        for step in steps(recorder):
            step()
    torch.testing.assert_close(out, x.sin().neg() * 3)


def test_an_operator_that_returns_what_it_was_given_runs_again_to_tell_which():
    x, seen = torch.randn(4), []

    def mid(t):
        seen.append(1)
        return t

    def build(piece, op):
        first, between, last = piece(sin), op(mid), piece(cos)
        return lambda: last(between(first(x)[0]))

    recorder, _, (out,) = record(build, runs_captures=False)
    assert len(seen) == 2
    x.normal_()
    with torch.inference_mode():
        for step in steps(recorder):
            step()
    torch.testing.assert_close(out, x.sin().cos())
