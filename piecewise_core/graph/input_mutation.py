"""The containers a call is given: a traced program cannot write to them, so none may change.

The traced entry makes them anew, which hides a write from the list of side effects that tracing
keeps; it returns them instead, and they are compared with what they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from piecewise_core.errors import UnsupportedSideEffect
from piecewise_core.graph.input_checks import same_value
from piecewise_core.graph.structure import Constant, Container, Node, Structure

__all__ = ["changeable", "refuse_changed"]


def changeable(structure: Structure) -> list[str]:
    """The parameters whose arguments hold a list or dict."""
    return [name for name, node in structure.arguments.items() if _holds_changeable(node)]


def _holds_changeable(node: Node) -> bool:
    return isinstance(node, Container) and (
        not issubclass(node.kind, tuple) or any(map(_holds_changeable, node.children))
    )


def refuse_changed(
    structure: Structure, after: Sequence[Any], tensors: Sequence[torch.Tensor]
) -> None:
    """Raise UnsupportedSideEffect when the model changed one of its ``changeable`` arguments.

    ``after``: the arguments after the call, made of ``tensors``, the flat inputs.
    """
    for name, value in zip(changeable(structure), after, strict=True):
        _check(structure.arguments[name], value, tensors)


def _check(node: Node, value: Any, tensors: Sequence[torch.Tensor]) -> None:
    if isinstance(node, Container):
        keys = tuple(value) if node.is_mapping else tuple(range(len(value)))
        same = type(value) is node.kind and keys == node.keys
    elif isinstance(node, Constant):
        same = value is node.value or same_value(value, node.value)
    else:
        same = value is tensors[node.index]
    if not same:
        raise UnsupportedSideEffect(
            f'the model changes argument "{node.path}" in place: a list or dict, which a traced '
            "program cannot write to; return the value instead"
        )
    if isinstance(node, Container):
        for key, child in zip(node.keys, node.children, strict=True):
            _check(child, value[key], tensors)
