"""Stretches of memory, by address, and whether one meets another."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

import torch

__all__ = ["Span", "Spans", "span_of", "storage_span"]

Span = tuple[int, int]
"""First address, and the one behind the last."""


def span_of(tensor: torch.Tensor) -> Span:
    """The memory of a dense tensor."""
    start = tensor.data_ptr()
    return start, start + tensor.nbytes


def storage_span(tensor: torch.Tensor) -> Span:
    """The memory of everything that a view of ``tensor``'s storage may reach."""
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.data_ptr() + storage.nbytes()


class Spans:
    """Many stretches, joined where they touch: asked for one more, it looks at two at most."""

    def __init__(self, spans: Iterable[Span] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in sorted(spans):
            if start == end:
                continue
            if self._ends and start <= self._ends[-1]:
                self._ends[-1] = max(self._ends[-1], end)
            else:
                self._starts.append(start)
                self._ends.append(end)

    def and_more(self, spans: Iterable[Span]) -> Spans:
        """These and others."""
        return Spans([*zip(self._starts, self._ends, strict=True), *spans])

    def __bool__(self) -> bool:
        return bool(self._starts)

    def meets(self, span: Span) -> bool:
        """Whether any of them shares a byte with ``span``."""
        start, end = span
        place = bisect_left(self._starts, end) - 1
        return start < end and place >= 0 and self._ends[place] > start

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether any of them shares a byte with a dense tensor's memory."""
        return self.meets(span_of(tensor))
