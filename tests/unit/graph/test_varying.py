"""Which nodes make or need sizes that depend on data."""

import operator

import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from piecewise_core.graph.segments import is_size
from piecewise_core.graph.varying import line_of, varies, varies_itself, why_varying


def graph_of_a_mask():
    """``x[mask]``, its size, twice that, whether it is what it is known to be, and a sum."""
    env = ShapeEnv()
    count = env.create_unbacked_symint()
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    x.meta["example_value"] = torch.empty(4, device="meta")
    kept = graph.call_function(operator.getitem, (x, x))
    kept.meta["example_value"] = torch.empty(count, device="meta")
    kept.meta["stack_trace"] = 'File "model.py", line 3, in forward\n'
    size = graph.call_function(torch.ops.aten.sym_size.int, (kept, 0))
    size.meta["example_value"] = count
    known = graph.call_function(operator.eq, (size, 4))
    known.meta["example_value"] = True  # torch may know so, by what it asserts
    total = graph.call_method("sum", (kept,))
    total.meta["example_value"] = torch.empty((), device="meta")
    behind = graph.call_method("relu", (total,))
    behind.meta["example_value"] = torch.empty((), device="meta")
    return x, kept, size, known, total, behind


def test_what_makes_such_a_size_or_is_given_one_varies():
    nodes = graph_of_a_mask()
    assert [varies(n) for n in nodes] == [False, True, True, True, True, False]


def test_what_comes_out_of_a_sum_does_not_vary_itself():
    nodes = graph_of_a_mask()
    assert [varies_itself(n) for n in nodes] == [False, True, True, True, False, False]


def test_such_a_size_is_none_that_follows_from_the_dims():
    _, _, size, known, _, _ = graph_of_a_mask()
    assert not is_size(size)
    assert not is_size(known)


def test_a_node_without_a_line_is_placed_by_what_it_was_made_of():
    _, kept, _, known, _, _ = graph_of_a_mask()
    assert line_of(known) == "model.py:3"
    assert why_varying(kept) == ("_operator.getitem at model.py:3 makes sizes that depend on data")
