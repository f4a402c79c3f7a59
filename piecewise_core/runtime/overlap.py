"""Whether a call's inputs share memory that the program writes to, which no trace could know."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from piecewise_core.graph.split import Program

__all__ = ["Overlap"]

Span = tuple[int, int]
"""First address, and the one behind the last."""


class Overlap:
    """``overlap(tensors, bound)``: whether an input lies in memory that the program writes to.

    ``mutated``, ``mutated_bound``: places of inputs and of bound tensors that are written to. An
    input's own memory does not count when the program writes to just that input. Inputs are
    dense, so their spans are exact; of a bound tensor the whole storage counts.
    """

    def __init__(self, mutated: Iterable[int], mutated_bound: Iterable[int]) -> None:
        self._mutated = tuple(sorted(mutated))
        self._mutated_bound = tuple(sorted(mutated_bound))
        self._last: object = None
        self._written: tuple[Span, ...] = ()
        self._held: tuple[Span, ...] = ()

    @classmethod
    def of(cls, program: Program) -> Overlap:
        """That of a split graph."""
        return cls(program.mutated, program.mutated_bound)

    def __bool__(self) -> bool:
        """Whether the program writes to anything that it is given."""
        return bool(self._mutated or self._mutated_bound)

    def __call__(self, tensors: Sequence[torch.Tensor], bound: Sequence[torch.Tensor]) -> bool:
        """Compare every span written to with every other."""
        if bound is not self._last:
            self._read(bound)
        spans = []
        for tensor in tensors:
            start = tensor.data_ptr()
            spans.append((start, start + tensor.nbytes))
        for place in self._mutated:
            others = (*spans[:place], *spans[place + 1 :], *self._held)
            if _meets(spans[place], others):
                return True
        return any(_meets(span, spans) for span in self._written)

    def _read(self, bound: Sequence[torch.Tensor]) -> None:
        """Look at bound tensors once, for as long as they are the same."""
        self._held = tuple(map(_storage, bound)) if self._mutated else ()
        self._written = tuple(_storage(bound[i]) for i in self._mutated_bound)
        self._last = bound


def _storage(tensor: torch.Tensor) -> Span:
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.data_ptr() + storage.nbytes()


def _meets(span: Span, others: Iterable[Span]) -> bool:
    start, end = span
    return any(a < end and start < b for a, b in others)
