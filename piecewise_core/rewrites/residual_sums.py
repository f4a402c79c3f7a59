"""Sums that leave a piece, kept out of matrix products where that costs a kernel.

On a GPU, Inductor folds ``x + a @ b`` into one library call unless all that reads the sum is
pointwise: then it is cheaper fused with those readers, since the library first copies ``x``. A
residual that crosses a cut is read by the piece's output as well, which is not pointwise, so it
pays for the copy, once a layer. Two equal sums, one for the output, are fused as meant.

Read in torch 2.11.0 and 2.13.0: ``is_valid_addmm_fusion`` and ``should_prefer_unfused_addmm`` in
``_inductor/fx_passes/post_grad.py``; their pattern wants a product with one reader.
"""

from __future__ import annotations

from typing import Any

import torch

from piecewise_core.rewrites.entry import GraphRewrite

__all__ = ["keep_sums_fusable", "residual_sums"]

_ADD = torch.ops.aten.add.Tensor
_MM = torch.ops.aten.mm.default


def residual_sums() -> GraphRewrite:
    """The rewrite ``residual_sums`` of pieces that a GPU runs."""
    return GraphRewrite(
        "residual_sums", "piece", "1", lambda g, _: _on_gpu(g) and keep_sums_fusable(g.graph), True
    )


def _on_gpu(graph: torch.fx.GraphModule) -> bool:
    values = [node.meta.get("val") for node in graph.graph.find_nodes(op="placeholder")]
    return any(isinstance(v, torch.Tensor) and v.device.type != "cpu" for v in values)


def keep_sums_fusable(graph: torch.fx.Graph) -> int:
    """Give the outputs a copy of each such sum; returns how many were copied.

    ``graph``: in ATen operators, as Inductor is given it.
    """
    (output,) = graph.find_nodes(op="output")
    found = [n for n in graph.find_nodes(op="call_function", target=_ADD) if _is_residual(n)]
    copied = 0
    for node in found:
        others = [user for user in node.users if user is not output]
        if output not in node.users or not others:
            continue
        with graph.inserting_after(node):
            twin = graph.call_function(_ADD, node.args, node.kwargs)
        twin.meta = dict(node.meta)
        output.replace_input_with(node, twin)
        copied += 1
    return copied


def _is_residual(node: torch.fx.Node) -> bool:
    """Whether ``node`` adds a product and a tensor of the product's own shape."""
    if node.kwargs.get("alpha", 1) != 1 or len(node.args) != 2:
        return False
    products = [a for a in node.args if isinstance(a, torch.fx.Node) and a.target is _MM]
    shapes = [_shape(a) for a in node.args]
    return len(products) == 1 and len(products[0].users) == 1 and shapes[0] == shapes[1]


def _shape(value: Any) -> Any:
    example = value.meta.get("val") if isinstance(value, torch.fx.Node) else None
    return tuple(example.shape) if isinstance(example, torch.Tensor) else None
