"""A call's tensors that nothing is to write to, watched over one call made twice."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from piecewise_core.graph.spans import Spans, storage_span
from piecewise_core.replay.agreement import difference

__all__ = ["ReadOnly"]


class ReadOnly:
    """Copies of ``tensors`` as they are now; others than strided ones are let be.

    ``written``: what calls do write to. Tensors in memory of these are let be, too: one may be
    given to the model twice, or lie in its state.

    ``turn`` between the two runs, ``changed`` behind the second. What is put back is only what was
    written to: the memory may be read elsewhere, or be one element many times over.
    """

    def __init__(
        self, tensors: Sequence[torch.Tensor], written: Sequence[torch.Tensor] = ()
    ) -> None:
        apart = Spans(storage_span(t) for t in written if _is_plain(t))
        self._tensors = [t for t in tensors if _is_plain(t) and not apart.meets(storage_span(t))]
        with torch.no_grad():
            self._values = [t.clone() for t in self._tensors]
        self._left = self._values

    def turn(self) -> None:
        """Note what the first run left, and make everything as it was."""
        with torch.no_grad():
            self._left = [
                t.clone() if _differs(t, value) else value
                for t, value in zip(self._tensors, self._values, strict=True)
            ]
        if any(left is not value for left, value in zip(self._left, self._values, strict=True)):
            self.put_back()

    def changed(self) -> str | None:
        """How the first tensor is apart from what the first run left of it."""
        found = difference(self._tensors, self._left)
        return None if found is None else found.how

    def put_back(self) -> None:
        """Make everything as it was before the runs."""
        self._make(self._values)

    def leave(self) -> None:
        """Make everything as the first run left it."""
        self._make(self._left)

    def _make(self, wanted: Sequence[torch.Tensor]) -> None:
        with torch.inference_mode():
            for tensor, value in zip(self._tensors, wanted, strict=True):
                if _differs(tensor, value):
                    tensor.copy_(value)


def _is_plain(tensor: torch.Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_meta


def _differs(tensor: torch.Tensor, value: torch.Tensor) -> bool:
    return not torch.equal(tensor, value) and difference([tensor], [value]) is not None
