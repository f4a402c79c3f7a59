"""What a program was made for of the tensors that it holds."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["is_strided", "kind_of_tensor"]


def is_strided(tensor: torch.Tensor) -> bool:
    """Whether it lies in memory in the plain way."""
    return tensor.layout is torch.strided and not tensor.is_nested


def kind_of_tensor(tensor: Any) -> Any:
    """Dtype, device, shape, strides, signs and class; None of what is no tensor with strides."""
    if not isinstance(tensor, torch.Tensor) or not is_strided(tensor):
        return None
    signs = tensor.is_conj(), tensor.is_neg()
    return tensor.dtype, tensor.device, tuple(tensor.shape), tensor.stride(), signs, type(tensor)
