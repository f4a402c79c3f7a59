"""Tensors that wrap others: subclasses that say by ``__tensor_flatten__`` which ones they hold.

Quantised weights are such. A program gets the plain tensors inside; what else a wrapper says of
itself (its context, a block size say) is part of the program.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import MemberDescriptorType
from typing import Any

import torch

from piecewise_core.torch_compat.dispatcher import is_traceable_wrapper_subclass

__all__ = [
    "descriptions_differ",
    "held_by",
    "in_slots",
    "is_wrapper",
    "keeps_more",
    "kind_of",
    "leaves",
    "rebuilt",
    "unusual",
]


_SLOT = MemberDescriptorType


def is_wrapper(value: Any) -> bool:
    """Whether ``value`` is a tensor made of other tensors."""
    return isinstance(value, torch.Tensor) and is_traceable_wrapper_subclass(value)


def keeps_more(wrapper: torch.Tensor) -> bool:
    """Whether a wrapper keeps a tensor besides those that it says it holds.

    A DTensor of rows that were looked up in a share of a table does, until it is reduced: which
    rows were its own.
    """
    return any(hasattr(p, "mask_buffer") for p in getattr(wrapper, "placements", ()))


def held_by(wrapper: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors that a wrapper says it holds, by the names of its attributes."""
    return {n: v for n, v in _parts(wrapper).items() if isinstance(v, torch.Tensor)}


def in_slots(wrapper: torch.Tensor) -> dict[str, torch.Tensor]:
    """Those of them that no dict holds."""
    kind, own = type(wrapper), vars(wrapper)
    held = {n: v for n, v in held_by(wrapper).items() if n not in own}
    return {n: v for n, v in held.items() if isinstance(getattr(kind, n, None), _SLOT)}


def _parts(wrapper: torch.Tensor) -> dict[str, Any]:
    """What a wrapper says it is made of: tensors, and objects such as a mesh of devices."""
    names, _ = wrapper.__tensor_flatten__()  # type: ignore[attr-defined]
    return {name: getattr(wrapper, name) for name in names}


def leaves(value: torch.Tensor) -> list[torch.Tensor]:
    """The plain tensors inside of a wrapper, however deep; a plain tensor itself."""
    if not is_wrapper(value):
        return [value]
    return [leaf for held in held_by(value).values() for leaf in leaves(held)]


def rebuilt(like: torch.Tensor, plain: Iterator[torch.Tensor]) -> torch.Tensor:
    """A wrapper as ``like`` around the next of ``plain``; the next itself for a plain tensor."""
    if not is_wrapper(like):
        return next(plain)
    inner = {**_parts(like)}
    inner |= {name: rebuilt(held, plain) for name, held in held_by(like).items()}
    _, context = like.__tensor_flatten__()  # type: ignore[attr-defined]
    size, stride = like.size(), like.stride()
    made: torch.Tensor = type(like).__tensor_unflatten__(inner, context, size, stride)  # type: ignore[attr-defined]
    return made


def kind_of(wrapper: torch.Tensor) -> Any:
    """What a program was made for of a wrapper; `descriptions_differ` compares two."""
    names, context = wrapper.__tensor_flatten__()  # type: ignore[attr-defined]
    inner = [(n, kind_of(t)) for n, t in held_by(wrapper).items() if is_wrapper(t)]
    layout = wrapper.dtype, wrapper.device, tuple(wrapper.shape), wrapper.stride()
    return type(wrapper), tuple(names), layout, context, inner


def descriptions_differ(now: Any, was: Any) -> bool:
    """Whether two kinds are not known to be one."""
    try:
        return not bool(now == was)
    except Exception:  # a context that cannot be compared
        return True


def unusual(wrapper: torch.Tensor) -> str:
    """Why a wrapper cannot be taken apart; "" where it can."""
    if wrapper.layout is not torch.strided:
        return f"its layout is {wrapper.layout}"
    for name, held in held_by(wrapper).items():
        if vars(wrapper).get(name) is not held and name not in in_slots(wrapper):
            return f'its "{name}", which __tensor_flatten__ names, is no plain attribute'
        if is_wrapper(held):
            why = unusual(held)
            if why:
                return why
        elif type(held) not in (torch.Tensor, torch.nn.Parameter):
            return f'its "{name}" is a {type(held).__name__}'
    return ""
