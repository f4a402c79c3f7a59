"""Cut a traced graph's nodes into runs, in their own order: nothing is ever moved.

Two kinds of node belong to no run. Sizes are recomputed wherever they are needed, from the
dims; an item of a multi-output operator (``getitem`` by a constant) stays with its producer.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch

from piecewise_core.graph.contexts import (
    functorch_units,
    is_autocast_enter,
    is_autocast_exit,
    is_switch,
)
from piecewise_core.graph.effects import is_view
from piecewise_core.graph.memory import values
from piecewise_core.graph.varying import varies

__all__ = [
    "Segment",
    "is_item",
    "is_size",
    "made_by",
    "normalise",
    "producer",
    "segments",
    "users_of",
    "working",
]

_SCALARS = (int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool)


@dataclass
class Segment:
    """A run of nodes between cuts.

    ``splitting``: runs as written, never compiled. ``entered``: autocast regions that are open
    where the run begins. ``varies``: whether sizes in it depend on data; then it is splitting.
    ``lane``: of a fork, all that the run is in; None for what is in none.
    """

    splitting: bool
    entered: tuple[torch.fx.Node, ...]
    nodes: list[torch.fx.Node] = field(default_factory=list)
    varies: bool = False
    lane: tuple[int, int] | None = None

    @property
    def has_work(self) -> bool:
        """Whether anything but autocast switches is in it."""
        return any(not (is_autocast_enter(n) or is_autocast_exit(n)) for n in self.nodes)


def is_size(node: torch.fx.Node) -> bool:
    """Whether a node's value is made of sizes only: an int, a SymInt, a torch.Size.

    Not where one depends on data: it cannot be computed from the dims.
    """
    if node.op == "output" or "example_value" not in node.meta:
        return False
    found = list(values(node.meta["example_value"]))
    return bool(found) and all(isinstance(v, _SCALARS) for v in found) and not varies(node)


def is_item(node: torch.fx.Node) -> bool:
    """Whether a node picks one item of a tuple of tensors by a constant index."""
    if node.target is not operator.getitem or not isinstance(node.args[1], int):
        return False
    producer = node.args[0]
    value = producer.meta.get("example_value") if isinstance(producer, torch.fx.Node) else None
    return isinstance(value, (tuple, list)) and not isinstance(value, torch.Size)


def normalise(graph: torch.fx.Graph) -> None:
    """Give every item of a multi-output operator its own node, right behind the operator.

    So has an item of a list among the outputs.
    """
    waiting = list(reversed(graph.nodes))
    while waiting:
        node = waiting.pop()
        value = node.meta.get("example_value")
        if node.op in ("output", "placeholder") or not isinstance(value, (tuple, list)):
            continue
        if isinstance(value, torch.Size) or is_size(node) or not node.users:
            continue  # without users: nobody asks, or it was an item and another took its place
        waiting += reversed(_own_items(graph, node, value))


def producer(node: torch.fx.Node) -> torch.fx.Node:
    """The operator that a node's value is of: its own, or that which it is an item of."""
    while is_item(node):
        node = node.args[0]  # type: ignore[assignment]
    return node


def users_of(node: torch.fx.Node) -> list[torch.fx.Node]:
    """Nodes that need a value, through items of it."""
    found: list[torch.fx.Node] = []
    for user in node.users:
        found += [user] if producer(user) is user else users_of(user)
    return found


def made_by(node: torch.fx.Node) -> torch.fx.Node | None:
    """What works to make a value; sizes are computed from the dims."""
    return None if is_size(node) else producer(node)


def _own_items(graph: torch.fx.Graph, producer: torch.fx.Node, value: Any) -> list[torch.fx.Node]:
    users = list(producer.users)
    items: list[torch.fx.Node] = []
    with graph.inserting_after(producer):
        for place in reversed(range(len(value))):
            item = graph.call_function(operator.getitem, (producer, place))
            item.meta = {**producer.meta, "example_value": value[place]}
            items.insert(0, item)
    whole = type(value)(items) if type(value) in (tuple, list) else tuple(items)
    for user in users:
        index = user.args[1] if is_item(user) and user.args[0] is producer else None
        if isinstance(index, int):
            user.replace_all_uses_with(items[index])
            graph.erase_node(user)
        else:
            swap: Callable[[torch.fx.Node], Any] = lambda n: whole if n is producer else n  # noqa: E731
            user.args = torch.fx.node.map_arg(user.args, swap)
            user.kwargs = torch.fx.node.map_arg(user.kwargs, swap)
    for item in items:
        if not item.users:
            graph.erase_node(item)
    return [item for item in items if item.users]


