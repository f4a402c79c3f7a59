"""What a program was made for of the tensors that it holds."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

import torch

from piecewise_core.graph.wrappers import is_wrapper
from piecewise_core.torch_compat.dispatcher import no_torch_function

__all__ = ["firsts", "is_strided", "kind_of_tensor", "own_dispatch", "refusal_of"]


def is_strided(tensor: torch.Tensor) -> bool:
    """Whether it lies in memory in the plain way."""
    return tensor.layout is torch.strided and not tensor.is_nested


def kind_of_tensor(tensor: Any) -> Any:
    """Dtype, device, shape, strides, signs and class; None of what is no tensor with strides."""
    if not isinstance(tensor, torch.Tensor) or not is_strided(tensor):
        return None
    signs = tensor.is_conj(), tensor.is_neg()
    return tensor.dtype, tensor.device, tuple(tensor.shape), tensor.stride(), signs, type(tensor)


def firsts(keys: Iterable[Hashable]) -> list[int]:
    """For each key, the place of the first that is equal."""
    first: dict[Hashable, int] = {}
    return [first.setdefault(key, place) for place, key in enumerate(keys)]


def refusal_of(tensor: torch.Tensor) -> str:
    """What a program cannot hold of a tensor, as the end of a sentence; "" of one that it can."""
    kind = type(tensor)
    plain = kind is torch.Tensor or kind.__torch_function__ is no_torch_function
    if not plain or is_wrapper(tensor):
        return own_dispatch(tensor)
    if is_strided(tensor):
        return ""
    return (
        f"a tensor of layout {tensor.layout}, without strides; "
        "convert it to a dense one before compiling"
    )


def own_dispatch(tensor: torch.Tensor) -> str:
    """That operators on the tensor do, or return, something of its class's own."""
    return (
        f"a {type(tensor).__name__}, a tensor subclass with its own dispatch; "
        "convert it to plain tensors before compiling, or call torch.compile(model, "
        'backend="piecewise"), which serves it without static graphs'
    )
