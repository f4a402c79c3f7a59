"""Operators from outside torch that a trace holds, and whether they are still the same.

A trace believes what an operator's fake kernel says of its results.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType
from typing import Any

import torch

from piecewise_core.graph.codedigests import code_digest
from piecewise_core.graph.names import bodies
from piecewise_core.torch_compat.custom_ops import fake_kernel, fake_of
from piecewise_core.torch_compat.operators import OpOverload, overloads_of, schema_of

__all__ = ["UNKNOWN", "changed_ops", "is_foreign", "op_facts", "runs_foreign"]

UNKNOWN = "unknown"
"""Of an operator whose fake kernel is native code: nobody can tell versions of it apart."""

_KNOWN = frozenset(
    {"aten", "prims", "prim", "inductor", "higher_order", "_c10d_functional", "c10d", "piecewise"}
)
"""Namespaces of torch's operators, and of ours."""

_MODULES = frozenset({"torch", "operator", "_operator", "builtins", "math", "piecewise_core"})
"""Where functions are that Dynamo leaves in graphs by itself."""


def is_foreign(target: Any) -> bool:
    """Whether the target of a graph's node is an operator of somebody else's."""
    return any(op.namespace not in _KNOWN for op in overloads_of(target))


def runs_foreign(node: torch.fx.Node) -> bool:
    """Whether a node runs somebody else's code, which may keep what it is given."""
    if node.op != "call_function":
        return node.op == "call_module"
    place = str(getattr(node.target, "__module__", None) or type(node.target).__module__)
    others = is_foreign(node.target) or place.partition(".")[0] not in _MODULES
    return others or any(runs_foreign(inner) for body in bodies(node) for inner in body.nodes)


def op_facts(module: torch.fx.GraphModule) -> dict[str, str]:
    """Name -> digest of the schema and the fake kernel, of every operator of others."""
    return {_name(op): _digest(op) for op in _operators(module) if op.namespace not in _KNOWN}


def changed_ops(facts: Mapping[str, str]) -> Iterator[str]:
    """What is no longer as it was, one sentence each."""
    for name, digest in facts.items():
        op = _find(name)
        if op is None:
            yield f"operator {name} is not registered"
        elif _digest(op) != digest:
            yield f"operator {name} has another schema or another fake kernel"


def _operators(module: torch.fx.GraphModule) -> Iterator[OpOverload]:
    for part in module.modules():
        if isinstance(part, torch.fx.GraphModule):
            for node in part.graph.nodes:
                yield from overloads_of(node.target)


def _name(op: OpOverload) -> str:
    return str(op.name())  # type: ignore[no-untyped-call]


def _find(name: str) -> OpOverload | None:
    space, _, rest = name.partition("::")
    op, _, overload = rest.partition(".")
    try:
        found = getattr(getattr(getattr(torch.ops, space), op), overload or "default")
    except AttributeError:
        return None
    return found if isinstance(found, OpOverload) else None


def _digest(op: OpOverload) -> str:
    codes = sorted({code_digest(code) for code in _codes(fake_kernel(_name(op)))})
    if not codes:
        return UNKNOWN
    return hashlib.sha256("\n".join([str(schema_of(op)), *codes]).encode()).hexdigest()[:32]


def _codes(function: Any) -> Iterator[CodeType]:
    """The code of a fake kernel and of the functions that it closes over."""
    seen: set[int] = set()
    open_ends = [function]
    while open_ends:
        value = open_ends.pop()
        if value is None or id(value) in seen:
            continue
        seen.add(id(value))
        open_ends.append(fake_of(value))
        if isinstance(value, FunctionType):
            yield value.__code__
            open_ends += [c.cell_contents for c in value.__closure__ or () if _is_set(c)]


def _is_set(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018  # empty cells raise
    except ValueError:
        return False
    return True
