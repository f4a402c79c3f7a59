"""Products with weights in a traced graph: what most of a model's time goes to."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from piecewise_core.graph.convolutions import CONVOLUTIONS
from piecewise_core.graph.effects import is_view
from piecewise_core.graph.memory import tensor_inputs, values
from piecewise_core.graph.names import called_name
from piecewise_core.graph.segments import producer

__all__ = ["PRODUCTS", "Products"]

PRODUCTS = CONVOLUTIONS | {
    "linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "addbmm", "einsum", "bilinear",
    "tensordot", "_scaled_mm", "_grouped_mm", "_weight_int8pack_mm", "_weight_int4pack_mm",
    "__matmul__", "__rmatmul__",
}  # fmt: skip
"""Bare names of the functions and operators."""

_LEAST = 1024
"""Elements of a weight: below it is a table of frequencies, say, and no layer."""

_LAUNCH = 1 << 20
"""What a kernel takes however little it reads, in elements of a weight."""


class Products:
    """Tells products with weights from other nodes. ``weights``: inputs that are the model's."""

    def __init__(self, graph: torch.fx.Graph, weights: Iterable[torch.fx.Node]) -> None:
        self._fixed = set(weights)
        for node in graph.nodes:
            given = tensor_inputs(node)
            if node.op == "get_attr" or (
                node.op in ("call_function", "call_method")
                and given
                and self._fixed.issuperset(given)
            ):
                self._fixed.add(node)

    def of(self, node: torch.fx.Node) -> tuple[int, object] | None:
        """The weight of a product, and what stands for what it multiplies; None for other nodes."""
        if called_name(node).partition(".")[0] not in PRODUCTS:
            return None
        given = tensor_inputs(node)
        sizes = [_elements(n) for n in given if n in self._fixed]
        others = [n for n in given if n not in self._fixed]
        most = max(sizes, default=0)
        if most < _LEAST or not others:
            return None
        return most + _LAUNCH, _seen_through(others[0])


def _seen_through(node: torch.fx.Node) -> torch.fx.Node:
    """The value that views are of."""
    while is_view(producer(node)):
        node = tensor_inputs(producer(node))[0]
    return node


def _elements(node: torch.fx.Node) -> int:
    tensors = [t for t in values(node.meta.get("example_value")) if isinstance(t, torch.Tensor)]
    sizes = [size for t in tensors for size in t.shape]
    return math.prod(s for s in sizes if isinstance(s, int)) if sizes else 0
