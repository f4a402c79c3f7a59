"""Lanes begin and end where a compiler fuses nothing, so that being cut there costs nothing.

Inductor puts what lies around products into few kernels, and the end of a lane parts what it would
have fused: a DiT with forks took 1.05 times as long on one stream, on an H200, as one without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from piecewise_core.graph.convolutions import is_convolution
from piecewise_core.graph.effects import is_view
from piecewise_core.graph.names import called_name
from piecewise_core.graph.products import PRODUCTS
from piecewise_core.graph.segments import made_by, users_of

__all__ = ["Key", "trimmed"]

Key = tuple[int, int]
"""Where a node goes: an even number between two forks, an odd one in a fork, and its lane there; -1
for what lies ahead of both lanes, and between forks."""

_Node = torch.fx.Node
_Step = Callable[[_Node], list[_Node]]
_ATTENTION = ("scaled_dot_product_attention", "multi_head_attention_forward", "flex_attention")


def trimmed(keys: Mapping[_Node, Key], nodes: Sequence[_Node]) -> dict[_Node, Key]:
    """``keys`` of ``nodes``, which are in order, with what fuses across an end moved out of lanes.

    A lane that ends in a convolution with a bias is none: Inductor adds that behind it.
    """
    found = dict(keys)
    for node in reversed(nodes):
        at, lane = found[node]
        if lane >= 0 and _is_end(node, found, users_of, range(at + 1, at + 3)):
            found[node] = (at + 1, -1)
    for node in nodes:
        at, lane = found[node]
        if lane >= 0 and _is_end(node, found, _inputs, range(at - 2, at + 1)):
            found[node] = (at, -1)
    bad = {found[n][0] for n in nodes if found[n][1] >= 0 and _ends_biased(n, found)}
    return {node: (at, -1 if at in bad else lane) for node, (at, lane) in found.items()}


def _is_end(node: _Node, keys: Mapping[_Node, Key], step: _Step, near: range) -> bool:
    """Whether a node is the last of its lane to one side, and fuses with what is ``near`` there.

    That may be the end of a lane of the next fork, which then leaves its lane too.
    """
    if not _fuses(node) or any(keys.get(n) == keys[node] for n in step(node)):
        return False
    return any(_fuses(n) and n in keys and keys[n][0] in near for n in _seen(node, step))


def _inputs(node: _Node) -> list[_Node]:
    return [made for n in node.all_input_nodes if (made := made_by(n)) is not None]


def _fuses(node: _Node) -> bool:
    """Whether a compiler may put a node into one kernel with others; views are nothing to it."""
    name = called_name(node).partition(".")[0]
    return name not in PRODUCTS and name not in _ATTENTION


def _seen(node: _Node, step: _Step) -> Iterator[_Node]:
    """The nearest to one side that compute, through views; each may come more than once."""
    for other in step(node):
        if is_view(other):
            yield from _seen(other, step)
        else:
            yield other


def _ends_biased(node: _Node, keys: Mapping[_Node, Key]) -> bool:
    if not is_convolution(node):
        return False
    bias = node.kwargs.get("bias", node.args[2] if len(node.args) > 2 else None)
    return bias is not None and any(keys.get(n) != keys[node] for n in users_of(node))
