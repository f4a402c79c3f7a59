"""Which line of the user's wrote to which memory last, while a function is recorded."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from piecewise_core.capture.calls import user_line
from piecewise_core.torch_compat.storages import memory_key, storage_key

__all__ = ["Lines"]


class Lines:
    """Filled by a recorder; ``of`` a tensor is ``file:line``, or "" where none is known."""

    def __init__(self) -> None:
        # Weak: a run frees its memory as it goes. A number is not given out again meanwhile.
        self._at: dict[int, tuple[StorageWeakRef, str]] = {}

    def saw(self, tensors: Iterable[torch.Tensor]) -> None:
        """An operator made or wrote ``tensors``, where the program is now."""
        line = user_line()()
        for tensor in tensors if line else ():
            storage = tensor.untyped_storage()
            weak = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
            self._at[storage_key(storage)] = weak, line

    def of(self, tensor: torch.Tensor) -> str:
        """The last line that made or wrote the memory of ``tensor``."""
        found = self._at.get(memory_key(tensor))
        return "" if found is None else found[1]
