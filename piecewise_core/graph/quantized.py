"""Tensors that no piece can hold: quantized ones (``torch.quint8`` and its like), nested inputs."""

from __future__ import annotations

import torch

__all__ = ["quantizing", "taking_nested"]

_DTYPES = frozenset({torch.quint8, torch.qint8, torch.qint32, torch.quint4x2, torch.quint2x4})


def quantizing(graph: torch.fx.Graph) -> torch.fx.Node | None:
    """The first node that makes a quantized tensor; torch's fake of its result is a float's."""
    for node in graph.nodes:
        given = (*node.args, *node.kwargs.values())
        if any(isinstance(value, torch.dtype) and value in _DTYPES for value in given):
            return node  # type: ignore[no-any-return]
    return None


def taking_nested(graph: torch.fx.Graph) -> torch.fx.Node | None:
    """The first input that is a nested tensor: its ragged size is no dim of a call."""
    for node in graph.find_nodes(op="placeholder"):
        value = node.meta.get("example_value")
        if isinstance(value, torch.Tensor) and value.is_nested:
            return node  # type: ignore[no-any-return]
    return None
