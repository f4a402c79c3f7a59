"""Cut a traced graph's nodes into runs, in their own order: nothing is ever moved.

Two kinds of node belong to no run. Sizes are recomputed wherever they are needed, from the
dims; an item of a multi-output operator (``getitem`` by a constant) stays with its producer.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from piecewise_core.graph.cleaning import is_autocast_enter, is_autocast_exit
from piecewise_core.graph.effects import values

__all__ = ["Segment", "is_item", "is_size", "normalise", "segments"]

_SCALARS = (int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool)


@dataclass
class Segment:
    """A run of nodes between cuts.

    ``splitting``: runs as written, never compiled. ``entered``: autocast regions that are open
    where the run begins.
    """

    splitting: bool
    entered: tuple[torch.fx.Node, ...]
    nodes: list[torch.fx.Node] = field(default_factory=list)

    @property
    def has_work(self) -> bool:
        """Whether anything but autocast switches is in it."""
        return any(not (is_autocast_enter(n) or is_autocast_exit(n)) for n in self.nodes)


def is_size(node: torch.fx.Node) -> bool:
    """Whether a node's value is made of sizes only: an int, a SymInt, a torch.Size."""
    if node.op == "output" or "example_value" not in node.meta:
        return False
    found = list(values(node.meta["example_value"]))
    return bool(found) and all(isinstance(v, _SCALARS) for v in found)


def is_item(node: torch.fx.Node) -> bool:
    """Whether a node picks one item of a tuple of tensors by a constant index."""
    if node.target is not operator.getitem or not isinstance(node.args[1], int):
        return False
    producer = node.args[0]
    value = producer.meta.get("example_value") if isinstance(producer, torch.fx.Node) else None
    return isinstance(value, (tuple, list)) and not isinstance(value, torch.Size)


def normalise(graph: torch.fx.Graph) -> None:
    """Give every item of a multi-output operator its own node, right behind the operator."""
    for producer in list(graph.nodes):
        value = producer.meta.get("example_value")
        if producer.op in ("output", "placeholder") or not isinstance(value, (tuple, list)):
            continue
        if isinstance(value, torch.Size) or is_size(producer):
            continue
        _own_items(graph, producer, value)


def _own_items(graph: torch.fx.Graph, producer: torch.fx.Node, value: Any) -> None:
    users = list(producer.users)
    items: list[Any] = []
    with graph.inserting_after(producer):
        for place in reversed(range(len(value))):
            item = graph.call_function(operator.getitem, (producer, place))
            item.meta = {**producer.meta, "example_value": value[place]}
            items.insert(0, item)
    whole = type(value)(items) if type(value) in (tuple, list) else tuple(items)
    for user in users:
        if is_item(user) and user.args[0] is producer:
            user.replace_all_uses_with(items[user.args[1]])
            graph.erase_node(user)
        else:
            swap: Callable[[torch.fx.Node], Any] = lambda n: whole if n is producer else n  # noqa: E731
            user.args = torch.fx.node.map_arg(user.args, swap)
            user.kwargs = torch.fx.node.map_arg(user.kwargs, swap)
    for item in items:
        if not item.users:
            graph.erase_node(item)


def segments(graph: torch.fx.Graph, is_splitting: Callable[[torch.fx.Node], bool]) -> list[Segment]:
    """The runs of ``graph`` in order; runs without work are left out, neighbours of one kind joined."""
    found: list[Segment] = []
    entered: list[torch.fx.Node] = []
    for node in _working(graph):
        splitting = is_splitting(node)
        switch = is_autocast_enter(node) or is_autocast_exit(node)
        if not found or (found[-1].splitting != splitting and not (switch and not splitting)):
            found.append(Segment(splitting, tuple(entered)))
        elif switch and found[-1].splitting:
            found.append(Segment(False, tuple(entered)))
        found[-1].nodes.append(node)
        if is_autocast_enter(node):
            entered.append(node)
        elif is_autocast_exit(node):
            entered.remove(node.args[0])  # type: ignore[arg-type]
    return _joined([s for s in found if s.has_work])


def _working(graph: torch.fx.Graph) -> Iterator[torch.fx.Node]:
    for node in graph.nodes:
        if node.op in ("placeholder", "output", "get_attr") or is_size(node) or is_item(node):
            continue
        yield node


def _joined(found: list[Segment]) -> list[Segment]:
    """Splitting runs that only an empty run parted are one run, if under the same autocast."""
    joined: list[Segment] = []
    for segment in found:
        last = joined[-1] if joined else None
        if last and last.splitting and segment.splitting and last.entered == segment.entered:
            last.nodes += segment.nodes
        else:
            joined.append(segment)
    return joined
