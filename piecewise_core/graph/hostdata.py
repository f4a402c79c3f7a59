"""Data of the host in a program of a device: what a node brings there, and what it is made of."""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch

from piecewise_core.graph.memory import values
from piecewise_core.graph.names import called_name
from piecewise_core.torch_compat.fakes import FakeTensor

__all__ = ["bytes_of", "is_list_of_lists", "number_of", "on_device", "positions", "settle"]

_INDEXING = (operator.getitem, operator.setitem)
_TAKING = frozenset({"copy_", "index_put", "index_put_", "where"})
"""Other operations that move what they are given to the device of what it goes into."""


def number_of(value: torch.Tensor) -> Any:
    """The number that all elements of ``value`` are, bit by bit; None where there is no such."""
    if not value.is_contiguous() or value.dtype.is_complex:
        return None
    number = value.reshape(-1)[0].item() if value.numel() else 0
    try:
        filled = torch.full(value.shape, number, dtype=value.dtype)
    except (RuntimeError, TypeError):  # a dtype that nothing fills
        return None
    return number if bytes_of(filled) == bytes_of(value) else None


def bytes_of(value: torch.Tensor) -> bytes:
    """The elements of ``value`` in order."""
    flat = value.detach().cpu().contiguous()
    return ctypes.string_at(flat.data_ptr(), flat.nbytes) if flat.nbytes else b""


def settle(node: torch.fx.Node, known: Mapping[torch.fx.Node, torch.Tensor]) -> None:
    """Write out the dtype and device that ``node`` would take from a tensor that it is given.

    Of ``x.new_tensor(numbers)``, and of ``known.to(x)`` and ``known.type_as(x)``, where ``known``
    has the literals: they make the same of every ``x`` that the trace holds for.
    """
    if node.op != "call_method" or len(node.args) < 2:
        return
    source, given, *rest = node.args
    makes = node.target == "new_tensor"
    if makes == (source in known) or node.target not in ("new_tensor", "to", "type_as"):
        return
    like = source if makes else given
    example = like.meta.get("example_value") if isinstance(like, torch.fx.Node) else None
    if not isinstance(example, FakeTensor):
        return
    if not makes:
        node.target, node.args = "to", (source, example.device, example.dtype, *rest)
    elif node.all_input_nodes == [source]:
        node.op, node.target, node.args = "call_function", torch.tensor, (given,)
        node.kwargs = {"dtype": example.dtype, "device": example.device, **node.kwargs}


def on_device(
    node: torch.fx.Node,
    known: Mapping[torch.fx.Node, torch.Tensor],
    hold: Callable[[torch.Tensor], torch.fx.Node],
) -> tuple[Any, ...] | None:
    """The arguments of ``node`` with what it would move from the host already where it goes.

    That is lists of numbers in an index, and literals of the CPU. ``known``: the literals so far;
    ``hold``: makes a node of a tensor. None where there is nothing of that kind.
    """
    indexing = node.target in _INDEXING
    if not indexing and called_name(node) not in _TAKING:
        return None
    into = node.args[0]
    example = into.meta.get("example_value") if isinstance(into, torch.fx.Node) else None
    if not isinstance(example, FakeTensor) or len(node.args) < 2:
        return None
    device = example.device

    def moved(item: Any) -> Any:
        if isinstance(item, (tuple, list)):
            return type(item)(map(moved, item))
        value = known.get(item) if isinstance(item, torch.fx.Node) else None
        return item if value is None or value.device == device else hold(value.to(device))

    def at(item: Any) -> Any:
        """One item of an index."""
        if isinstance(item, torch.fx.Node):
            value = known.get(item)
            if value is not None and value.dim() == 0 and not value.is_floating_point():
                return value.item()  # as torch does: a number selects
            return moved(item)
        found = positions(item)
        return item if found is None else hold(found.to(device))

    index, *rest = node.args[1:]
    if not indexing:
        index = moved(index)
    elif isinstance(index, tuple):
        index = tuple(map(at, index))
    elif not is_list_of_lists(index):
        index = at(index)
    args = (into, index, *map(moved, rest))
    return None if args == tuple(node.args) else args


def positions(item: Any) -> torch.Tensor | None:
    """A list of numbers or a mask in an index, as the positions that it names."""
    if not isinstance(item, (list, tuple, range)):
        return None
    if not all(isinstance(part, (bool, int, range)) for part in values(item)):
        return None
    if item and all(isinstance(part, bool) for part in item):
        item = [place for place, taken in enumerate(item) if taken]
    elif any(isinstance(part, bool) for part in values(item)):
        return None
    return torch.tensor(list(item), dtype=torch.long)


def is_list_of_lists(index: Any) -> bool:
    """Whether an index that is no tuple holds lists: versions of torch differ in what it means."""
    return isinstance(index, (list, range)) and not all(isinstance(i, int) for i in index)
