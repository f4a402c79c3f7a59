"""Memory of the simulated device: pools of real CPU memory that is reused, poisoned when freed.

A tensor in a pool owns a *block* through its storage: when the last tensor over that storage is
gone, the block is overwritten with poison and the next allocation may have it.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["Block", "Memory", "Pool", "poison", "poison_of", "storage_at"]

_GRANULE = 512
_NAN, _LARGE, _TRUE = 0xFF, 0x7F, 0x01


def poison_of(dtype: torch.dtype) -> int:
    """The byte that freed memory is filled with: all NaN, or whole numbers that index nothing."""
    if dtype.is_floating_point or dtype.is_complex:
        return _NAN
    return _TRUE if dtype is torch.bool else _LARGE


def poison(address: int, nbytes: int, byte: int) -> None:
    """Overwrite memory."""
    ctypes.memset(address, byte, nbytes)


def storage_at(
    address: int, nbytes: int, owner: object, freed: Callable[[], None] | None = None
) -> torch.UntypedStorage:
    """A storage over existing memory.

    ``owner`` is kept alive with it; ``freed()`` is called when it dies.
    """
    buffer: Any = (ctypes.c_char * nbytes).from_address(address)
    buffer.owner = owner
    if freed is not None:
        weakref.finalize(buffer, freed).atexit = False
    return torch.frombuffer(buffer, dtype=torch.uint8).untyped_storage()


class Memory:
    """All memory of one device. ``limit``: bytes that its pools may hold together, or None."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.used = 0
        self._segments: dict[int, _Segment] = {}

    def reserve(self, nbytes: int) -> _Segment:
        """New memory. Raises torch.OutOfMemoryError past the limit."""
        if self.limit is not None and self.used + nbytes > self.limit:
            raise torch.OutOfMemoryError(
                f"simulated device: out of memory: {nbytes} bytes wanted, "
                f"{self.limit - self.used} of {self.limit} free"
            )
        segment = _Segment(nbytes)
        self.used += nbytes
        self._segments[segment.base] = segment
        return segment

    def give_back(self, segment: _Segment) -> None:
        """End the use of a segment; whoever still reads it reads poison."""
        if self._segments.pop(segment.base, None) is not None:
            self.used -= segment.nbytes
            poison(segment.base, segment.nbytes, _NAN)

    def owner_of(self, address: int) -> _Segment | None:
        """The segment that holds ``address``, if a pool does."""
        for segment in self._segments.values():
            if segment.base <= address < segment.base + segment.nbytes:
                return segment
        return None


