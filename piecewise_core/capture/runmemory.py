"""The memory that a run meets: what it makes, what it reads from outside, what it writes there."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from piecewise_core.torch_compat.storages import memory_key, storage_key

__all__ = ["RunMemory"]


class RunMemory:
    """Told of tensors as a run goes."""

    def __init__(self) -> None:
        # Weak: a run must free its memory as it goes. A number is not given out again meanwhile.
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}
        self._earlier: dict[int, tuple[StorageWeakRef, int]] = {}
        self._outside: dict[int, torch.Tensor] = {}
        self._before: list[tuple[torch.UntypedStorage, torch.UntypedStorage | None]] = []
        self._derived: dict[int, StorageWeakRef] = {}

    def begin_again(self) -> None:
        """What the first run made and the second finds is from outside: a table made once."""
        self._made, self._earlier = {}, self._made
        self._outside.clear()

    def forget(self) -> None:
        """Let go of every tensor."""
        self._made.clear()
        self.begin_again()
        self._before.clear()
        self._derived.clear()

    def given(self, inputs: Iterable[torch.Tensor]) -> None:
        """A run is given ``inputs``."""
        self._derive(tensor.untyped_storage() for tensor in inputs)

    def read(self, found: Iterable[torch.Tensor]) -> None:
        """Count tensors among those from outside, unless this run made their memory."""
        for tensor in found:
            if memory_key(tensor) not in self._made:
                self._outside.setdefault(id(tensor), tensor)

    def made(
        self, results: Iterable[torch.Tensor], given: Iterable[torch.Tensor], step: int
    ) -> None:
        """New memory among results of ``step``; a view of what was given is no new memory."""
        old = {memory_key(t) for t in given}
        storages = [tensor.untyped_storage() for tensor in results]
        if not old.isdisjoint(self._derived):
            self._derive(storages)
        for storage in storages:
            if storage_key(storage) not in old and storage_key(storage) not in self._made:
                weak = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
                self._made[storage_key(storage)] = weak, step

    def about_to_write(
        self, found: Iterable[torch.Tensor], given: Iterable[torch.Tensor], *, keep: bool
    ) -> None:
        """Note memory that the run did not make; ``keep``: with a copy of it. ``given``: all that
        the operator is given.
        """
        found = list(found)
        if found and not self._derived.keys().isdisjoint(map(memory_key, given)):
            self._derive(tensor.untyped_storage() for tensor in found)
        for tensor in found:
            storage = tensor.untyped_storage()
            known = {storage_key(s) for s, _ in self._before}
            if storage_key(storage) not in self._made and storage_key(storage) not in known:
                copy = storage.clone() if keep else None  # type: ignore[no-untyped-call]
                self._before.append((storage, copy))

    def put_back(self) -> None:
        """Restore what was written, where a copy was kept."""
        for storage, copy in self._before:
            if copy is not None:
                storage.copy_(copy)
        self._before.clear()

    def writes_to(self, tensor: torch.Tensor) -> bool:
        """Whether the memory of ``tensor`` was written to."""
        memory = memory_key(tensor)
        return any(storage_key(storage) == memory for storage, _ in self._before)

    @property
    def derived(self) -> frozenset[int]:
        """The inputs' memory, and what was computed from it, in both runs."""
        return frozenset(self._derived)

    @property
    def carried(self) -> set[int]:
        """The steps of the first run whose memory the second read."""
        memory = map(memory_key, self._outside.values())
        return {self._earlier[key][1] for key in memory if key in self._earlier}

    @property
    def outside(self) -> tuple[torch.Tensor, ...]:
        """The tensors from outside, in the order in which they were read."""
        return tuple(self._outside.values())

    @property
    def writes(self) -> int:
        """How many memories from outside were written to."""
        return len(self._before)

    def _derive(self, storages: Iterable[torch.UntypedStorage]) -> None:
        for storage in storages:
            if storage_key(storage) not in self._derived:
                self._derived[storage_key(storage)] = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
