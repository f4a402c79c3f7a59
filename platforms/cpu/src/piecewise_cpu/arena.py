"""The memory of static plans: every capture size uses the same blocks, one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["Arena"]


class Arena:
    """Blocks that are handed out in order; ``rewind`` starts again with the first.

    Sizes never run at the same time, so one size's n-th buffer may lie where another's does. A
    block that is too small is replaced; graphs that use it keep it alive.
    """

    def __init__(self) -> None:
        self._blocks: list[torch.UntypedStorage] = []
        self._next = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks."""
        return sum(block.nbytes() for block in self._blocks)

    def rewind(self) -> None:
        """Begin another size."""
        self._next = 0

    def empty_strided(
        self, size: Sequence[int], stride: Sequence[int], dtype: torch.dtype
    ) -> torch.Tensor:
        """A tensor in the next block."""
        extent = 1 + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        tensor = torch.empty(0, dtype=dtype)
        storage = self._block(extent * tensor.element_size() if 0 not in size else 0)
        return tensor.set_(storage, 0, tuple(size), tuple(stride))

    def _block(self, nbytes: int) -> torch.UntypedStorage:
        place, self._next = self._next, self._next + 1
        if place == len(self._blocks):
            self._blocks.append(torch.UntypedStorage(nbytes))  # type: ignore[no-untyped-call]
        elif self._blocks[place].nbytes() < nbytes:
            self._blocks[place] = torch.UntypedStorage(nbytes)  # type: ignore[no-untyped-call]
        return self._blocks[place]
