"""What a program was made for of the tensors that it holds: their kinds, and which share memory."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import torch

from piecewise_core.torch_compat.storages import memory_key

__all__ = ["firsts", "kind_of_tensor", "sharing"]


def kind_of_tensor(tensor: Any) -> Any:
    """Dtype, device, shape, strides, signs and class; None of what is no tensor."""
    if not isinstance(tensor, torch.Tensor):
        return None
    signs = tensor.is_conj(), tensor.is_neg()
    return tensor.dtype, tensor.device, tuple(tensor.shape), tensor.stride(), signs, type(tensor)


def sharing(tensors: Sequence[Any]) -> list[int]:
    """For each tensor, the first one that lives in the same memory."""
    return firsts(memory_key(t) if isinstance(t, torch.Tensor) else id(t) for t in tensors)


def firsts(keys: Iterable[Hashable]) -> list[int]:
    """For each key, the place of the first that is equal."""
    first: dict[Hashable, int] = {}
    return [first.setdefault(key, place) for place, key in enumerate(keys)]
