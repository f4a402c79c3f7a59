"""What a program reads by where it lies in memory, where graphs read copies: ``as_strided``.

A copy has the elements of a tensor. What lies around and between them it has not, and it begins
where its own memory begins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch

from piecewise_core.errors import CaptureFailed
from piecewise_core.graph.effects import goes_by_memory
from piecewise_core.graph.memory import storages, tensor_inputs
from piecewise_core.graph.names import source_of
from piecewise_core.graph.split import Program
from piecewise_core.torch_compat import pytree

__all__ = [
    "addresses_inputs",
    "all_of_memory",
    "is_all_of_memory",
    "meets",
    "refuse_input",
    "refuse_part",
]

_ADVICE = "such calls run without graphs. Give as_strided a .contiguous() tensor made in between"


def is_all_of_memory(tensor: torch.Tensor) -> bool:
    """Whether a copy of ``tensor`` has all that its memory has, at the same places."""
    return tensor.untyped_storage().nbytes() == tensor.nbytes and not tensor.storage_offset()


def all_of_memory(fit: Callable[[Any], Any] | None) -> Callable[[Any], Any]:
    """``fit``, which brings results to a layout; CaptureFailed for results that lie within more."""

    def whole(result: Any) -> Any:
        found = result if fit is None else fit(result)
        for leaf in pytree.tree_leaves(found):
            if isinstance(leaf, torch.Tensor) and not is_all_of_memory(leaf):
                refuse_part(leaf)
        return found

    return whole


def refuse_part(tensor: torch.Tensor) -> NoReturn:
    """Raise CaptureFailed for what lies in memory of which graphs read a part."""
    raise CaptureFailed(
        "as_strided is given the result of a splitting op, which is a part of a larger memory "
        f"(shape {tuple(tensor.shape)}, strides {tensor.stride()}, offset "
        f"{tensor.storage_offset()}); graphs read a copy, which has that part alone: {_ADVICE}"
    )


def addresses_inputs(program: Program) -> str | None:
    """Where ``program`` gives as_strided an input of its calls, "" where unknown; None nowhere."""
    graph = program.traced.graph.graph
    given = [n for n in graph.nodes if n.op == "placeholder"]
    inputs = zip(given, program.traced.inputs, strict=True)
    memory = frozenset().union(*(storages(n) for n, s in inputs if s.tensor is not None))
    for node in filter(goes_by_memory, graph.nodes):
        if memory.intersection(*map(storages, tensor_inputs(node)[:1])):
            return source_of(node) or ""
    return None


def refuse_input(where: str) -> NoReturn:
    """Raise CaptureFailed for an input of which graphs read a copy."""
    raise CaptureFailed(
        f"as_strided is given an input of the call{f' at {where}' if where else ''}; graphs read a "
        f"copy, which has nothing of the memory around it: {_ADVICE}"
    )


def meets(
    tensors: Sequence[torch.Tensor], size: Sequence[int], stride: Sequence[int], offset: int
) -> bool:
    """Whether all that such a view reaches belongs to one of ``tensors`` of one memory."""
    last = max(map(_last, tensors))
    if 0 in size:
        return True
    if offset < 0 or offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) > last:
        return False
    own = torch.zeros(last + 1, dtype=torch.bool)
    for tensor in tensors:
        own.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).fill_(True)
    return bool(own.as_strided(size, stride, offset).all())


def _last(tensor: torch.Tensor) -> int:
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return int(tensor.storage_offset() + sum((n - 1) * step for n, step in steps))
