"""The operator that sums over a group's processes in whichever way is fastest for the message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

import torch

from piecewise_core.errors import PlatformError
from piecewise_core.protocols import SymmetricMemory

__all__ = ["LARGEST", "NAME", "NOBODY", "Shares", "largest", "sum_over"]

NAME = "piecewise::all_reduce"

LARGEST = 512 * 2**10
"""Bytes of the largest message that any group sums by itself."""

NOBODY = -1
"""The slot of no model: the library sums."""


@dataclass(eq=False)
class Shares:
    """One model's symmetric memory. ``of``: by name of group, once all its processes have theirs.

    Each model has its own: two that run on streams of their own may sum at the same time.
    """

    by: SymmetricMemory
    of: Mapping[str, torch.Tensor] = field(default_factory=dict)
    slot: int = field(init=False)

    def __post_init__(self) -> None:
        self.slot = next(n for n in range(len(_SHARES) + 1) if n not in _SHARES)
        _SHARES[self.slot] = self


def largest(ranks: int) -> int:
    """Bytes up to which a group of so many sums by itself, each process reading all shares whole.

    Two: at 512 KiB 11 us against 17 of the library, two H200s. More read more each: torch's own
    bound (``kOneShotThreshBytes`` of ``c10d/symm_mem/intra_node_comm.hpp``). Beyond it torch has
    a kernel of two rounds. Do not take it before somebody knows why a decoder whose messages went
    that way stopped for good on two H200s, torch 2.11, 2026-11-29.
    """
    return LARGEST if ranks == 2 else 256 * 2**10


_SHARES: WeakValueDictionary[int, Shares] = WeakValueDictionary()
"""Slot -> memory of a living model. An operator is given numbers and names alone, on all ranks
and in all that is stored the same ones."""


_LIBRARY: Any = torch.library.Library("piecewise", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define("all_reduce(Tensor x, str reduce_op, str group_name, int slot) -> Tensor")


def _all_reduce(x: torch.Tensor, reduce_op: str, group_name: str, slot: int) -> torch.Tensor:
    """The sum, in new memory, contiguous.

    What decides between the ways is the same on every process: shape and dtype of the message, and
    whether all have their shares.
    """
    shares, nbytes = _SHARES.get(slot), x.numel() * x.element_size()
    memory = None if shares is None else shares.of.get(group_name)
    x = x.contiguous()
    if (
        shares is None
        or memory is None
        or reduce_op != "sum"
        or not 0 < nbytes <= memory.numel()
        or not shares.by.takes(x.dtype, nbytes)
    ):
        functional = torch.ops._c10d_functional
        made: torch.Tensor = functional.wait_tensor(functional.all_reduce(x, reduce_op, group_name))
        return made
    if x.device != memory.device:
        raise PlatformError(
            f"a tensor on {x.device} is summed, and {memory.device} was the current device when "
            f"ranks met; call torch.{x.device.type}.set_device({x.device.index}) before anything"
        )
    if x.storage_offset():
        x = x.clone()
    return shares.by.total(memory, x, group_name, one_shot=True)


def _fake(x: torch.Tensor, reduce_op: str, group_name: str, slot: int) -> torch.Tensor:
    return x.new_empty(x.shape)


_LIBRARY.impl("all_reduce", _all_reduce, "CompositeExplicitAutograd")
torch.library.register_fake(NAME, _fake, lib=_LIBRARY)

sum_over: Any = torch.ops.piecewise.all_reduce.default
"""``sum_over(x, reduce_op, group_name, slot)``."""
