"""What a capture knows of the order of work on several streams, and what lies beside each other.

A device runs what no wait puts in order at the same time. The simulated one runs it in the order in
which it came, and so would compute the right thing where a device computes anything: a capture
refuses it instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from piecewise_core.testing.simulated.device import Stream
from piecewise_core.testing.simulated.shadows import is_written
from piecewise_core.torch_compat import pytree
from piecewise_core.torch_compat.operators import schema_of

__all__ = ["Ordering", "spans"]

Span = tuple[int, int]
"""The first address, and the one behind the last."""


@dataclass(frozen=True)
class _Access:
    stream: Stream
    place: int
    span: Span
    writes: bool

    def conflicts(self, span: Span, writes: bool) -> bool:
        return (writes or self.writes) and self.span[0] < span[1] and span[0] < self.span[1]


class Ordering:
    """``streams``: those that the capture has taken in, the capturing one first."""

    def __init__(self, stream: Stream) -> None:
        # For each stream, how much of every stream's work is done before its next.
        self._behind: dict[Stream, dict[Stream, int]] = {stream: {stream: 0}}
        self._first = stream
        self._accesses: list[_Access] = []

    @property
    def streams(self) -> tuple[Stream, ...]:
        """Those taken in so far."""
        return tuple(self._behind)

    def wait(self, stream: Stream, other: Stream) -> None:
        """Work of ``stream`` from now on comes behind that of ``other`` so far."""
        own = self._behind.setdefault(stream, {stream: 0})
        for each, place in self._behind[other].items():
            own[each] = max(own.get(each, 0), place)

    def unjoined(self) -> Stream | None:
        """A stream with work that the capturing one does not wait for."""
        done = self._behind[self._first]
        open_ends = (s for s, own in self._behind.items() if own[s] > done.get(s, -1))
        return next(open_ends, None)

    def work(self, stream: Stream, reads: Iterable[Span], writes: Iterable[Span]) -> str | None:
        """Note one operator of ``stream``; what it may run at the same time as, if it must not."""
        if len(self._behind) == 1:
            return None  # all that comes before the first fork is in order
        own = self._behind[stream]
        own[stream] += 1
        found = None
        both = [(span, False) for span in reads], [(span, True) for span in writes]
        for span, written in (*both[0], *both[1]):
            for access in self._accesses:
                done = access.place <= own.get(access.stream, 0)
                if access.conflicts(span, written) and not done:
                    found = f"{access.stream} {'writes' if access.writes else 'reads'} there"
        self._accesses += [
            _Access(stream, own[stream], span, written) for span, written in (*both[0], *both[1])
        ]
        return found


def spans(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[Span], list[Span]]:
    """The memory that an operator is given to read, and to write."""
    reads: list[Span] = []
    writes: list[Span] = []
    for place, argument in enumerate(schema_of(func).arguments):
        value = kwargs.get(argument.name, args[place] if place < len(args) else None)
        for leaf in pytree.tree_leaves(value):
            if isinstance(leaf, torch.Tensor) and not leaf.is_meta:
                storage = leaf.untyped_storage()
                span = storage.data_ptr(), storage.data_ptr() + storage.nbytes()
                (writes if is_written(argument) else reads).append(span)
    return reads, writes
