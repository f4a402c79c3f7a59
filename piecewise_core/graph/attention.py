"""Calls of torch's own attention in a traced graph, whichever way their arguments are given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Attention", "attentions"]

_TARGETS = (
    torch.nn.functional.scaled_dot_product_attention,
    torch.ops.aten.scaled_dot_product_attention,
    torch.ops.aten.scaled_dot_product_attention.default,
)
_PLACES = {"query": 0, "key": 1, "value": 2, "attn_mask": 3, "dropout_p": 4, "is_causal": 5}
"""Arguments that may be given by position; ``scale`` and ``enable_gqa`` may not."""


@dataclass(frozen=True)
class Attention:
    """One call; its arguments are read off ``node`` whenever they are asked for."""

    node: torch.fx.Node

    @property
    def query(self) -> Any:
        """A node whose value is [..., heads, length, width]."""
        return self._argument("query")

    @property
    def key(self) -> Any:
        """A node whose value is [..., heads, length of keys, width]."""
        return self._argument("key")

    @property
    def value(self) -> Any:
        """A node whose value is [..., heads, length of keys, width of values]."""
        return self._argument("value")

    @property
    def mask(self) -> Any:
        """A node whose value is bool, or of the query's dtype; or None."""
        return self._argument("attn_mask")

    @property
    def dropout(self) -> Any:
        """The share of weights that are dropped."""
        return self._argument("dropout_p", 0.0)

    @property
    def causal(self) -> Any:
        """Whether no query sees a later key."""
        return self._argument("is_causal", False)

    @property
    def shares_heads(self) -> bool:
        """Whether several query heads may read one key head."""
        return self.node.kwargs.get("enable_gqa", False) is not False

    def give(self, **arguments: Any) -> None:
        """Replace arguments of the call, by name."""
        args = list(self.node.args)
        kwargs = dict(self.node.kwargs)
        for name, value in arguments.items():
            place = _PLACES.get(name, len(args))
            if place < len(args):
                args[place] = value
            else:
                kwargs[name] = value
        self.node.args, self.node.kwargs = tuple(args), kwargs

    def _argument(self, name: str, default: Any = None) -> Any:
        place = _PLACES[name]
        args = self.node.args
        return args[place] if place < len(args) else self.node.kwargs.get(name, default)


def attentions(graph: torch.fx.Graph) -> list[Attention]:
    """The calls of ``scaled_dot_product_attention`` in ``graph``, in order."""
    return [Attention(node) for node in graph.nodes if node.target in _TARGETS]
