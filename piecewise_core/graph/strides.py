"""Strides of real tensors as expressions over sizes, and fake tensors that have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch

from piecewise_core.graph.sizes import expression

__all__ = ["at", "differ", "fake_like", "fitted"]


def at(size: Any, sizes: Mapping[sympy.Symbol, int]) -> int:
    """The number that a size is where every symbol is as ``sizes`` says.

    Raises TypeError when it has another symbol.
    """
    found = expression(size)
    if not isinstance(found, sympy.Basic):
        return int(found)
    return int(found.xreplace({s: sympy.Integer(n) for s, n in sizes.items()}))


def differ(shape: Sequence[int], one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two strides of one shape reach any element at different addresses."""
    if 0 in shape:
        return False
    return any(a != b for n, a, b in zip(shape, one, other, strict=True) if n > 1)


def fitted(shape: Sequence[Any], numbers: Sequence[int], strides: Sequence[int]) -> Any:
    """Strides over the symbols of ``shape`` that are ``strides`` at sizes ``numbers``; None: none.

    From the innermost dim outwards each is what lies inside of it, a whole multiple of that, or
    where nothing inside varies, a number (rows padded to a multiple of 8, say).
    """
    order = sorted(range(len(shape)), key=lambda d: (-strides[d], d))
    found: list[Any] = [0] * len(shape)
    inside: Any = 1
    inside_now = 1
    for dim in reversed(order):
        if numbers[dim] == 1:
            found[dim] = inside  # no address depends on it
        elif strides[dim] == 0:
            continue
        elif strides[dim] % inside_now == 0:
            found[dim] = inside * (strides[dim] // inside_now)
        elif isinstance(inside, int):
            found[dim] = strides[dim]
        else:
            return None
        if numbers[dim] != 1:
            inside, inside_now = found[dim] * shape[dim], strides[dim] * numbers[dim]
    return found


def fake_like(value: torch.Tensor, strides: Sequence[Any]) -> torch.Tensor:
    """A fake tensor in memory of its own, as ``value`` but for its strides."""
    mode = value.fake_mode  # type: ignore[attr-defined]
    with mode, torch.inference_mode():
        made: torch.Tensor = torch.empty_strided(
            value.shape, strides, dtype=value.dtype, device=value.device
        )
    return made
