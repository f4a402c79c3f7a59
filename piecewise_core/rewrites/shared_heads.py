"""Key and value heads that a model repeats for attention, handed to attention unrepeated.

With grouped-query attention several query heads read one key head. Models that must run where
attention cannot share heads repeat them first; Hugging Face models do whenever there is a mask.
Repeating reads the whole cache and writes it again, several times as large, at every layer of every
step. A compiler that has the whole graph does so too, for attention's kernel wants memory; where
the graph is cut at attention, the cut is the place to leave it out.

Heads stay repeated where torch has no fused kernel for shared ones: its general way repeats them
itself, and takes much longer.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from itertools import takewhile
from typing import Any

import torch

from piecewise_core.graph import effects
from piecewise_core.graph.attention import Attention, attentions
from piecewise_core.graph.memory import storages
from piecewise_core.graph.sizes import at_least, expression, hint
from piecewise_core.torch_compat import functorch
from piecewise_core.torch_compat.fakes import FakeTensor
from piecewise_core.torch_compat.storages import fused_attention

__all__ = ["share_heads"]

_HEADS = 1
"""The axis of [batch, heads, length, width]."""

_COPIES = frozenset({"clone", "contiguous"})
_MERGES = frozenset({"flatten", "reshape", "view"})


def share_heads(graph: torch.fx.Graph, is_splitting: Callable[[torch.fx.Node], bool]) -> None:
    """Undo the repetition for every splitting attention that can share heads.

    What only repeated then has no user left. Attention that no cut is made at stays as it is, and
    so does one whose keys or values are written to once repeating them has begun.
    """
    for call in attentions(graph):
        if call.shares_heads or not is_splitting(call.node):
            continue
        keys, values = _repetition(call.key), _repetition(call.value)
        if not keys or not values or not _same_groups(call, keys[0], values[0]):
            continue
        if _written(keys, call.node) or _written(values, call.node):
            continue
        if _has_kernel(call, keys[0], values[0]):
            call.give(key=keys[0], value=values[0], enable_gqa=True)


def _repetition(result: Any) -> list[torch.fx.Node]:
    """A tensor [batch, groups, length, width], and what makes ``result`` of it by repeating heads.

    In the order of the graph; [] where ``result`` is made in another way.
    """
    chain = _back(result)
    repeats = [node for node in chain if _name(node) not in _COPIES]
    if not repeats:
        return []
    root = _first(chain[-1])
    shapes = [_shape(node) for node in (root, *reversed(repeats), result)]
    if root is None or not _repeats_heads(shapes):
        return []
    return [root, *reversed(chain)]


def _back(node: Any) -> list[torch.fx.Node]:
    """The operators behind ``node``, latest first, if they are such as repeat heads; else []."""
    chain: list[torch.fx.Node] = []
    for is_step in (_merges, _expands, _adds_axis):
        while _name(node) in _COPIES:
            chain.append(node)
            node = _first(node)
        if node is None or not (is_step(node) or (is_step is _merges and _interleaves(node))):
            return []
        chain.append(node)
        if _interleaves(node):
            break
        node = _first(node)
    return chain


def _repeats_heads(shapes: list[list[Any]]) -> bool:
    """Whether shapes leave nothing that was done but to repeat each head.

    [b, g, l, w] -> ([b, g, 1, l, w] -> [b, g, n, l, w] ->) [b, g * n, l, w]; the last comes twice.
    """
    first, *between, last = shapes
    if len(first) != 4 or len(last) != 4:
        return False
    batch, groups, *rest = first
    heads = last[_HEADS]
    whole = isinstance(groups, int) and isinstance(heads, int)
    if not whole or not 0 < groups < heads or heads % groups or last != [batch, heads, *rest]:
        return False
    wide = [[batch, groups, 1, *rest], [batch, groups, heads // groups, *rest]]
    return between in ([last], [*wide, last])


def _same_groups(call: Attention, key: torch.fx.Node, value: torch.fx.Node) -> bool:
    """Whether attention would share heads as the model repeated them."""
    query, repeated = _shape(call.query), _shape(call.key)
    same = len(query) == 4 and query[_HEADS] == repeated[_HEADS]
    return same and _shape(key)[_HEADS] == _shape(value)[_HEADS]


def _merges(node: torch.fx.Node) -> bool:
    return _name(node) in _MERGES


def _expands(node: torch.fx.Node) -> bool:
    return _name(node) == "expand"


def _adds_axis(node: torch.fx.Node) -> bool:
    """Whether ``node`` is ``x[:, :, None]``, or ``x.unsqueeze(2)``; shapes say which axis."""
    if node.target is not operator.getitem or not isinstance(node.args[1], tuple):
        return _name(node) == "unsqueeze"
    return all(part in (None, Ellipsis, slice(None)) for part in node.args[1])


def _interleaves(node: torch.fx.Node) -> bool:
    """Whether ``node`` repeats each of something as often as each other."""
    count = node.args[1] if len(node.args) > 1 else node.kwargs.get("repeats")
    return _name(node) == "repeat_interleave" and isinstance(count, int)


def _first(node: torch.fx.Node) -> torch.fx.Node | None:
    given: Any = node.args[0] if node.args else node.kwargs.get("input")
    return given if isinstance(given, torch.fx.Node) else None


def _name(node: Any) -> str:
    """What a method of tensors, or torch's function of the same name, is called."""
    if not isinstance(node, torch.fx.Node):
        return ""
    if node.op == "call_method":
        return str(node.target)
    own = node.op == "call_function" and isinstance(node.target, type(torch.flatten))
    return getattr(node.target, "__name__", "") if own else ""


