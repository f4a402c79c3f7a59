"""What a recorder that watches finds out about a run."""

from __future__ import annotations

import numpy
import pytest
import torch

from piecewise_core.capture.watching import WatchingRecorder
from piecewise_core.errors import CaptureFailed
from piecewise_core.plugins import declared
from piecewise_core.testing import SimulatedPlatform


def watch(fn, splits=()):
    platform = SimulatedPlatform()
    stream = platform.device.new_stream()
    recorder = WatchingRecorder(
        declared(platform),
        platform.graphs.new_pool(),
        stream,
        is_splitting=lambda call: call.target in splits,
    )
    with torch.inference_mode(), platform.device.stream(stream):
        recorder.rehearse(fn)
        recorder.capturing = True
        result = recorder.record(fn)
    return recorder, result


def test_tensors_from_outside_are_found_and_those_made_are_not():
    x, w = torch.randn(3), torch.randn(3)
    recorder, _ = watch(lambda: (x.sin() + w).view(3, 1) * torch.ones(1))
    assert {id(t) for t in recorder.external} == {id(x), id(w)}
    assert recorder.memory.writes == 0


def test_writes_to_memory_from_outside_are_found_and_put_back():
    x, state, own = torch.randn(3), torch.zeros(3), torch.zeros(3)

    def fn():
        y = x.sin()
        y.mul_(2)
        state[:2].add_(1)
        torch.neg(x, out=own)
        return y

    recorder, _ = watch(fn)
    assert recorder.memory.writes == 2
    assert recorder.memory.writes_to(state)
    assert recorder.memory.writes_to(own)
    assert not recorder.memory.writes_to(x)
    recorder.put_back()
    assert torch.equal(state, torch.zeros(3))
    assert torch.equal(own, torch.zeros(3))


def test_stretches_without_work_are_not_captured():
    x = torch.randn(3)
    split = (torch.neg,)
    for fn, graphs in [
        (lambda: torch.neg(x), 0),
        (lambda: torch.neg(x.view(3, 1)).view(3), 0),
        (lambda: torch.neg(torch.neg(x)), 0),
        (lambda: torch.neg(x.sin()), 1),
        (lambda: torch.neg(torch.neg(x.sin())).cos(), 2),
    ]:
        assert len(watch(fn, split)[0].graphs) == graphs


def test_temporaries_of_a_splitting_function_are_no_writes():
    x = torch.randn(3)
    recorder, _ = watch(
        lambda: torch.nn.functional.softplus(x) + 1, (torch.nn.functional.softplus,)
    )
    assert recorder.memory.writes == 0


@pytest.mark.parametrize("read", [torch.Tensor.item, torch.Tensor.tolist, bool, float, int])
def test_values_that_python_reads_are_refused_with_the_line(read):
    x = torch.ones(1)
    with pytest.raises(CaptureFailed, match=r"test_watching\.py:\d+"):
        watch(lambda: read(x.sum()))


def test_letting_go_leaves_no_tensor():
    x = torch.randn(3)
    recorder, _ = watch(lambda: torch.neg(x.sin()).cos(), (torch.neg,))
    recorder.forget()
    assert recorder.external == ()
    assert recorder.sequence.steps(lambda graph: graph.replay, lambda tensor: tensor) == ((), ())


def test_memory_is_freed_as_a_run_goes():
    x = torch.randn(1000)

    def fn():
        y = x
        for _ in range(20):
            y = y.sin()
        return y

    recorder, result = watch(fn)
    recorder.forget()
    assert recorder.pool.nbytes <= 3 * 4096
    del result
    assert recorder.pool.live_bytes == 0


def test_what_the_first_run_made_and_the_second_found_is_from_outside():
    x, table = torch.randn(3), []

    def fn():
        if not table:
            table.append(torch.arange(3.0).cos())
        return x * table[0]

    recorder, _ = watch(fn)
    assert {id(t) for t in recorder.external} == {id(x), id(table[0])}
    assert recorder.memory.writes == 0


def test_memory_made_by_the_first_run_is_written_without_going_back():
    x, state = torch.randn(3), []

    def fn():
        if not state:
            state.append(torch.zeros(3))
        state[0].add_(1)
        return x + state[0]

    recorder, _ = watch(fn)
    assert recorder.memory.writes_to(state[0])
    recorder.put_back()
    assert torch.isfinite(state[0]).all()


def test_what_only_splitting_operators_read_is_from_outside_too():
    x, w = torch.randn(3), torch.randn(3)
    recorder, _ = watch(lambda: torch.mul(x.sin(), w).cos(), (torch.mul,))
    assert {id(t) for t in recorder.external} == {id(x), id(w)}


def test_a_result_that_was_not_made_is_from_outside_once_it_is_noted():
    x, w = torch.randn(3), torch.randn(3)
    recorder, (made, given) = watch(lambda: (x.sin(), w))
    recorder.memory.read([made, given])
    assert {id(t) for t in recorder.external} == {id(x), id(w)}


RUNS: list[str] = []


@torch.library.custom_op("pwwatch::cut", mutates_args=())
def cut(x: torch.Tensor) -> torch.Tensor:
    return x[: 1 + RUNS.count("shape")].clone()


@torch.library.custom_op("pwwatch::count", mutates_args=())
def count(x: torch.Tensor) -> int:
    return RUNS.count("value")


@pytest.mark.parametrize("change", ["more", "fewer", "shape", "value", "work"])
def test_a_second_run_that_takes_another_path_is_refused(change):
    x = torch.randn(3)
    RUNS.clear()

    def fn():
        RUNS.append(change)
        first = len(RUNS) == 1
        y = cut(x.sin())
        if (change == "more" and not first) or (change == "fewer" and first):
            y = cut(y)
        if change == "work" and not first:
            y = y.cos()
        return count(y)

    with pytest.raises(CaptureFailed, match="second run"):
        watch(fn, (torch.ops.pwwatch.cut.default, torch.ops.pwwatch.count.default))


@pytest.mark.parametrize(
    "read", [torch.Tensor.numpy, numpy.asarray, numpy.from_dlpack, complex, lambda t: [1, 2][t]]
)
def test_values_that_leave_for_other_libraries_are_refused(read):
    x = torch.zeros(1, dtype=torch.long)
    with pytest.raises(CaptureFailed, match=r"test_watching\.py:\d+"):
        watch(lambda: read(x.sum()))
