"""What a recorder that watches finds out about a run."""

from __future__ import annotations

import pytest
import torch

from piecewise_core.capture.watching import WatchingRecorder
from piecewise_core.errors import CaptureFailed
from piecewise_core.testing import SimulatedPlatform


def watch(fn, splits=()):
    platform = SimulatedPlatform()
    stream = platform.device.new_stream()
    recorder = WatchingRecorder(
        platform.graphs, platform.graphs.new_pool(), stream, lambda call: call.target in splits
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
    assert recorder.writes == 0


def test_writes_to_memory_from_outside_are_found_and_put_back():
    x, state, own = torch.randn(3), torch.zeros(3), torch.zeros(3)

    def fn():
        y = x.sin()
        y.mul_(2)
        state[:2].add_(1)
        torch.neg(x, out=own)
        return y

    recorder, _ = watch(fn)
    assert recorder.writes == 2
    assert recorder.writes_to(state)
    assert recorder.writes_to(own)
    assert not recorder.writes_to(x)
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
    assert recorder.writes == 0


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
    assert recorder.steps(lambda graph: graph.replay, lambda tensor: tensor) == ((), ())
