"""What stands for wrappers while a graph gets the tensors inside in place of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx.node import map_arg

from piecewise_core.graph.wrappers import leaves
from piecewise_core.torch_compat.pytree import tree_flatten

__all__ = [
    "Later",
    "Value",
    "Wrapped",
    "called",
    "is_wrapped",
    "leaves_of",
    "node_of",
    "with_early",
    "wrapped_in",
]

Value = Any
"""What a node gave: nodes, or containers of them, with a `Wrapped` for each wrapper."""


class Wrapped:
    """A wrapper as ``like`` around what ``nodes`` give."""

    def __init__(self, like: torch.Tensor, nodes: Sequence[torch.fx.Node]) -> None:
        self.like = like
        self.nodes = list(nodes)


class Later:
    """A wrapper that keeps more than its tensors: its node runs with each node that takes it."""

    def __init__(self, like: torch.Tensor, node: torch.fx.Node, given: dict[Any, Value]) -> None:
        self.like = like
        self.node = node
        self.given = given


def with_early(given: dict[torch.fx.Node, Value]) -> dict[torch.fx.Node, Value]:
    """``given`` with all that its later nodes take before them."""
    found: dict[torch.fx.Node, Value] = {}
    for node, value in given.items():
        if isinstance(value, Later):
            found |= with_early(value.given)
        found[node] = value
    return found


def called(node: torch.fx.Node, values_of: dict[torch.fx.Node, Any]) -> Any:
    """What a node gives for the values of its inputs."""
    args, kwargs = map_arg((node.args, node.kwargs), values_of.__getitem__)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    target: Any = node.target
    return target(*args, **kwargs)


def is_wrapped(value: Any) -> bool:
    """Whether nodes stand for the tensors inside of it."""
    return isinstance(value, Wrapped)


def wrapped_in(value: Value) -> list[Wrapped | Later]:
    """What stands for wrappers in the value of a node."""
    return [v for v in tree_flatten(value)[0] if isinstance(v, Wrapped | Later)]


def leaves_of(value: Any) -> list[Any]:
    """The plain tensors in a result, or the number that it is."""
    return leaves(value) if isinstance(value, torch.Tensor) else [value]


def node_of(value: Any, made: Any) -> Any:
    """The node of a result; a plain number stands for itself."""
    found = next(made)
    return found if isinstance(found, torch.fx.Node) else value
