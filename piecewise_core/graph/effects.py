"""Which memory a node writes to.

Writes follow ATen's conventions: an operator's schema, a trailing underscore, ``out=``,
``inplace=True``.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterable
from typing import Any

import torch

from piecewise_core.graph.memory import storages, tensor_inputs, values
from piecewise_core.graph.names import called_name
from piecewise_core.graph.unsaid_writes import unsaid_writes
from piecewise_core.torch_compat.operators import (
    HigherOrderOperator,
    OpOverload,
    OpOverloadPacket,
    changes_itself,
    overloads_of,
    schema_of,
)

__all__ = [
    "addressed",
    "goes_by_memory",
    "is_inplace",
    "is_pure",
    "is_view",
    "reshapes",
    "writes",
    "written_by_layout",
]

_INPLACE_OPERATORS: frozenset[Any] = frozenset({
    operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv,
    operator.imod, operator.ipow, operator.imatmul, operator.iand, operator.ior, operator.ixor,
    operator.ilshift, operator.irshift, operator.iconcat, operator.setitem, operator.delitem,
})  # fmt: skip
_EITHER = frozenset({"contiguous", "flatten", "ravel", "reshape", "reshape_as", "to"})


def writes(node: torch.fx.Node) -> frozenset[int]:
    """Identities of the memory that a node writes to; all it is given when nobody can tell."""
    if node.op == "call_method":
        target = str(node.target)
        return _of(node.args[:1]) if _is_inplace_method(target) else _of([node.kwargs.get("out")])
    if node.op == "call_module":
        return _all(node)
    return _by_function(node, node.target) if node.op == "call_function" else frozenset()


def is_inplace(node: torch.fx.Node) -> bool:
    """Whether a node's value is its first argument itself, written to."""
    if node.op == "call_method":
        return _is_inplace_method(str(node.target)) and node.target != "__setitem__"
    return node.op == "call_function" and node.target in _INPLACE_OPERATORS


def is_view(node: torch.fx.Node) -> bool:
    """Whether a node only gives memory that it is given another shape."""
    given = _all(node)
    return bool(given) and frozenset() != storages(node) <= given and not writes(node)


def is_pure(node: torch.fx.Node) -> bool:
    """Whether a node only computes its value: no writes, no random numbers, nothing unknown."""
    if node.op not in ("call_function", "call_method") or writes(node):
        return False
    if node.target is operator.getitem:
        return True
    overloads = overloads_of(getattr(torch.ops.aten, called_name(node), None))
    known = node.op == "call_method" or isinstance(node.target, type(torch.sin))
    if not known or not overloads:
        # Not even when it returns what it is given: functorch marks tensors that way.
        return False
    if not all(schema_of(o).returns for o in overloads):
        return False  # it asserts, say
    return not any(torch.Tag.nondeterministic_seeded in o.tags for o in overloads)


def _may_copy(node: torch.fx.Node) -> bool:
    """Whether the layout of what a node is given decides if its value is a view or a copy."""
    return called_name(node).partition(".")[0] in _EITHER


def written_by_layout(graph: torch.fx.Graph) -> frozenset[int]:
    """Memory of which its layout decides what a write reaches: ``x.reshape(-1).add_(1)``."""
    either = [node for node in graph.nodes if _may_copy(node)]
    if not either:
        return frozenset()
    written = frozenset().union(*map(writes, graph.nodes))
    pairs = (
        (storages(node), storages(node).union(*map(storages, tensor_inputs(node))))
        for node in either
    )
    return frozenset().union(*(both for made, both in pairs if made & written))


def goes_by_memory(node: torch.fx.Node) -> bool:
    """Whether a node takes elements by where they lie."""
    return called_name(node).startswith("as_strided")


