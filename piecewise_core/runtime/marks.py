"""Whether tensors that are too large to be copied were written to: by sums of what they hold."""

from __future__ import annotations

from collections.abc import Iterable

import torch

__all__ = ["Marks"]


class Marks:
    """Sums over ``tensors`` as they are now; others than strided ones are let be."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        self._tensors = [t for t in tensors if t.layout is torch.strided and not t.is_meta]
        self._sums = self._taken()

    def changed(self) -> torch.Tensor | None:
        """The first tensor that does not hold what it did."""
        for tensor, before, now in zip(self._tensors, self._sums, self._taken(), strict=True):
            if not torch.equal(before.view(torch.int64), now.view(torch.int64)):
                return tensor
        return None

    def _taken(self) -> list[torch.Tensor]:
        if not self._tensors:
            return []
        with torch.no_grad():
            return [_sums(tensor) for tensor in self._tensors]


def _sums(tensor: torch.Tensor) -> torch.Tensor:
    """Two numbers, with their bits as they are: what is not finite is compared too."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if tensor.dtype.is_floating_point and tensor.dtype.itemsize == 1:
        tensor = tensor.view(torch.uint8)  # eight bits can be stored and not computed with
    kind = torch.float64 if tensor.dtype.is_floating_point else torch.int64
    total = tensor.sum(dtype=kind).to(torch.float64)
    largest = tensor.amax().to(torch.float64) if tensor.numel() else total
    return torch.stack([total, largest])
