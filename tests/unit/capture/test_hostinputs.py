"""Tensors of the CPU beside a device's, recorded: "meta" stands for the device, it has no data."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from piecewise_core.capture.watching import WatchingRecorder
from piecewise_core.capture.whole import WholeRecorder
from piecewise_core.graph.hostinputs import to_device
from piecewise_core.plugins import declared


class Driver:
    """Graphs that hold nothing: what a capture runs on the CPU is in none."""

    def new_graph(self):
        return object()

    def capture_begin(self, graph, pool, stream):
        pass

    def capture_end(self, graph):
        pass

    def replay(self, graph):
        pass


META = declared(SimpleNamespace(device=None, graphs=Driver(), device_type="meta"))


def record(fn):
    recorder = WatchingRecorder(META, None, None, is_splitting=lambda call: False)
    with torch.inference_mode():
        recorder.rehearse(fn)
        recorder.capturing = True
        result = recorder.record(fn)
    sequence = [getattr(item, "fn", "graph") for item in recorder.sequence]
    steps, _ = recorder.sequence.steps(lambda graph: lambda: None, lambda tensor: tensor)
    return result, sequence, steps


def image(dtype=torch.float32):
    return torch.empty(4, 8, dtype=dtype, device="meta")


def test_an_operator_of_the_device_is_given_a_copy_that_is_made_before_each_replay():
    x, t = image(), torch.tensor(2.0)
    result, sequence, _ = record(lambda: torch.softmax(x * t, -1) + t)
    assert sequence == [to_device, "graph"]
    assert result.device.type == "meta"


def test_copies_have_their_values_before_the_captured_graph_runs_there(monkeypatch):
    """Memory that nobody filled may be positions out of bounds, which end a device's context."""
    x, t, happened = image(), torch.tensor(3.0), []
    copy_ = torch.Tensor.copy_

    def copied(into, value):
        happened.append((into.device.type, value.tolist()))
        return copy_(into, value)

    monkeypatch.setattr(torch.Tensor, "copy_", copied)
    monkeypatch.setattr(Driver, "replay", lambda self, graph: happened.append("replay"))
    _, sequence, _ = record(lambda: x * t + 1)
    assert sequence.count("graph") == 1
    assert happened[-1] == "replay"
    assert ("meta", 3.0) in happened[:-1]


def test_what_the_cpu_computes_is_computed_again_before_each_replay():
    x, t = image(), torch.tensor(2.0)
    seen = []

    def fn():
        y = t * 2 + 1
        seen.append(y)
        return x * y, y

    (_, y), sequence, steps = record(fn)
    assert [str(s) for s in sequence[:2]] == ["aten.mul.Tensor", "aten.add.Tensor"]
    assert sequence[2:] == [to_device, "graph"]
    t.fill_(10.0)
    for step in steps:
        step()
    assert y.item() == 21.0


def test_a_write_on_the_cpu_is_done_at_each_replay_and_copied_anew():
    x, t = image(), torch.tensor(2.0)

    def fn():
        y = x * t
        t.add_(1)
        return y + t

    _, sequence, steps = record(fn)
    assert sequence == [to_device, torch.ops.aten.add_.Tensor, to_device, "graph"]
    before = t.item()
    for step in steps:
        step()
    assert t.item() == before + 1


def test_a_copy_that_the_function_makes_is_of_the_new_value():
    x, t = image(), torch.tensor([1, 2, 3, 4])
    _, sequence, _ = record(lambda: x * t.to("meta")[:, None])
    assert sequence == [to_device, "graph"]


def test_literals_are_not_copied_at_every_replay():
    x = image()
    _, sequence, _ = record(lambda: x * torch.tensor(2.0) + torch.arange(8).to("meta"))
    assert sequence == ["graph"]


@pytest.mark.parametrize("op", [torch.mul, torch.add, torch.sub, torch.div])
def test_short_floats_meet_a_number_in_float32(op):
    x, t = image(torch.bfloat16), torch.tensor(1.2345)
    seen = []

    class Seen(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(args[0].dtype if args and isinstance(args[0], torch.Tensor) else None)
            return func(*args, **(kwargs or {}))

    with Seen():
        result, _, _ = record(lambda: op(x, t))
    assert result.dtype == torch.bfloat16
    assert torch.float32 in seen


def test_one_graph_of_the_whole_forward_comes_behind_what_the_cpu_does():
    recorder = WholeRecorder(META, None, None)
    x, t = image(), torch.tensor(2.0)
    move, double = recorder.op(to_device), recorder.op(lambda tensor: tensor * 2)
    run = recorder.piece("piece", lambda number: x * number)

    def plan():
        return run(move(double(t), x.device))

    with torch.inference_mode():
        recorder.rehearse(plan)
        recorder.capturing = True
        recorder.record(plan)
    kinds = [hasattr(item, "fn") for item in recorder.sequence]
    assert kinds == [True, True, False]
