"""Memory that every process of a group reads and writes by itself, for sums of small messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

__all__ = ["SymmetricMemory"]


class SymmetricMemory(Protocol):
    """What a device does without a library of collectives; ``Capabilities.symmetric_memory``.

    Core asks for it on all processes of a group or on none, and goes without wherever one of them
    raises. All are called on the current device and stream. Since API 1.1.
    """

    def allocate(self, nbytes: int) -> torch.Tensor:
        """This process's share: bytes, of one dimension. Nothing is said to others yet."""
        ...

    def connect(self, memory: torch.Tensor, group_name: str) -> None:
        """Have the group's processes know each other's shares; all call it at about one time."""
        ...

    def total(
        self, memory: torch.Tensor, x: torch.Tensor, group_name: str, *, one_shot: bool
    ) -> torch.Tensor:
        """The sum of the group's ``x``, in new memory, the same bits on every process.

        ``x``: contiguous, at the start of its storage, of a dtype and size for which ``takes`` is
        true; fits into ``memory``, which is scratch. ``one_shot``: each process reads all of every
        share, rather than a part of each and then the others' sums; core asks for nothing else
        today. May be captured.
        """
        ...

    def takes(self, dtype: Any, nbytes: int) -> bool:
        """Whether ``total`` sums tensors of this dtype and size."""
        ...