class _Segment:
    """One reservation. ``spans``: address -> bytes of what is free in it."""

    def __init__(self, nbytes: int) -> None:
        self._buffer = ctypes.create_string_buffer(nbytes + _GRANULE)
        self.base = -(-ctypes.addressof(self._buffer) // _GRANULE) * _GRANULE
        self.nbytes = nbytes
        self.spans = {self.base: nbytes}
        self.blocks: dict[int, Block] = {}
        poison(self.base, nbytes, _NAN)

    def take(self, nbytes: int) -> int | None:
        """The address of the smallest free span that fits, cut to size."""
        fitting = [(n, a) for a, n in self.spans.items() if n >= nbytes]
        if not fitting:
            return None
        room, address = min(fitting)
        del self.spans[address]
        if room > nbytes:
            self.spans[address + nbytes] = room - nbytes
        return address

    def put(self, address: int, nbytes: int) -> None:
        """Free a span, joined with its free neighbours."""
        nbytes += self.spans.pop(address + nbytes, 0)
        for start, room in self.spans.items():
            if start + room == address:
                self.spans[start] = room + nbytes
                return
        self.spans[address] = nbytes


class Block:
    """Memory of one storage in a pool.

    ``shadow``: what it would hold had the capture executed, until a replay writes the real thing.
    """

    def __init__(self, segment: _Segment, address: int, nbytes: int, byte: int) -> None:
        self.segment = segment
        self.address = address
        self.nbytes = nbytes
        self.byte = byte
        self.shadow: torch.UntypedStorage | None = None
        poison(address, nbytes, byte)

    @property
    def rounded(self) -> int:
        """Bytes that the block takes up."""
        return math.ceil(self.nbytes / _GRANULE) * _GRANULE


class Pool:
    """Memory shared by the graphs captured into it.

    Segments go back to the device when no graph is left and no tensor either. Until then memory
    serves the stream that it was first used on and no other, as in torch's allocators.
    ``freed_in_capture``: called with each block that dies while a capture into this pool runs.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._segments: list[tuple[_Segment, object]] = []
        self._live: dict[int, Block] = {}
        self._graphs: set[int] = set()
        # Storages die at any time, also in the middle of an allocation: the dead wait here.
        self._dead: deque[Block] = deque()
        self._burying = False
        self.freed_in_capture: Callable[[Block], None] | None = None

    def allocate(
        self, nbytes: int, dtype: torch.dtype, stream: object
    ) -> tuple[Block, torch.UntypedStorage]:
        """A block, and the storage whose death frees it. Raises torch.OutOfMemoryError."""
        self._bury()
        wanted = math.ceil(nbytes / _GRANULE) * _GRANULE
        segment, address = self._find(wanted, stream)
        block = Block(segment, address, nbytes, poison_of(dtype))
        segment.blocks[address] = block
        self._live[address] = block
        return block, storage_at(address, nbytes, segment, lambda: self._die(block))

    def enter(self, graph: int) -> None:
        """Note that a graph uses this pool."""
        self._graphs.add(graph)

    def leave(self, graph: int) -> None:
        """Note that a graph is gone."""
        self._graphs.discard(graph)
        self._bury()

    @property
    def graph_count(self) -> int:
        """Graphs that use this pool."""
        return len(self._graphs)

    @property
    def nbytes(self) -> int:
        """Bytes held, in use or not."""
        self._bury()
        return sum(segment.nbytes for segment, _ in self._segments)

    @property
    def live_bytes(self) -> int:
        """Bytes that tensors hold."""
        self._bury()
        return sum(block.rounded for block in self._live.values())

    def trim(self) -> None:
        """Give back what no tensor holds; only right once no graph can be replayed."""
        self._bury()
        for held in [s for s in self._segments if not s[0].blocks]:
            self._segments.remove(held)
            self._memory.give_back(held[0])

    def segments(self) -> list[tuple[int, int, int]]:
        """(address, bytes, bytes that tensors hold) of each reservation."""
        self._bury()
        return [
            (s.base, s.nbytes, sum(block.rounded for block in s.blocks.values()))
            for s, _ in self._segments
        ]

    def _find(self, wanted: int, stream: object) -> tuple[_Segment, int]:
        for segment, used_on in self._segments:
            address = segment.take(wanted) if used_on is stream else None
            if address is not None:
                return segment, address
        segment = self._memory.reserve(wanted)
        self._segments.append((segment, stream))
        address = segment.take(wanted)
        if address is None:
            raise AssertionError("a new segment has room for what it was made for")
        return segment, address

    def _die(self, block: Block) -> None:
        poison(block.address, block.nbytes, block.byte)
        if self.freed_in_capture is not None:
            self.freed_in_capture(block)
        self._dead.append(block)
        if not self._graphs:
            self._bury()

    def _bury(self) -> None:
        if self._burying:
            return
        self._burying = True
        try:
            while self._dead:
                block = self._dead.popleft()
                self._live.pop(block.address, None)
                block.segment.blocks.pop(block.address, None)
                block.segment.put(block.address, block.rounded)
            if not self._graphs and not self._live:
                while self._segments:
                    self._memory.give_back(self._segments.pop()[0])
        finally:
            self._burying = False
