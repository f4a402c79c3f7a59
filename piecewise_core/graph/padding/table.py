"""Every rule, by the name of its operator."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch

from piecewise_core.graph.padding import (
    elementwise,
    factories,
    lookups,
    products,
    reductions,
    views,
    windows,
)
from piecewise_core.graph.padding.rule import Rule
from piecewise_core.graph.sums import NAME
from piecewise_core.torch_compat.operators import OpOverload, schema_of

__all__ = ["has_rule", "rule_of"]

_RULES: Mapping[str, Rule] = MappingProxyType(
    {
        **elementwise.RULES,
        **views.RULES,
        **reductions.RULES,
        **products.RULES,
        **lookups.RULES,
        **windows.RULES,
        **factories.RULES,
    }
)


_TOGETHER = ("_c10d_functional::all_reduce", "_c10d_functional::wait_tensor", NAME)
"""Collectives that treat each element alone, with its like on other ranks; and their wait."""


def rule_of(op: OpOverload) -> Rule | None:
    """The rule of an operator; None where there is none.

    An operator of anybody's that is tagged ``torch.Tag.pointwise`` says of itself that it treats
    each element alone.
    """
    if _is_pointwise(op):
        return elementwise.POINTWISE
    if schema_of(op).name in _TOGETHER:
        return elementwise.POINTWISE  # ranks pad alike, or none does (``piecewise_core.ranks``)
    if op.namespace != "aten":
        return None
    return _RULES.get(schema_of(op).name.partition("::")[2])


def has_rule(op: OpOverload) -> bool:
    """Whether ``rule_of`` knows an operator."""
    return rule_of(op) is not None


def _is_pointwise(op: OpOverload) -> bool:
    # torch tags ``equal`` so, which compares whole tensors to one truth value.
    tensors = bool(schema_of(op).returns) and all(
        isinstance(r.type, torch.TensorType) for r in schema_of(op).returns
    )
    return torch.Tag.pointwise in op.tags and tensors
