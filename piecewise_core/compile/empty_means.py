"""The mean and the variance of no numbers, which are NaN, where Inductor says 0.

Inductor's kernels begin with a mean and a sum of squares of 0, and leave them there when nothing is
reduced (torch 2.11 and 2.13): ``var_mean`` has a mean of 0, and a negative correction a variance of
0. A mean by itself divides 0 by 0, as eager does. So where a reduced dim may be 0, the mean is an
operator of its own, and what has a negative correction takes it along; elsewhere nothing changes.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true

__all__ = ["nothing_is_nan"]

_BOTH = frozenset({torch.ops.aten.var_mean.correction, torch.ops.aten.std_mean.correction})
_ONE = frozenset({torch.ops.aten.var.correction, torch.ops.aten.std.correction})


def nothing_is_nan(graph: torch.fx.Graph) -> bool:
    """Rewrite such reductions of ``graph``, in ATen operators; whether there were any."""
    found = [n for n in graph.nodes if n.target in _BOTH | _ONE and _may_be_of_nothing(n)]
    for node in found:
        mean = _mean(graph, node)
        for value, place in _values(node):
            if place == 1:
                _replace(value, mean)
            elif (node.kwargs.get("correction") or 0) < 0:
                _replace(value, _along(graph, value, mean))
    return bool(found)


def _may_be_of_nothing(node: torch.fx.Node) -> bool:
    example = node.args[0].meta.get("val") if isinstance(node.args[0], torch.fx.Node) else None
    if not isinstance(example, torch.Tensor):
        return False
    sizes = [example.shape[d] for d in _over(node, example)]
    return not statically_known_true(math.prod(sizes) > 0)


def _over(node: torch.fx.Node, example: torch.Tensor) -> Any:
    """The dims that are reduced: all, where none is named."""
    named: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    return named or range(example.dim())


def _values(node: torch.fx.Node) -> Iterator[tuple[torch.fx.Node, int]]:
    """The nodes that stand for the variance, place 0, and the mean, place 1."""
    if node.target in _ONE:
        yield node, 0
        return
    for user in list(node.users):
        if user.target is operator.getitem and isinstance(user.args[1], int):
            yield user, user.args[1]


def _mean(graph: torch.fx.Graph, node: torch.fx.Node) -> torch.fx.Node:
    given: Any = node.args[0]
    dims = list(_over(node, given.meta["val"]))
    keep = bool(node.kwargs.get("keepdim"))
    with graph.inserting_after(node):
        made = graph.call_function(torch.ops.aten.mean.dim, (given, dims, keep))
    example = node.meta["val"]
    made.meta["val"] = example if isinstance(example, torch.Tensor) else example[1]
    return made


def _along(graph: torch.fx.Graph, value: torch.fx.Node, mean: torch.fx.Node) -> torch.fx.Node:
    """``value``, and NaN where the mean is."""
    with graph.inserting_after(mean if value.target in _ONE else value):
        nothing = graph.call_function(torch.ops.aten.sub.Tensor, (mean, mean))
    with graph.inserting_after(nothing):
        made = graph.call_function(torch.ops.aten.add.Tensor, (value, nothing))
    made.meta["val"] = nothing.meta["val"] = value.meta["val"]
    return made


def _replace(value: torch.fx.Node, by: torch.fx.Node) -> None:
    value.replace_all_uses_with(by, delete_user_cb=lambda user: user is not by)
