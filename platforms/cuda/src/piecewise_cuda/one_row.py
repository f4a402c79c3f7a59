"""One row times large weights by a Triton kernel of ours, several weights in one launch.

Inductor's reduction over such a product takes the shape of tiles that suits reductions at large: it
reads a weight at half to three quarters of what the memory gives. Figures are in ADR 29. Small
weights stay with ``one_row_products``: there a sum that is fused with what is around it is better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import getitem
from typing import Any

import torch

from piecewise_core.building_blocks import (
    GraphRewrite,
    HigherOrderOperator,
    one_row_product,
    schema_or_none,
)
from piecewise_cuda.compiler import require_triton

__all__ = ["one_row_kernels"]

_ATEN = torch.ops.aten
_LEAST_INNER = 512
_LEAST_BYTES = 1 << 20
"""Of one weight: below, the start of a kernel takes longer than reading."""

_VIEWS = frozenset({"aten::view", "aten::_unsafe_view", "aten::reshape"})


@dataclass(frozen=True)
class _Product:
    """``node`` is ``row`` times ``weight`` plus ``added``.

    ``node``: the product, or the addition behind it. ``row``: [1, inner]. ``source``: the tensor
    that ``row`` is another shape of. ``weight``: [outputs, inner]. ``epoch``: how many operators
    in front of it write to memory that others made.
    """

    node: torch.fx.Node
    row: torch.fx.Node
    source: torch.fx.Node
    weight: torch.fx.Node
    added: torch.fx.Node | None
    epoch: int

    def goes_with(self, group: Sequence[_Product]) -> bool:
        """Whether it can be computed where the first of ``group`` is."""
        first = group[0]
        alike = self.source is first.source and self.epoch == first.epoch
        return alike and all(each.needs_the_row_alone for each in (*group, self))

    @property
    def needs_the_row_alone(self) -> bool:
        """Whether everything else that it reads is given to the piece."""
        return all(n is None or n.op == "placeholder" for n in (self.weight, self.added))


def one_row_kernels() -> GraphRewrite:
    """The rewrite ``one_row_kernels``, for lowered pieces that Inductor compiles for CUDA."""
    return GraphRewrite(
        "one_row_kernels", "piece", "1", lambda g, _: rows_to_kernels(g.graph, "cuda"), True
    )


def rows_to_kernels(graph: torch.fx.Graph, device_type: str) -> int:
    """Rewrite products of one row with large weights; returns how many launches they became.

    ``graph``: in ATen operators with ``meta["val"]``. ``device_type``: of those that have Triton.
    Sums are taken in float32 and rounded once. Raises CompilerUnavailable without Triton.
    """
    products = _products(graph, device_type)
    if not products:
        return 0
    require_triton()
    from piecewise_cuda.row_kernel import MOST, rows_times_weights

    groups: list[list[_Product]] = []
    for found in products:
        group = next((g for g in groups if len(g) < MOST and found.goes_with(g)), None)
        if group is None:
            groups.append([found])
        else:
            group.append(found)
    results: dict[torch.fx.Node, torch.fx.Node] = {}
    for group in groups:
        _replace(graph, group, rows_times_weights, results)
    return len(groups)


def _products(graph: torch.fx.Graph, device_type: str) -> list[_Product]:
    """In the order in which their results are there."""
    epochs: dict[torch.fx.Node, int] = {}
    epoch = 0
    for node in graph.nodes:
        epochs[node] = epoch
        epoch += _writes(node)
    order = {node: place for place, node in enumerate(epochs)}
    found: dict[torch.fx.Node, _Product] = {}
    for node in epochs:
        one = one_row_product(node)
        if one is None or not _large(one.weight):
            continue
        row = one.row.meta["val"]
        if row.device.type != device_type or not _plain(row.stride(1)) or row.stride(1) != 1:
            continue
        end, added = node, one.bias
        if added is None:
            end, added = _sum_behind(node, epochs)
            if end in found:  # of two products: it is the other's
                end, added = node, None
        elif not _alike(added, node):
            continue
        weight = _as_kept(graph, one.weight)
        found[end] = _Product(end, one.row, _source(one.row), weight, added, epochs[node])
    return sorted(found.values(), key=lambda each: order[each.node])


def _is_view(node: torch.fx.Node) -> bool:
    return getattr(schema_or_none(node.target), "name", "") in _VIEWS


def _writes(node: torch.fx.Node) -> bool:
    if isinstance(node.target, HigherOrderOperator):
        return True
    schema = schema_or_none(node.target)
    return schema is not None and bool(schema.is_mutable)


def _large(weight: torch.fx.Node) -> bool:
    value = weight.meta["val"]
    return bool(value.shape[0] >= _LEAST_INNER and value.nbytes >= _LEAST_BYTES)


def _source(node: torch.fx.Node) -> torch.fx.Node:
    """What ``node`` is another shape of: each product of a row has a view of its own."""
    while _is_view(node):
        (before, _) = node.args
        if not isinstance(before, torch.fx.Node) or not before.meta["val"].is_contiguous():
            break
        node = before
    return node


def _as_kept(graph: torch.fx.Graph, weight: torch.fx.Node) -> torch.fx.Node:
    """[outputs, inner], as a layer keeps it."""
    if weight.target is _ATEN.t.default and isinstance(weight.args[0], torch.fx.Node):
        return weight.args[0]
    with graph.inserting_after(weight):
        turned = graph.call_function(_ATEN.t.default, (weight,))
    turned.meta["val"] = weight.meta["val"].t()
    return turned


def _sum_behind(
    node: torch.fx.Node, epochs: dict[torch.fx.Node, int]
) -> tuple[torch.fx.Node, torch.fx.Node | None]:
    """The addition of a residual that alone reads a product, and the residual; or the product."""
    end = node
    while len(end.users) == 1 and _is_view(user := next(iter(end.users))):
        end = user
    user = next(iter(end.users), node)
    if len(end.users) != 1 or user.target is not _ATEN.add.Tensor or user.kwargs:
        return node, None
    others = [one for one in user.args if one is not end]
    # Computed where the sum is: nothing may have been written to in between.
    if len(others) != 1 or epochs.get(user) != epochs[node]:
        return node, None
    (residual,) = others
    same = _alike(user, node) and _alike(residual, node)
    return (user, residual) if same else (node, None)  # type: ignore[return-value]


def _alike(other: Any, product: torch.fx.Node) -> bool:
    """Whether ``other`` has a number for each of the product's, in the same order and dtype."""
    value = other.meta.get("val") if isinstance(other, torch.fx.Node) else None
    if not isinstance(value, torch.Tensor) or not _plain(*value.shape, *value.stride()):
        return False
    wanted = product.meta["val"]
    alike = value.dtype is wanted.dtype and value.numel() == wanted.numel()
    return alike and value.is_contiguous()


