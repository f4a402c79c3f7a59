"""Whether a call's inputs share memory that the program writes to, which no trace could know."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from piecewise_core.graph.spans import Spans, span_of, storage_span
from piecewise_core.graph.split import Program

__all__ = ["Overlap"]


class Overlap:
    """``overlap(tensors, bound)``: whether an input lies in memory that the program writes to.

    ``mutated``, ``mutated_bound``: places of inputs and of bound tensors that are written to. An
    input's own memory does not count when the program writes to just that input. Inputs are
    dense, so their spans are exact; of a bound tensor the whole storage counts. ``handed()``: the
    memory of results, which callers have and replays write to: a written input that lies there
    would be overwritten by what its call makes. ``fixed``: what counts as bound at every call.
    """

    def __init__(
        self,
        mutated: Iterable[int],
        mutated_bound: Iterable[int],
        handed: Callable[[], Spans] = Spans,
        fixed: Sequence[torch.Tensor] | None = None,
    ) -> None:
        self._handed = handed
        self._fixed = fixed
        self._mutated = tuple(sorted(mutated))
        self._mutated_bound = tuple(sorted(mutated_bound))
        self._last: object = None
        self._written = self._held = Spans()

    @classmethod
    def of(cls, program: Program, handed: Callable[[], Spans] = Spans) -> Overlap:
        """That of a split graph."""
        return cls(program.mutated, program.mutated_bound, handed)

    def __bool__(self) -> bool:
        """Whether the program writes to anything that it is given."""
        return bool(self._mutated or self._mutated_bound)

    def __call__(self, tensors: Sequence[torch.Tensor], bound: Sequence[torch.Tensor]) -> bool:
        """Compare every span written to with every other."""
        if self._fixed is not None:
            bound = self._fixed
        if bound is not self._last:
            self._read(bound)
        spans = [span_of(tensor) for tensor in tensors]
        handed = self._handed()
        for place in self._mutated:
            written, others = spans[place], (*spans[:place], *spans[place + 1 :])
            known = self._held.meets(written) or handed.meets(written)
            if known or any(map(Spans([written]).meets, others)):
                return True
        return any(map(self._written.meets, spans))

    def forget(self) -> None:
        """Know nothing of bound tensors, and keep none."""
        self._last, self._written, self._held = None, Spans(), Spans()

    def _read(self, bound: Sequence[torch.Tensor]) -> None:
        """Look at bound tensors once, for as long as they are the same."""
        self._held = Spans(map(storage_span, bound) if self._mutated else ())
        self._written = Spans(storage_span(bound[i]) for i in self._mutated_bound)
        self._last = bound
