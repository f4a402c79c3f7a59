"""What a node writes to: by schema, by name, by argument, and unsaid."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import piecewise_core as pw
from piecewise_core.graph.effects import writes
from piecewise_core.graph.memory import storages
from piecewise_core.testing import SimulatedPlatform

DIRECT = torch.ops.aten

CALLS = {
    "a builtin whose schema tells": (torch._native_batch_norm_legit, (True, 0.1, 1e-5), {}, "cd"),
    "a builtin that does not tell": (torch.native_batch_norm, (True, 0.1, 1e-5), {}, "cd"),
    "the same, only reading": (torch.native_batch_norm, (False, 0.1, 1e-5), {}, ""),
    "an operator that does not tell": (
        DIRECT.native_batch_norm.default,
        (True, 0.1, 1e-5),
        {},
        "cd",
    ),
    "its packet": (DIRECT.native_batch_norm, (True, 0.1, 1e-5), {}, "cd"),
    "only reading": (DIRECT.native_batch_norm.default, (False, 0.1, 1e-5), {}, ""),
}


def _node(target, more, keywords, names="abcde"):
    graph = torch.fx.Graph()
    given = {name: graph.placeholder(name) for name in names}
    for node in given.values():
        node.meta["example_value"] = torch.empty(3)
    return given, graph.call_function(target, (*given.values(), *more), keywords)


@pytest.mark.parametrize("name", CALLS)
def test_running_statistics_are_written_where_a_call_asks_for_it(name):
    target, more, keywords, written = CALLS[name]
    order = {"a": "x", "b": "weight", "e": "bias", "c": "running_mean", "d": "running_var"}
    given, node = _node(target, more, keywords, names=tuple(order))
    assert writes(node) == frozenset().union(*(storages(given[w]) for w in written))


def test_a_python_function_that_writes_by_default_is_known_to():
    graph = torch.fx.Graph()
    x, mean, var = (graph.placeholder(n) for n in ("x", "mean", "var"))
    for node in (x, mean, var):
        node.meta["example_value"] = torch.empty(3)
    asked = graph.call_function(F.instance_norm, (x, mean, var))
    told = graph.call_function(F.instance_norm, (x, mean, var), {"use_input_stats": False})
    assert writes(asked) == storages(mean) | storages(var)
    assert writes(told) == frozenset()


def test_a_builtin_of_several_lists_writes_to_all_that_its_schema_names():
    graph = torch.fx.Graph()
    lists = [[graph.placeholder(f"{n}{i}") for i in range(2)] for n in ("p", "g", "m")]
    for node in graph.nodes:
        node.meta["example_value"] = torch.empty(3)
    node = graph.call_function(torch._fused_sgd_, tuple(lists))
    assert writes(node) == frozenset().union(
        *(storages(n) for n in [*lists[0], *lists[1], *lists[2]])
    )


def _legit(x, mean, var, weight):
    return torch._native_batch_norm_legit(x, weight, weight, mean, var, True, 0.1, 1e-5)[0]


def _packet(x, mean, var, weight):
    return torch.ops.aten.native_batch_norm(x, weight, weight, mean, var, True, 0.1, 1e-5)[0]


def _functional(x, mean, var, weight):
    return F.instance_norm(x, mean, var, weight)


@pytest.mark.parametrize("fn", [_legit, _packet, _functional])
@pytest.mark.parametrize("padding", ["none", "capture_sizes"])
@pytest.mark.parametrize("make", [pw.compile, pw.record])
def test_running_statistics_that_are_inputs_are_the_callers_after_a_replay(fn, padding, make):
    more = {} if make is pw.record else {"compiler": "eager"}
    config = pw.Config(
        dynamic={"x": {0: pw.Dim("rows", 1, 8)}}, capture_sizes=[2, 4], padding=padding, **more
    )
    fast = make(fn, config, SimulatedPlatform())
    for turn, rows in enumerate((4, 4, 2, 3, 4)):
        torch.manual_seed(turn)
        given = [torch.randn(rows, 3, 5), *(torch.rand(3) for _ in range(3))]
        twins = [t.clone() for t in given]
        torch.testing.assert_close(fast(*twins), fn(*given))
        torch.testing.assert_close(twins, given)
