"""Which memory a node's values live in, read off the fake tensors of the trace.

Views share their storage there as they do on a device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from piecewise_core.graph.entries import entries, items
from piecewise_core.torch_compat import functorch
from piecewise_core.torch_compat.storages import memory_key

__all__ = ["memory_of", "shared", "storages", "tensor_inputs", "values"]


def values(item: Any) -> Iterator[Any]:
    """The leaves of a value made of tuples, lists and dicts."""
    if isinstance(item, (tuple, list)):
        for part in items(item):
            yield from values(part)
    elif isinstance(item, dict):
        for part in entries(item).values():
            yield from values(part)
    else:
        yield item


def storages(node: torch.fx.Node) -> frozenset[int]:
    """Identities of the memory that a node's tensors live in."""
    found = values(node.meta.get("example_value"))
    return frozenset(memory_of(t) for t in found if isinstance(t, torch.Tensor))


def tensor_inputs(node: torch.fx.Node) -> list[torch.fx.Node]:
    """The nodes among a node's arguments that carry tensors."""
    return [n for n in node.all_input_nodes if storages(n)]


def shared(nodes: Iterable[torch.fx.Node]) -> frozenset[int]:
    """Memory that more than one of ``nodes`` lives in."""
    seen: set[int] = set()
    twice: set[int] = set()
    for node in nodes:
        found = storages(node)
        twice |= seen & found
        seen |= found
    return frozenset(twice)


def memory_of(tensor: torch.Tensor) -> int:
    """The storage's identity; that of the tensor inside, where vmap or grad wrapped one."""
    while functorch.is_functorch_wrapped_tensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    found: int = memory_key(tensor)
    return found
