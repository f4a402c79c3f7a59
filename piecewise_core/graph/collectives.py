"""Collectives: operators that many processes run together, and what waits for their results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from piecewise_core.graph.segments import producer
from piecewise_core.graph.sums import NAME
from piecewise_core.torch_compat.operators import (
    OpOverload,
    OpOverloadPacket,
    packet_name,
    schema_of,
)

__all__ = ["is_collective", "is_functional", "keep_waits", "or_collectives"]

_FUNCTIONAL = ("_c10d_functional", "_c10d_functional_autograd")
_NONE = ("wait_tensor", "_wrap_tensor_autograd")
"""Operators beside them that move no data between processes."""


def is_functional(target: Any) -> bool:
    """Whether an operator is a collective whose result another operator waits for, or may."""
    namespace, name = _name(target)
    return (namespace in _FUNCTIONAL and name not in _NONE) or f"{namespace}::{name}" == NAME


def is_collective(target: Any) -> bool:
    """Whether an operator is a collective of either kind: functional, or into what it is given."""
    return _name(target)[0] == "c10d" or is_functional(target)


def or_collectives(matches: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """``matches``, and every collective: the host makes it, which no graph of a CPU repeats."""
    return lambda node: matches(node) or is_collective(node.target)


def keep_waits(
    graph: torch.fx.Graph, matches: Callable[[torch.fx.Node], bool]
) -> Callable[[torch.fx.Node], bool]:
    """``matches``, and every wait for a collective that it cuts at.

    A wait that a cut parts from its collective is put right behind it: a result is neither copied
    nor captured before it is there.
    """
    waits = {n: made for n in graph.nodes if (made := _collective_of(n)) is not None}
    if not waits:
        return matches
    order = {node: place for place, node in enumerate(graph.nodes)}
    cuts = [place for node, place in order.items() if matches(node)]
    for wait, made in reversed(waits.items()):
        if any(order[made] <= cut < order[wait] for cut in cuts):
            _behind(made, wait)
    return lambda node: matches(node) or (node in waits and matches(waits[node]))


def _collective_of(node: torch.fx.Node) -> torch.fx.Node | None:
    """The functional collective that ``node`` waits for; None where it is no such wait."""
    namespace, name = _name(node.target)
    if node.op != "call_function" or namespace not in _FUNCTIONAL or name != "wait_tensor":
        return None
    given = node.args[0] if node.args else None
    made = producer(given) if isinstance(given, torch.fx.Node) else None
    return made if made is not None and is_functional(made.target) else None


def _behind(made: torch.fx.Node, wait: torch.fx.Node) -> None:
    """Put a wait, and the item that it waits for, right behind their collective."""
    item: Any = wait.args[0]
    made.append(wait)
    while item is not made:
        made.append(item)
        item = item.args[0]


def _name(target: Any) -> tuple[str, str]:
    name = ""
    if isinstance(target, OpOverload):
        name = schema_of(target).name
    elif isinstance(target, OpOverloadPacket):
        name = packet_name(target)
    namespace, _, rest = name.partition("::")
    return namespace, rest