def segments(
    graph: torch.fx.Graph,
    is_splitting: Callable[[torch.fx.Node], bool],
    order: Sequence[torch.fx.Node] = (),
    lanes: Mapping[torch.fx.Node, tuple[int, int]] = MappingProxyType({}),
) -> list[Segment]:
    """The runs of ``graph`` in order. ``is_splitting``: true of what varies, too.

    Runs without work are left out, runs of views belong to a splitting neighbour, and neighbours
    of one kind are joined. ``order``: in place of the graph's own. ``lanes``: of nodes in forks;
    a run is in one lane, or in none.
    """
    found: list[Segment] = []
    entered: list[torch.fx.Node] = []
    for unit in functorch_units(order or working(graph)):
        splitting = any(map(is_splitting, unit))
        varying = splitting and any(map(varies, unit))
        first = unit[0]
        lane = lanes.get(first)
        if found and found[-1].lane != lane:
            found.append(Segment(splitting, tuple(entered), varies=varying, lane=lane))
        elif splitting:
            _begin_splitting(found, entered, varying)
        elif not found or (found[-1].splitting and not is_switch(first)):
            # A switch behind a splitting op stays with it.
            found.append(Segment(False, tuple(entered), lane=lane))
        found[-1].nodes += unit
        if is_autocast_enter(first):
            entered.append(first)
        elif is_autocast_exit(first):
            entered.remove(first.args[0])  # type: ignore[arg-type]
    found = [s for s in found if s.has_work]
    _give_views_away(found, bool(lanes))
    return _joined(found)


def _begin_splitting(found: list[Segment], entered: list[torch.fx.Node], varying: bool) -> None:
    """Open a splitting run, unless one is open; switches right before it belong to it."""
    if found and found[-1].splitting and found[-1].varies == varying:
        return
    lane = found[-1].lane if found else None
    if found and found[-1].splitting:
        found.append(Segment(True, tuple(entered), varies=varying, lane=lane))
        return
    before = found[-1].nodes if found else []
    start = place = len(before)
    while place and (is_switch(before[place - 1]) or is_view(before[place - 1])):
        place -= 1
        start = place if is_switch(before[place]) else start
    switches = before[start:]
    del before[start:]
    found.append(Segment(True, tuple(entered), switches, varying, lane))


def working(graph: torch.fx.Graph) -> Iterator[torch.fx.Node]:
    """The nodes that runs are made of."""
    for node in graph.nodes:
        if node.op in ("placeholder", "output", "get_attr") or is_size(node) or is_item(node):
            continue
        yield node


def _give_views_away(found: Sequence[Segment], forked: bool) -> None:
    """Views alone are no work: beside a splitting run they run as written, as part of it.

    So they do wherever a fork has cut them off.
    """
    for place, segment in enumerate(found):
        beside = (*found[max(place - 1, 0) : place], *found[place + 1 : place + 2])
        neighbour = next((s for s in beside if s.splitting), None)
        working = [n for n in segment.nodes if not (is_autocast_enter(n) or is_autocast_exit(n))]
        if (neighbour is not None or forked) and all(map(is_view, working)):
            segment.splitting, segment.nodes = True, working
            segment.entered = () if neighbour is None else neighbour.entered
            # Autocast is nothing to views.


def _joined(found: Iterable[Segment]) -> list[Segment]:
    """Splitting runs that only an empty run parted are one run, if under the same autocast."""
    joined: list[Segment] = []
    for segment in found:
        last = joined[-1] if joined else None
        alike = last and (last.splitting, last.varies, last.lane) == (
            segment.splitting,
            segment.varies,
            segment.lane,
        )
        if last and alike and last.splitting and last.entered == segment.entered:
            last.nodes += segment.nodes
        else:
            joined.append(segment)
    return joined
