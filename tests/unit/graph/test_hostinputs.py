"""Tensors of the CPU in programs of a device: graphs over tensors without data, as traced there."""

from __future__ import annotations

import operator

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from piecewise_core.graph.hostinputs import bring_to_device, to_device
from piecewise_core.graph.segments import segments


class Traced(torch.fx.Interpreter):
    """Notes of every node what it is, as a trace does."""

    def run_node(self, n):
        n.meta["example_value"] = made = super().run_node(n)
        return made


def never(node):
    return False


def program(fn, *inputs, made=None):
    """The graph of ``fn`` over fake ``inputs``: (shape, dtype, device) each.

    ``made``: a function and its arguments, whose result is the last argument of ``fn``.
    """
    module = torch.fx.symbolic_trace(fn)
    if made is not None:
        last = module.graph.find_nodes(op="placeholder")[-1]
        with module.graph.inserting_after(last):
            last.replace_all_uses_with(module.graph.call_function(*made))
        module.graph.erase_node(last)
    with FakeTensorMode(), torch.inference_mode():
        fakes = [torch.empty(s, dtype=t, device=d) for s, t, d in inputs]
        Traced(module).run(*fakes)
    return module.graph


CUDA = torch.device("cuda", 0)
IMAGE = ((4, 8), torch.float32, CUDA)
SHORT = ((4, 8), torch.bfloat16, CUDA)
STEP = ((), torch.float32, "cpu")
STEPS = ((4,), torch.int64, "cpu")


def runs(graph, is_splitting=never):
    test = bring_to_device(graph, is_splitting)
    graph.lint()
    found = segments(graph, test)
    return [("cpu" if r.splitting else "piece", [n.name for n in r.nodes]) for r in found]


def test_a_number_of_the_cpu_is_brought_over_once_before_the_first_piece():
    graph = program(lambda x, t: torch.softmax(x * t, -1) + t, IMAGE, STEP)
    assert runs(graph) == [("cpu", ["to_device"]), ("piece", ["mul", "softmax", "add"])]
    uses = [n for n in graph.nodes if any(u.target is to_device for u in n.all_input_nodes)]
    assert [n.name for n in uses] == ["mul", "add"]


def test_what_the_cpu_computes_runs_between_pieces_at_every_call():
    graph = program(lambda x, t: x.sin() * (t * 2 + 1).sqrt(), IMAGE, STEP)
    (kind, host), (_, rest) = runs(graph)
    assert (kind, host) == ("cpu", ["mul", "add", "sqrt", "to_device"])
    assert rest == ["sin", "mul_1"]


def test_a_copy_that_the_model_makes_is_no_part_of_a_piece():
    graph = program(lambda x, t: x.sin() + t[None].to(CUDA).expand(4, 1), IMAGE, STEP)
    assert runs(graph) == [("cpu", ["getitem", "to"]), ("piece", ["sin", "expand", "add"])]


def test_positions_counted_on_the_cpu_go_over_whole():
    graph = program(lambda x, i: x.sin() + i.to(CUDA), IMAGE, made=(torch.arange, (8,)))
    assert runs(graph) == [("cpu", ["arange", "to"]), ("piece", ["sin", "add"])]


def test_what_is_written_to_on_the_cpu_stays_in_its_place():
    def model(x, t):
        y = x * t
        t.add_(1)
        return y + t

    kinds = [kind for kind, _ in runs(program(model, IMAGE, STEP))]
    assert kinds == ["cpu", "piece", "cpu", "piece"]


def test_a_literal_number_may_stay_an_argument_of_kernels():
    graph = program(lambda x, n: x * n, IMAGE, made=(torch.full, ((), 2.5)))
    assert runs(graph) == [("piece", ["full", "mul"])]


def test_a_literal_number_that_is_returned_is_made_at_every_call():
    graph = program(lambda x, n: (x * n, n), IMAGE, made=(torch.full, ((), 2.5)))
    assert runs(graph) == [("cpu", ["full", "to_device"]), ("piece", ["mul"])]


@pytest.mark.parametrize(
    ("op", "steps"),
    [
        (operator.mul, ["float", "mul", "to"]),
        (operator.add, ["float", "add", "to"]),
        (torch.sub, ["float", "sub", "to"]),
        (torch.div, ["float", "to", "reciprocal", "mul", "to"]),
        (lambda x, t: x.mul_(t), ["float", "mul", "to", "copy_"]),
        (lambda x, t: x.div_(t), ["float", "to", "reciprocal", "mul", "to", "copy_"]),
        (lambda x, t: t - x, ["float", "sub", "to"]),
    ],
)
def test_short_floats_meet_a_number_in_float32(op, steps):
    graph = program(lambda x, t: op(x, t), SHORT, STEP)
    (_, brought), (_, rest) = runs(graph)
    assert brought == ["to_device"]
    assert [n.rstrip("_0123456789") for n in rest] == [s.rstrip("_") for s in steps]
    result = next(n for n in graph.nodes if n.name == rest[-1])
    assert result.meta["example_value"].dtype == torch.bfloat16


@pytest.mark.parametrize("x", [IMAGE, ((4, 8), torch.int64, CUDA), ((4, 8), torch.float64, CUDA)])
def test_a_division_by_a_number_is_a_product_with_its_inverse(x):
    graph = program(lambda x, t: x / t, x, STEP)
    assert runs(graph) == [("cpu", ["to_device"]), ("piece", ["to", "reciprocal", "mul"])]


@pytest.mark.parametrize(
    "x", [((4, 8), torch.complex64, CUDA), ((4, 8), torch.int64, CUDA)], ids=["complex", "whole"]
)
def test_other_arithmetic_with_a_number_stays_as_it_is(x):
    graph = program(lambda x, t: x * t, x, STEP)
    assert runs(graph) == [("cpu", ["to_device"]), ("piece", ["mul"])]


def test_a_number_that_is_divided_is_rounded_first_as_in_eager():
    graph = program(lambda x, t: t / x, SHORT, STEP)
    assert runs(graph) == [("cpu", ["to_device"]), ("piece", ["truediv"])]


@pytest.mark.parametrize("inputs", [(IMAGE, IMAGE), (((4, 8), torch.float32, "cpu"), STEP)])
def test_a_program_of_one_device_stays_as_it_is(inputs):
    graph = program(lambda x, t: x * t, *inputs)
    assert runs(graph) == [("piece", ["mul"])]


@pytest.mark.parametrize("value", [3.5, 7, True])
def test_what_is_brought_over_is_the_same_number(value):
    tensor = torch.tensor(value)
    made = to_device(tensor, torch.device("cpu"))
    assert made.dtype == tensor.dtype
    assert made.item() == value
    assert made.data_ptr() != tensor.data_ptr()
