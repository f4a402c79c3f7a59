"""Which values share memory, and which nodes write to it.

Aliasing is read off the fake tensors of the trace (views share their storage). Writes follow
ATen's conventions: an operator's schema, a trailing underscore, ``out=``, ``inplace=True``.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterator
from typing import Any

import torch

__all__ = ["storages", "tensor_inputs", "values", "writes"]

_INPLACE_OPERATORS = {
    operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv,
    operator.imod, operator.ipow, operator.imatmul, operator.iand, operator.ior, operator.ixor,
    operator.ilshift, operator.irshift, operator.setitem, operator.delitem,
}  # fmt: skip


def values(item: Any) -> Iterator[Any]:
    """The leaves of a value made of tuples, lists and dicts."""
    if isinstance(item, (tuple, list)):
        for part in item:
            yield from values(part)
    elif isinstance(item, dict):
        for part in item.values():
            yield from values(part)
    else:
        yield item


def storages(node: torch.fx.Node) -> frozenset[int]:
    """Identities of the memory that a node's tensors live in."""
    found = values(node.meta.get("example_value"))
    return frozenset(t.untyped_storage()._cdata for t in found if isinstance(t, torch.Tensor))


def tensor_inputs(node: torch.fx.Node) -> list[torch.fx.Node]:
    """The nodes among a node's arguments that carry tensors."""
    return [n for n in node.all_input_nodes if storages(n)]


def writes(node: torch.fx.Node) -> frozenset[int]:
    """Identities of the memory that a node writes to; all it is given when nobody can tell."""
    if node.op == "call_method":
        target = str(node.target)
        if target == "__setitem__" or (target.endswith("_") and not target.endswith("__")):
            return storages(node.args[0])  # type: ignore[arg-type]
        return _out(node)
    if node.op == "call_module":
        return _all(node)
    if node.op != "call_function":
        return frozenset()
    target = node.target
    if isinstance(target, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        return _by_schema(node, target)
    if target in _INPLACE_OPERATORS:
        return storages(node.args[0])  # type: ignore[arg-type]
    if isinstance(target, torch._ops.HigherOrderOperator):
        return _all(node)
    name = getattr(target, "__name__", "")
    if name.endswith("_") and not name.endswith("__"):
        return _first(node)
    return _out(node) | _python_function(node)


def _all(node: torch.fx.Node) -> frozenset[int]:
    return frozenset().union(*(storages(n) for n in tensor_inputs(node)))


def _first(node: torch.fx.Node) -> frozenset[int]:
    first = node.args[0] if node.args else next(iter(node.kwargs.values()), None)
    nodes = [v for v in values(first) if isinstance(v, torch.fx.Node)]
    return frozenset().union(*(storages(n) for n in nodes))


def _out(node: torch.fx.Node) -> frozenset[int]:
    nodes = [v for v in values(node.kwargs.get("out")) if isinstance(v, torch.fx.Node)]
    return frozenset().union(*(storages(n) for n in nodes))


def _by_schema(node: torch.fx.Node, target: Any) -> frozenset[int]:
    overloads = (
        [getattr(target, o) for o in target.overloads()]
        if isinstance(target, torch._ops.OpOverloadPacket)
        else [target]
    )
    found: frozenset[int] = frozenset()
    for overload in overloads:
        for place, argument in enumerate(overload._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            given = node.args[place] if place < len(node.args) else node.kwargs.get(argument.name)
            nodes = [v for v in values(given) if isinstance(v, torch.fx.Node)]
            found = found.union(*(storages(n) for n in nodes))
    return found


def _python_function(node: torch.fx.Node) -> frozenset[int]:
    """Writes asked for by an argument: ``inplace=True``, batch norm's statistics, renormed rows."""
    target: Any = node.target
    if not inspect.isfunction(target):
        return frozenset()
    try:
        bound = inspect.signature(target).bind(*node.args, **node.kwargs).arguments
    except (TypeError, ValueError):
        return frozenset()
    found: frozenset[int] = frozenset()
    if bound.get("inplace") is True:
        found |= _first(node)
    named = {
        "weight": bound.get("max_norm") is not None,
        "running_mean": bool(bound.get("training") or bound.get("use_input_stats")),
        "running_var": bool(bound.get("training") or bound.get("use_input_stats")),
    }
    for name, written in named.items():
        if written and isinstance(bound.get(name), torch.fx.Node):
            found |= storages(bound[name])
    return found
