"""All-reduces of small messages, by memory that all processes of the group read.

A library of collectives takes about 10 us for a message of some kilobytes, two for each layer of a
split decoder; a kernel that reads the other devices' memory about 4. Which way a message goes is
decided by its size when it is made, so one piece serves all sizes (``graph.sums``).

Only what the library would do in the same order on every process is taken: sums that are waited for
where they are made, each of which depends on the collective before it, so that no compiler can
exchange two of them. Where ranks do not agree on such memory the operator asks the library.
"""

from __future__ import annotations

from typing import Any, Literal

import torch

from piecewise_core.graph import effects
from piecewise_core.graph.collectives import is_collective
from piecewise_core.graph.memory import storages
from piecewise_core.graph.sums import LARGEST, NOBODY, sum_over
from piecewise_core.protocols import SymmetricMemory
from piecewise_core.ranks.sharing import Sharing
from piecewise_core.rewrites.entry import Test

__all__ = ["NAME", "SmallAllReduces"]

NAME = "small_all_reduces"


class SmallAllReduces:
    """The rewrite of one model. ``sharing``: its memory, which ranks begin."""

    def __init__(self, by: SymmetricMemory) -> None:
        self.name, self.key = NAME, "1"
        self.level: Literal["program", "piece"] = "program"
        self.sharing = Sharing(by)

    def apply(self, graph: torch.fx.GraphModule, is_splitting: Test) -> None:
        """Replace them in place."""
        wanted = self.sharing.wanted() and not self.sharing.why
        found = [n for n in graph.graph.nodes if n.op == "call_function"]
        collectives = [n for n in found if is_collective(n.target)]
        ordered = _in_order(graph.graph, collectives)
        for node in collectives:
            if node.target is sum_over:  # of a bundle: its number was another model's
                node.args = (*node.args[:-1], self.sharing.slot if wanted else NOBODY)
            elif wanted and node in ordered and not is_splitting(node):
                _replace(node, self.sharing.slot)


def _in_order(graph: torch.fx.Graph, found: list[torch.fx.Node]) -> set[torch.fx.Node]:
    """Those of ``found`` of which each other one is a cause or an effect.

    By values, and by memory: what ``dist.all_reduce`` writes in place is read by other names.
    """
    bits = {node: 1 << place for place, node in enumerate(found)}
    causes: dict[torch.fx.Node, int] = {}
    written: dict[int, int] = {}
    for node in graph.nodes:
        given = node.all_input_nodes
        read = frozenset().union(*map(storages, given))
        masks = (*(causes[used] for used in given), *(written.get(one, 0) for one in read))
        causes[node] = _union(masks) | bits.get(node, 0)
        written |= {one: written.get(one, 0) | causes[node] for one in effects.writes(node)}
    after = {node: _union(bits[n] for n in found if causes[n] & bits[node]) for node in found}
    every = _union(bits.values())
    return {node for node in found if causes[node] | after[node] == every}


def _union(masks: Any) -> int:
    found = 0
    for mask in masks:
        found |= mask
    return found


def _replace(node: torch.fx.Node, slot: int) -> None:
    """One all-reduce and its wait."""
    wait = next(iter(node.users), None)
    if not _is_small_sum(node) or len(node.users) != 1 or wait is not node.next or wait is None:
        return
    if "wait_tensor" not in str(wait.target):
        return
    with node.graph.inserting_before(node):
        made = node.graph.call_function(sum_over, (*node.args, slot))
    made.meta = dict(wait.meta)
    wait.replace_all_uses_with(made)
    node.graph.erase_node(wait)
    node.graph.erase_node(node)


def _is_small_sum(node: torch.fx.Node) -> bool:
    """Whether it may be: of sizes that vary, some are."""
    functional = torch.ops._c10d_functional.all_reduce
    if node.target not in (functional, functional.default) or node.kwargs or len(node.args) != 3:
        return False
    x, reduction = node.args[0], node.args[1]
    value = x.meta.get("example_value") if isinstance(x, torch.fx.Node) else None
    if not isinstance(value, torch.Tensor) or reduction != "sum" or not value.is_contiguous():
        return False
    nbytes: Any = value.numel() * value.element_size()
    return isinstance(nbytes, torch.SymInt) or nbytes <= LARGEST