def _plain(*sizes: Any) -> bool:
    """Whether they are numbers: a symbol that is compared may answer with a guard."""
    return all(type(size) is int for size in sizes)


def _replace(
    graph: torch.fx.Graph,
    group: Sequence[_Product],
    operator: Any,
    results: dict[torch.fx.Node, torch.fx.Node],
) -> None:
    """Compute ``group`` in one launch, where its first product is.

    ``results``: of products that were replaced before, which this one may read; it is added.
    """

    def now(node: torch.fx.Node) -> torch.fx.Node:
        return results.get(node, node)

    def flat(node: torch.fx.Node | None) -> torch.fx.Node | None:
        return None if node is None else _called(graph, _ATEN.view.default, now(node), [1, -1])

    with graph.inserting_before(group[0].node):
        row, weights = now(group[0].row), [now(each.weight) for each in group]
        added = [flat(each.added) for each in group]
        launch = graph.call_function(operator, (row, weights, added))
        # The memory that views of the results are noted to have.
        launch.meta["val"] = [each.node.meta["val"].view(1, -1) for each in group]
        outs = [_called(graph, getitem, launch, place) for place in range(len(group))]
    for each, out in zip(group, outs, strict=True):
        with graph.inserting_before(each.node):
            shape = list(each.node.meta["val"].shape)
            results[each.node] = _called(graph, _ATEN.view.default, out, shape)
        each.node.replace_all_uses_with(results[each.node])
        _erase(graph, each.node)


def _erase(graph: torch.fx.Graph, node: torch.fx.Node) -> None:
    """Take out ``node``, an addition or a product, with the product that nothing reads then."""
    before = node.all_input_nodes
    graph.erase_node(node)
    for one in before:
        if not one.users and (_is_view(one) or one.target is _ATEN.mm.default):
            _erase(graph, one)


def _called(graph: torch.fx.Graph, target: Any, *args: Any) -> torch.fx.Node:
    node = graph.call_function(target, args)
    values = (arg.meta["val"] if isinstance(arg, torch.fx.Node) else arg for arg in args)
    node.meta["val"] = target(*values)
    return node
