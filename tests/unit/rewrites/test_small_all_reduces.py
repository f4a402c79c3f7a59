"""All-reduces that every process makes in one order, whatever compiles them, are replaced."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

if not dist.is_available():
    pytest.skip("needs torch.distributed", allow_module_level=True)

from piecewise_core.graph.sums import NOBODY, sum_over
from piecewise_core.rewrites import SmallAllReduces
from tests.kit.ranks.shares import HostShares

REDUCE, WAIT = torch.ops._c10d_functional.all_reduce, torch.ops._c10d_functional.wait_tensor


def graph_of(build, x=None):
    """What ``build(graph, x)`` makes, with fake values."""
    from torch._subclasses import FakeTensorMode

    graph = torch.fx.Graph()
    given = graph.placeholder("x")
    graph.output((build(graph, given),))
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(torch.ones(4, 8) if x is None else x)
        for node in graph.nodes:
            node.meta["example_value"] = fake
    return torch.fx.GraphModule({}, graph)


def reduced(graph, x, op="sum"):
    return graph.call_function(WAIT, (graph.call_function(REDUCE, (x, op, "0")),))


def sums(module, is_splitting=lambda node: False, wanted=True, why=""):
    """The replacements in ``module``."""
    rewrite = SmallAllReduces(HostShares())
    rewrite.sharing.wanted, rewrite.sharing.why = (lambda: wanted), why
    rewrite.apply(module, is_splitting)
    module.graph.lint()
    found = module.graph.find_nodes(op="call_function", target=sum_over)
    assert all("example_value" in node.meta for node in found)
    return [node.args[-1] for node in found], rewrite.sharing.slot


def chained(graph, x):
    return reduced(graph, graph.call_function(torch.relu, (reduced(graph, x),)))


def side_by_side(graph, x):
    return graph.call_function(torch.add, (reduced(graph, x), reduced(graph, x)))


def after_two(graph, x):
    return reduced(graph, side_by_side(graph, x))


def waited_late(graph, x):
    made = graph.call_function(REDUCE, (x, "sum", "0"))
    other = graph.call_function(torch.relu, (x,))
    return graph.call_function(torch.add, (graph.call_function(WAIT, (made,)), other))


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (reduced, 1),
        (chained, 2),
        (side_by_side, 0),
        (after_two, 1),
        (waited_late, 0),
        (lambda graph, x: reduced(graph, x, "max"), 0),
    ],
)
def test_what_is_waited_for_at_once_and_depends_on_the_one_before_is_replaced(build, count):
    found, slot = sums(graph_of(build))
    assert found == [slot] * count


def test_what_is_written_in_place_is_in_order_too():
    """As ``dist.all_reduce`` is traced: who reads the memory names it as before."""

    def in_place(graph, x):
        y = graph.call_function(torch.mul, (x, 2))
        graph.call_method("copy_", (y, reduced(graph, y)))
        return reduced(graph, graph.call_function(torch.relu, (y,)))

    module = graph_of(in_place)
    for node in module.graph.nodes:  # each in memory of its own, but for what is written
        if node.target != "copy_":
            node.meta["example_value"] = node.meta["example_value"].clone()
    found, slot = sums(module)
    assert found == [slot] * 2


@pytest.mark.parametrize("why", [{"wanted": False}, {"why": "no memory"}])
def test_nothing_is_replaced_for_one_process_or_without_such_memory(why):
    assert sums(graph_of(chained), **why)[0] == []


def test_what_the_user_cuts_at_and_what_is_too_large_stay_the_library_s():
    assert sums(graph_of(chained), is_splitting=lambda node: node.target is REDUCE)[0] == []
    assert sums(graph_of(reduced, torch.empty(11 * 2**18, device="meta")))[0] == []


@pytest.mark.parametrize("wanted", [True, False])
def test_an_operator_of_a_bundle_gets_this_model_s_number(wanted):
    module = graph_of(lambda graph, x: graph.call_function(sum_over, (x, "sum", "0", 7)))
    found, slot = sums(module, wanted=wanted)
    assert found == [slot if wanted else NOBODY]