def addressed(graph: torch.fx.Graph) -> tuple[frozenset[int], frozenset[torch.fx.Node]]:
    """The memory that such nodes are given; and they and all that they depend on."""
    memory: set[int] = set()
    needed: set[torch.fx.Node] = set()
    for node in reversed(graph.nodes):
        if goes_by_memory(node):
            memory.update(*map(storages, tensor_inputs(node)[:1]))
            needed.add(node)
        if node in needed:
            needed.update(node.all_input_nodes)
    return frozenset(memory), frozenset(needed)


def reshapes(node: torch.fx.Node) -> bool:
    """Whether a node changes a tensor's own sizes or strides: ``t_``, ``unsqueeze_``, ``resize_``.

    Values that the trace noted for that tensor before then no longer fit it.
    """
    name = called_name(node)
    found = overloads_of(node.target) or (
        overloads_of(getattr(torch.ops.aten, name, None)) if name.endswith("_") else ()
    )
    named = name in ("set_", "resize_", "resize_as_")
    return any(map(changes_itself, found)) if found else named


def _by_function(node: torch.fx.Node, target: Any) -> frozenset[int]:
    if isinstance(target, (OpOverload, OpOverloadPacket)):
        return _by_schema(node, overloads_of(target))
    if target in _INPLACE_OPERATORS:
        return _of(node.args[:1])
    if isinstance(target, HigherOrderOperator):
        return _all(node)
    name = getattr(target, "__name__", "")
    # What the schemas of a builtin's operators say: ``torch._fused_sgd_`` writes four lists.
    packet = None if inspect.isfunction(target) else getattr(torch.ops.aten, name, None)
    written = _by_schema(node, overloads_of(packet))
    if name.endswith("_") and not name.endswith("__"):
        first = node.args[0] if node.args else next(iter(node.kwargs.values()), None)
        return written | _of([first])
    return written | _of([node.kwargs.get("out")]) | _by_arguments(node, target)


def _is_inplace_method(name: str) -> bool:
    if name.startswith("__"):
        # __setitem__, and __iadd__ and its like; not __invert__, __index__ or __int__.
        return name == "__setitem__" or getattr(operator, name, None) in _INPLACE_OPERATORS
    return name.endswith("_")


def _all(node: torch.fx.Node) -> frozenset[int]:
    return frozenset().union(*map(storages, node.all_input_nodes))


def _of(items: Iterable[Any]) -> frozenset[int]:
    """The memory of the nodes in ``items``, nested ones included."""
    nodes = [v for v in values(tuple(items)) if isinstance(v, torch.fx.Node)]
    return frozenset().union(*(storages(n) for n in nodes))


def _by_schema(node: torch.fx.Node, overloads: Iterable[OpOverload]) -> frozenset[int]:
    def given(place: int, name: str) -> Any:
        return node.args[place] if place < len(node.args) else node.kwargs.get(name)

    found: list[Any] = []
    for overload in overloads:
        schema = schema_of(overload)
        more = unsaid_writes(schema, given)
        for place, argument in enumerate(schema.arguments if more or schema.is_mutable else ()):
            said = argument.alias_info is not None and argument.alias_info.is_write
            if said or argument.name in more:
                found.append(given(place, argument.name))
    return _of(found)


def _by_arguments(node: torch.fx.Node, target: Any) -> frozenset[int]:
    """Writes asked for by an argument: ``inplace=True``, batch norm's statistics, renormed rows."""
    if not inspect.isfunction(target):
        return frozenset()
    try:
        call = inspect.signature(target).bind(*node.args, **node.kwargs)
    except (TypeError, ValueError):
        return frozenset()
    call.apply_defaults()  # instance_norm uses the input's statistics unless told otherwise
    bound = call.arguments
    named = {
        next(iter(bound), ""): bound.get("inplace") is True,
        "weight": bound.get("max_norm") is not None,
        "running_mean": bool(bound.get("training") or bound.get("use_input_stats")),
        "running_var": bool(bound.get("training") or bound.get("use_input_stats")),
    }
    return _of([bound.get(name) for name, written in named.items() if written])