def _shape(node: Any) -> list[Any]:
    """Sizes as numbers or expressions; [] of what is no ordinary tensor."""
    value = node.meta.get("example_value") if isinstance(node, torch.fx.Node) else None
    if not isinstance(value, FakeTensor) or functorch.is_functorch_wrapped_tensor(value):
        return []
    return [expression(size) for size in value.shape]


def _written(repetition: list[torch.fx.Node], reader: torch.fx.Node) -> bool:
    """Whether anything from the first step of a repetition to its reader writes to its memory."""
    memory = frozenset().union(*map(storages, repetition))
    nodes = iter(reader.graph.nodes)
    next(n for n in nodes if n is repetition[1])
    return any(memory & effects.writes(n) for n in takewhile(lambda n: n is not reader, nodes))


def _has_kernel(call: Attention, key: torch.fx.Node, value: torch.fx.Node) -> bool:
    """Whether torch has a fused kernel for shared heads, as traced and at the least sizes.

    Asked with real memory: fake tensors of a CPU are told that there is none.
    """
    if isinstance(call.dropout, torch.fx.Node) or isinstance(call.causal, torch.fx.Node):
        return False
    nodes = [call.query, key, value, *([] if call.mask is None else [call.mask])]
    if not all(map(_shape, nodes)):
        return False
    try:
        return all(_chosen(call, *(_real(n, number) for n in nodes)) for number in (hint, at_least))
    except (RuntimeError, TypeError):  # of a device that does not choose, or has no room
        return False


def _chosen(
    call: Attention,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
) -> bool:
    choice: int = fused_attention(
        query, key, value, mask, call.dropout, call.causal, scale=None, enable_gqa=True
    )
    return choice > 0  # 0: the general way; -1: none at all


def _real(node: torch.fx.Node, number: Callable[[Any], int]) -> torch.Tensor:
    """Memory of the kind that ``node`` will give, with anything in it.

    Of a batch only one row: caches are made to fill a device, and kernels do not ask how many.
    """
    value = node.meta["example_value"]
    sizes, strides = ([number(n) for n in every] for every in (value.shape, value.stride()))
    if len(sizes) == 4:
        sizes[0] = min(sizes[0], 1)
    return torch.empty_strided(sizes, strides, dtype=value.dtype, device=value.device)
