"""Tensors over memory that they do not keep: of a capture, one for each, and of a caller's."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch

from piecewise_core.capture.calls import tensors
from piecewise_core.torch_compat.graphs import weak_tensor_over

__all__ = ["WeakTensors", "lendable", "unowned", "writable"]


class WeakTensors:
    """``make(tensor)``: another tensor over the same memory, which may be freed."""

    def __init__(self, make: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._make = make
        self._made: dict[int, tuple[weakref.ref[torch.Tensor], torch.Tensor]] = {}

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """What was made of ``tensor``, now if it was not yet."""
        known = self._made.get(id(tensor))
        if known is None or known[0]() is not tensor:  # an id goes to the next when one is gone
            known = weakref.ref(tensor), self._make(tensor)
            self._made[id(tensor)] = known
        return known[1]

    def all_of(self, result: Any) -> tuple[torch.Tensor, ...]:
        """What is made of each tensor in nested containers, for calls in whatever mode."""
        with torch.inference_mode(False):
            return tuple(map(self.of, tensors(result)))

    def forget(self) -> None:
        """Let go of them."""
        self._made.clear()


def writable(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor``; or where only inference mode may write to it, another over the same memory."""
    plain = type(tensor) is torch.Tensor and tensor.layout is torch.strided
    if not plain or not tensor.is_inference() or tensor.is_conj() or tensor.is_neg():
        return tensor
    again = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    storage, offset = tensor.untyped_storage(), tensor.storage_offset()
    return again.set_(storage, offset, tensor.size(), tensor.stride())


def lendable(tensor: torch.Tensor) -> bool:
    """Whether there can be another tensor over the same memory that does not keep it."""
    kinds = (torch.Tensor, torch.nn.Parameter)
    plain = type(tensor) in kinds and tensor.layout is torch.strided and tensor.numel() > 0
    return plain and not (tensor.is_conj() or tensor.is_neg() or tensor.is_quantized)


def unowned(tensor: torch.Tensor) -> torch.Tensor:
    """That other tensor; nobody but the graphs of a plan may have it."""
    with torch.inference_mode(False):
        return weak_tensor_over(tensor.detach())
