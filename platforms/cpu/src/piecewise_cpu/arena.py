"""The memory of static plans: every capture size uses the same blocks, one after the other."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence

import torch

from piecewise_core.building_blocks import storage_key

__all__ = ["Arena"]


class Arena:
    """Blocks that are handed out and taken back; ``rewind`` takes all of them back.

    Sizes never run at the same time, so one size's buffers may lie where another's do. A request
    gets the smallest free block that holds it; of the first size's, the largest, only one that it
    fills by half, so that small buffers do not take what large ones will ask for. Where none will
    do for a later size, the largest free one is replaced; graphs that use it keep it alive.
    """

    def __init__(self) -> None:
        self._blocks: list[torch.UntypedStorage] = []
        self._free: list[torch.UntypedStorage] = []
        self._given: list[torch.UntypedStorage] = []
        self._first = True

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks."""
        return sum(block.nbytes() for block in self._blocks)

    def rewind(self) -> None:
        """Begin another size."""
        self._first = not self._blocks
        self._free = list(self._blocks)
        self._given.clear()

    def mark(self) -> int:
        """Now, for ``take_back``."""
        return len(self._given)

    def take_back(self, since: int, kept: Container[int] = ()) -> None:
        """Let what was handed out ``since`` a mark be handed out again.

        ``kept``: identities of storages that are still to be read.
        """
        given = self._given[since:]
        self._given[since:] = [block for block in given if storage_key(block) in kept]
        self._free += [block for block in given if storage_key(block) not in kept]

    def empty_strided(
        self, size: Sequence[int], stride: Sequence[int], dtype: torch.dtype
    ) -> torch.Tensor:
        """A tensor in a block of its own."""
        extent = 1 + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        tensor = torch.empty(0, dtype=dtype)
        if 0 in size:
            return tensor.as_strided(tuple(size), tuple(stride))
        storage = self._block(extent * tensor.element_size())
        return tensor.set_(storage, 0, tuple(size), tuple(stride))

    def _block(self, nbytes: int) -> torch.UntypedStorage:
        most = 2 * nbytes if self._first else math.inf
        fitting = [block for block in self._free if nbytes <= block.nbytes() <= most]
        if fitting:
            block = min(fitting, key=_size)
            self._free = _without(block, self._free)
        else:
            block = torch.UntypedStorage(nbytes)  # type: ignore[no-untyped-call]
            self._blocks.append(block)
            if self._free and not self._first:
                replaced = max(self._free, key=_size)
                self._free = _without(replaced, self._free)
                self._blocks = _without(replaced, self._blocks)
        self._given.append(block)
        return block


def _size(block: torch.UntypedStorage) -> int:
    return block.nbytes()


def _without(
    block: torch.UntypedStorage, blocks: Sequence[torch.UntypedStorage]
) -> list[torch.UntypedStorage]:
    return [other for other in blocks if other is not block]
