"""Calls of torch's own attention in a traced graph, whichever way their arguments are given."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["Attention", "attentions"]

_TARGETS = (
    torch.nn.functional.scaled_dot_product_attention,
    torch.ops.aten.scaled_dot_product_attention,
    torch.ops.aten.scaled_dot_product_attention.default,
)
_BY_POSITION = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


class Attention:
    """One call, as it was when it was found.

    ``query``, ``key``, ``value``, ``mask``: nodes; the last may be None. ``dropout``, ``causal``:
    what ``dropout_p`` and ``is_causal`` are given. ``shares_heads``: whether several query heads
    may read one key head.
    """

    def __init__(self, node: torch.fx.Node) -> None:
        given: Any = dict(zip(_BY_POSITION, node.args, strict=False)) | dict(node.kwargs)
        self.node = node
        self.query, self.key, self.value = (given.get(name) for name in _BY_POSITION[:3])
        self.mask = given.get("attn_mask")
        self.dropout = given.get("dropout_p", 0.0)
        self.causal = given.get("is_causal", False)
        self.shares_heads = given.get("enable_gqa", False) is not False

    def give(self, **arguments: Any) -> None:
        """Replace arguments of the call in the graph, by torch's names."""
        named = dict(zip(_BY_POSITION, self.node.args, strict=False)) | arguments
        args = [named.pop(name) for name in _BY_POSITION[: len(self.node.args)]]
        self.node.args, self.node.kwargs = tuple(args), {**self.node.kwargs, **named}


def attentions(graph: torch.fx.Graph) -> list[Attention]:
    """The calls of ``scaled_dot_product_attention`` in ``graph``, in order."""
    return [Attention(node) for node in graph.nodes if node.target in _TARGETS]
