"""Tensors that a program cannot hold, and what to say of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch

from piecewise_core.errors import UnsupportedModule
from piecewise_core.graph.wrappers import is_wrapper
from piecewise_core.runtime.kinds import is_strided
from piecewise_core.runtime.module_paths import places_of
from piecewise_core.torch_compat.dispatcher import no_torch_function

__all__ = ["refuse", "refuse_whole"]


def refuse(tensor: torch.Tensor, roots: Sequence[torch.nn.Module]) -> None:
    """Raise UnsupportedModule for a tensor that cannot be held, naming its place in ``roots``."""
    if why := _refusal_of(tensor):
        raise UnsupportedModule(f"{_where(tensor, roots)} {why}")


def refuse_whole(wrapper: torch.Tensor, roots: Sequence[torch.nn.Module], why: str) -> NoReturn:
    """Raise UnsupportedModule for a tensor around others, which ``why`` keeps from being looked
    after.
    """
    said = f"{_where(wrapper, roots)} {_own_dispatch(wrapper)}"
    raise UnsupportedModule(f"{said}. It is not taken apart: {why}")


def _where(tensor: torch.Tensor, roots: Sequence[torch.nn.Module]) -> str:
    """Who has the tensor, as the beginning of a sentence."""
    places = places_of(roots).get(id(tensor), [])
    return f'"{".".join((*places[0].path, places[0].key))}" is' if places else "the model holds"


def _refusal_of(tensor: torch.Tensor) -> str:
    """What a program cannot hold of a tensor, as the end of a sentence; "" of one that it can."""
    kind = type(tensor)
    plain = kind is torch.Tensor or kind.__torch_function__ is no_torch_function
    if not plain or is_wrapper(tensor):
        return _own_dispatch(tensor)
    if is_strided(tensor):
        return ""
    return (
        f"a tensor of layout {tensor.layout}, without strides; "
        "convert it to a dense one before compiling"
    )


def _own_dispatch(tensor: torch.Tensor) -> str:
    """That operators on the tensor do, or return, something of its class's own."""
    return (
        f"a {type(tensor).__name__}, a tensor subclass with its own dispatch; "
        "convert it to plain tensors before compiling, or call torch.compile(model, "
        'backend="piecewise"), which serves it without static graphs'
    )
