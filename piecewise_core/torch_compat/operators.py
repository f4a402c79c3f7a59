"""Operators and what torch knows of each; known in 2.11 to 2.13, no fallback."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from piecewise_core.torch_compat.lookup import needed, reader

with needed():
    from torch._decomp import decomposition_table
    from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket

    all_names = torch._C._dispatch_get_all_op_names

__all__ = [
    "HigherOrderOperator",
    "OpOverload",
    "OpOverloadPacket",
    "all_names",
    "can_decompose",
    "changes_itself",
    "decomposition_table",
    "higher_order_name",
    "overload_name",
    "overloads_of",
    "packet_name",
    "runs_by_key",
    "schema_name",
    "schema_of",
    "schema_or_none",
]

_UNTAGGED = frozenset({"aten::shallow_copy_data_"})
"""``x.data = y`` from 2.14 on, without the tag that ``set_`` has, which it was before."""

_PACKET = torch.ops.aten.add
_OVERLOAD = _PACKET.Tensor

schema_of = reader(_OVERLOAD, "_schema")
"""The schema of an OpOverload."""

overload_name = reader(_OVERLOAD, "_overloadname")
"""The part of an OpOverload's name behind the point."""

packet_name = reader(_PACKET, "_qualified_op_name")
"""``aten::add``, of an OpOverloadPacket."""

_can_decompose = reader(_OVERLOAD, "_can_decompose")


def overloads_of(target: Any) -> list[OpOverload]:
    """An operator itself, or all of a packet's; none of anything else."""
    if isinstance(target, OpOverload):
        return [target]
    if isinstance(target, OpOverloadPacket):
        names: list[str] = target.overloads()  # type: ignore[no-untyped-call]
        return [getattr(target, name) for name in names]
    return []


def can_decompose(op: OpOverload) -> bool:
    """Whether ``op`` is made of other operators."""
    try:
        return bool(_can_decompose(op)())
    except RuntimeError:  # only Python knows it: nested tensors ask for aten::sym_size
        return False


def changes_itself(fn: Any) -> bool:
    """Whether an operator changes sizes, strides or memory of the tensor object it is given."""
    return torch.Tag.inplace_view in getattr(fn, "tags", ()) or schema_name(fn) in _UNTAGGED


def schema_name(fn: Any) -> str:
    """``aten::add`` for what has a schema, else ""."""
    name: str = getattr(schema_or_none(fn), "name", "")
    return name


def schema_or_none(fn: Any) -> Any:
    """The schema of an OpOverload; None of anything else."""
    return getattr(fn, "_schema", None)


def runs_by_key(fn: Any) -> Callable[..., Any] | None:
    """What runs the kernel that an operator has for a dispatch key, given first; None without."""
    found: Callable[..., Any] | None = getattr(fn, "_op_dk", None)
    return found


def higher_order_name(operator: HigherOrderOperator) -> str:
    """``cond``, say."""
    return str(getattr(operator, "_name", operator))
