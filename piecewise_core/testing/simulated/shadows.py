"""Copies that stand in for memory while a capture finds out what operators return."""

from __future__ import annotations

from typing import Any

import torch

from piecewise_core.testing.simulated.frozen import Layout
from piecewise_core.testing.simulated.pool import Block, Memory
from piecewise_core.torch_compat import pytree
from piecewise_core.torch_compat.operators import schema_of

__all__ = ["Shadows", "is_written"]


class Shadows:
    """What memory would hold had the operators of one capture been executed.

    Memory that no operator writes is its own shadow. A block of a pool keeps its shadow beyond
    the capture, until a replay writes it; other memory is shadowed for one capture.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        # The originals are kept, or their addresses could come to mean something else.
        self._outside: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def prepare(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Make shadows of what ``func`` writes to."""
        for place, argument in enumerate(schema_of(func).arguments):
            if is_written(argument):
                value = kwargs.get(argument.name, args[place] if place < len(args) else None)
                for leaf in pytree.tree_leaves(value):
                    if isinstance(leaf, torch.Tensor):
                        self._copy(leaf.untyped_storage())

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """``tensor`` over its shadow; itself where there is none."""
        storage = tensor.untyped_storage()
        shadow = self._known(storage)
        return tensor if shadow is None else Layout.of(tensor).over(shadow)

    def _known(self, storage: torch.UntypedStorage) -> torch.UntypedStorage | None:
        block = self._block(storage)
        if block is not None:
            return block.shadow
        found = self._outside.get(storage.data_ptr())
        return found[1] if found else None

    def _copy(self, storage: torch.UntypedStorage) -> None:
        if storage.nbytes() == 0 or self._known(storage) is not None:
            return
        shadow: torch.UntypedStorage = storage.clone()  # type: ignore[no-untyped-call]
        block = self._block(storage)
        if block is not None:
            block.shadow = shadow
        else:
            self._outside[storage.data_ptr()] = storage, shadow

    def _block(self, storage: torch.UntypedStorage) -> Block | None:
        segment = self._memory.owner_of(storage.data_ptr()) if storage.nbytes() else None
        return segment.blocks.get(storage.data_ptr()) if segment else None


def is_written(argument: Any) -> bool:
    """Whether an operator's schema says that it writes to this argument."""
    return argument.alias_info is not None and argument.alias_info.is_write
