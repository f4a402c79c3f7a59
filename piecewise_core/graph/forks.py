"""Parts of a program that do not depend on each other, for two streams of one captured graph.

A *fork* has two lanes: what is in one depends on nothing of the other, and what depends on both
comes behind their join. Lanes hold what only computes: nothing there writes to memory, draws random
numbers, talks to other processes, reads what the host holds, or is anybody's own operator. Each has
a product with weights at least; a lane that is next to nothing beside the other is none. Products
of one input alone (query, key, value) are left together: one kernel may do them all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from piecewise_core.graph import effects
from piecewise_core.graph.collectives import is_collective
from piecewise_core.graph.contexts import (
    functorch_units,
    is_autocast_enter,
    is_autocast_exit,
    is_switch,
)
from piecewise_core.graph.laneends import Key, trimmed
from piecewise_core.graph.memory import values
from piecewise_core.graph.opfacts import runs_foreign
from piecewise_core.graph.products import Products
from piecewise_core.graph.randomness import draws
from piecewise_core.graph.segments import is_size, made_by, users_of, working
from piecewise_core.graph.varying import varies
from piecewise_core.graph.windows import Group, windows

__all__ = ["Forks", "Lane", "find_forks"]

Lane = tuple[int, int]
"""The number of a fork, and 0 for what stays on the capturing stream or 1 for the other's."""

_Node = torch.fx.Node


@dataclass(frozen=True)
class Forks:
    """``order``: of all nodes that work. ``lanes``: of those in a fork, which lie side by side."""

    order: tuple[_Node, ...] = ()
    lanes: Mapping[_Node, Lane] = field(default_factory=dict)


def find_forks(graph: torch.fx.Graph, weights: Iterable[_Node], device_type: str) -> Forks:
    """The forks of ``graph``. Its own order stays as it is.

    ``weights``: inputs that are the model's own. ``device_type``: of graphs; what has a tensor
    elsewhere is in no fork.
    """
    products = Products(graph, weights)
    order: list[_Node] = []
    lanes: dict[_Node, Lane] = {}
    count = 0
    for plain, nodes in _spans(graph, device_type):
        if not plain:
            order += nodes
            continue
        keys, found = _placed(nodes, products)
        order += sorted(nodes, key=keys.__getitem__)  # stable
        inside = {n: (count + at // 2, lane) for n, (at, lane) in keys.items() if lane >= 0}
        lanes |= inside
        count += found
    return Forks(tuple(order), lanes)


def _spans(graph: torch.fx.Graph, device_type: str) -> list[tuple[bool, list[_Node]]]:
    """The working nodes in runs of those that forks may hold, and of the others."""
    found: list[tuple[bool, list[_Node]]] = []
    for unit in functorch_units(working(graph)):
        plain = len(unit) == 1 and _is_plain(unit[0], device_type)
        if found and found[-1][0] == plain:
            found[-1][1].extend(unit)
        else:
            found.append((plain, unit))
    return found


def _is_plain(node: _Node, device_type: str) -> bool:
    """Whether a node only computes tensors of tensors, all on the device, by operators of torch."""
    if node.op not in ("call_function", "call_method") or runs_foreign(node):
        return False
    if is_switch(node) or is_autocast_enter(node) or is_autocast_exit(node):
        return False
    if effects.writes(node) or effects.reshapes(node) or effects.goes_by_memory(node):
        return False
    if draws(node) or is_collective(node.target) or varies(node):
        return False
    made = list(values(node.meta.get("example_value")))
    given = [v for n in node.all_input_nodes if not is_size(n) for v in values(_value(n))]
    tensors = [v for v in (*made, *given) if isinstance(v, torch.Tensor)]
    return any(isinstance(v, torch.Tensor) for v in made) and all(
        t.device.type == device_type for t in tensors
    )


def _value(node: _Node) -> object:
    return node.meta.get("example_value")


def _placed(nodes: Sequence[_Node], products: Products) -> tuple[dict[_Node, Key], int]:
    """Where each node of a span goes, and how many forks there are."""
    groups, group_of = _groups(nodes, products)
    found = windows(groups)
    phases: dict[int, Key] = {}
    window_of: dict[int, int] = {}
    for k, window in enumerate(found):
        window_of |= dict.fromkeys(range(window.first, window.last + 1), k)
        phases |= {group: (2 * k + 1, lane) for group, lane in window.lanes.items()}
    passed = 0
    for group in range(len(groups)):
        passed += sum(window.last + 1 == group for window in found)
        if group not in window_of:
            phases[group] = (2 * passed, -1)
    keys: dict[_Node, Key] = {}
    inside = set(nodes)
    end = (2 * len(found), -1)
    for node in reversed(nodes):
        fixed = None if node not in group_of else phases.get(group_of[node])
        keys[node] = fixed or _before(keys[u] for u in users_of(node) if u in inside) or end
    return trimmed(keys, nodes), len(found)


def _before(users: Iterable[Key]) -> Key | None:
    """Where a node goes that is not weighed: to the first that need it, ahead of two lanes."""
    found = set(users)
    if not found:
        return None
    first = min(at for at, _ in found)
    lanes = {lane for at, lane in found if at == first}
    return (first, lanes.pop()) if len(lanes) == 1 else (first, -1)


def _groups(nodes: Sequence[_Node], products: Products) -> tuple[list[Group], dict[_Node, int]]:
    """What hangs together, in order: a product, or what joins several, and all behind it alone."""
    groups: list[Group] = []
    group_of: dict[_Node, int] = {}
    for node in nodes:
        before = {group_of[p] for n in node.all_input_nodes if (p := made_by(n)) in group_of}
        product = products.of(node)
        if product is None and not before:
            continue
        if product is None and len(before) == 1:
            group_of[node] = before.pop()
            continue
        group_of[node] = len(groups)
        groups.append(Group(frozenset(before), *(product or (0, None))))
    return groups, group_of
