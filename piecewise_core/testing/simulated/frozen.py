"""Tensors as a graph knows them: an address and a layout.

Memory outside of pools is not kept alive by it: once its owner lets go of it or moves it, the
graph reads poison there and what it writes is lost. A real device does the same, silently.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from piecewise_core.testing.simulated.pool import Memory, poison, poison_of, storage_at
from piecewise_core.torch_compat.dispatcher import DisableTorchFunction, without_modes
from piecewise_core.torch_compat.storages import negated, storage_of

__all__ = ["Frozen", "Layout", "unseen"]


@contextmanager
def unseen() -> Iterator[None]:
    """Run torch so that nobody's mode sees it."""
    with DisableTorchFunction(), without_modes():
        yield


@dataclass(frozen=True)
class Layout:
    """How a tensor lies in its storage."""

    dtype: torch.dtype
    offset: int
    size: torch.Size
    stride: tuple[int, ...]
    conjugate: bool
    negative: bool

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Layout:
        """The layout of ``tensor``."""
        return cls(
            tensor.dtype,
            int(tensor.storage_offset()),
            tensor.size(),
            tensor.stride(),
            tensor.is_conj(),
            tensor.is_neg(),
        )

    def over(self, storage: torch.UntypedStorage, *, plain: bool = False) -> torch.Tensor:
        """A tensor of this layout over ``storage``; call it unseen.

        ``plain``: not an inference tensor, as views of tensors made outside inference mode are.
        """
        with torch.inference_mode(torch.is_inference_mode_enabled() and not plain):
            tensor = torch.empty(0, dtype=self.dtype, device="cpu")
            tensor.set_(storage, self.offset, self.size, self.stride)
        if self.conjugate:
            tensor = tensor.conj()
        return negated(tensor) if self.negative else tensor


class Frozen:
    """The memory and layout of one tensor, without the tensor."""

    def __init__(self, tensor: torch.Tensor, memory: Memory) -> None:
        storage = tensor.untyped_storage()
        self.address, self.nbytes = storage.data_ptr(), storage.nbytes()
        self._layout = Layout.of(tensor)
        self._fixed: torch.Tensor | None = None
        self._owner: StorageWeakRef | None = None
        segment = memory.owner_of(self.address) if self.nbytes else None
        if segment is not None:
            self._fixed = self._layout.over(storage_at(self.address, self.nbytes, segment))
        else:
            self._owner = StorageWeakRef(storage)  # type: ignore[no-untyped-call]

    def thaw(self) -> torch.Tensor:
        """A tensor over that memory; over poison where the memory is gone. Call it unseen."""
        if self._fixed is not None:
            return self._fixed
        storage = self._outside()
        if storage is None or storage.data_ptr() != self.address:
            storage = torch.UntypedStorage(self.nbytes)  # type: ignore[no-untyped-call]
            poison(storage.data_ptr(), self.nbytes, poison_of(self._layout.dtype))
        return self._layout.over(storage)

    def __repr__(self) -> str:
        kind = str(self._layout.dtype).removeprefix("torch.")
        return f"{kind}{list(self._layout.size)} at {self.address:#x}"

    def _outside(self) -> torch.UntypedStorage | None:
        """The storage that had the memory, if it still lives."""
        if self._owner is None:
            return None
        found: torch.UntypedStorage | None = storage_of(self._owner.cdata)
        return found
