"""One row times a weight as a sum that Inductor generates, instead of a library's matrix product.

A product of one row reads the whole weight once and computes next to nothing, so it takes as long
as reading does. Inductor's reduction reads faster than cuBLAS's kernels for small matrices, starts
as one kernel where the library's takes two, takes what follows (a bias, a residual) along, and
does products of one row with several weights of a shape in one launch. For two rows and more the
library is as fast or faster. Figures are in ADR 16.

Inductor has the same decomposition (``mm`` in ``_inductor/decomposition.py``, read in torch 2.11.0
and 2.13.0), but only together with ``coordinate_descent_tuning``, which measures kernels for
seconds and chooses differently from run to run; without it, and without the row in memory, what
makes the row (``silu(gate) * up``, say) would be computed again for every column.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.fx.node import Argument

from piecewise_core.rewrites.entry import GraphRewrite
from piecewise_core.torch_compat.inductor import force_stride_order

__all__ = ["OneRow", "one_row_product", "one_row_products", "single_rows_to_sums"]

_ATEN = torch.ops.aten
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def one_row_products() -> GraphRewrite:
    """The rewrite ``one_row_products``, for a device whose compiler reads faster than libraries."""
    return GraphRewrite(
        "one_row_products", "piece", "1", lambda g, _: single_rows_to_sums(g.graph), True
    )


def single_rows_to_sums(graph: torch.fx.Graph) -> int:
    """Rewrite every ``mm`` and ``addmm`` of one row with a weight ``[out, in]``; returns how many.

    ``graph``: in ATen operators with ``meta["val"]``, as Inductor is given it. The row count must
    be 1 in the graph itself, not a symbol that may be 1. Sums are taken in float32 and rounded
    once, as the library does.
    """
    kept: dict[torch.fx.Node, torch.fx.Node] = {}
    rewritten = 0
    for node in list(graph.nodes):
        found = one_row_product(node)
        if found is None:
            continue
        bias, row, weight = found
        with graph.inserting_before(node):
            if row not in kept:
                kept[row] = _in_memory(graph, row)
            total = _sum(graph, kept[row], weight, bias, node.meta["val"].dtype)
        node.replace_all_uses_with(total)
        graph.erase_node(node)
        rewritten += 1
    return rewritten


class OneRow(NamedTuple):
    """``row`` [1, inner] times ``weight`` [inner, outputs], plus ``bias``, a node or None.

    The weight's columns lie in memory one behind the other, each in one piece.
    """

    bias: Any
    row: torch.fx.Node
    weight: torch.fx.Node


def one_row_product(node: torch.fx.Node) -> OneRow | None:
    """What ``node`` of a lowered graph multiplies, if it is one row times a layer's weight.

    Also that all sizes are plain numbers, and that both are of one dtype of 16 or 32 bits.
    """
    args, plain = node.args, not node.kwargs
    if node.target is _ATEN.addmm.default and plain and len(args) == 3:
        bias, row, weight = args
    elif node.target is _ATEN.mm.default and plain and len(args) == 2:
        bias, (row, weight) = None, args
    else:
        return None
    if not isinstance(row, torch.fx.Node) or not isinstance(weight, torch.fx.Node):
        return None
    x, w = row.meta.get("val"), weight.meta.get("val")
    if not isinstance(x, torch.Tensor) or not isinstance(w, torch.Tensor):
        return None
    sizes = (*x.shape, *w.shape, *w.stride())
    if not all(type(size) is int for size in sizes) or x.shape[0] != 1:
        return None
    # Each output is a sum over what lies side by side in memory.
    lies_well = w.stride(0) == 1 and w.stride(1) >= w.shape[0] > 0
    if not lies_well or x.dtype not in _DTYPES or x.dtype != w.dtype:
        return None
    return OneRow(bias, row, weight)


def _in_memory(graph: torch.fx.Graph, row: torch.fx.Node) -> torch.fx.Node:
    """``row``, computed once: every output reads all of it."""
    strides = [row.meta["val"].shape[1], 1]
    return _call(graph, force_stride_order(), row, strides)


def _sum(
    graph: torch.fx.Graph, row: torch.fx.Node, weight: torch.fx.Node, bias: Any, dtype: torch.dtype
) -> torch.fx.Node:
    """``row @ weight + bias`` as float32 products, summed and rounded once."""

    def to(node: torch.fx.Node, wanted: torch.dtype) -> torch.fx.Node:
        if node.meta["val"].dtype is wanted:
            return node
        return _call(graph, torch.ops.prims.convert_element_type.default, node, wanted)

    column = to(_call(graph, _ATEN.unsqueeze.default, row, 2), torch.float32)
    matrix = to(_call(graph, _ATEN.unsqueeze.default, weight, 0), torch.float32)
    products = _call(graph, _ATEN.mul.Tensor, column, matrix)
    total = _call(graph, _ATEN.sum.dim_IntList, products, [1])
    if bias is not None:
        total = _call(graph, _ATEN.add.Tensor, total, bias)
    return to(total, dtype)


def _call(graph: torch.fx.Graph, target: Callable[..., Any], *args: Argument) -> torch.fx.Node:
    """A call with the example value that Inductor and the passes after this one read."""
    node = graph.call_function(target, args)
    examples = [a.meta["val"] if isinstance(a, torch.fx.Node) else a for a in args]
    node.meta["val"] = target(*examples)
    return node
