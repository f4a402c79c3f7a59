"""How a tensor lies in memory, sizes aside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

__all__ = ["Lying", "dense_strides", "lying_of"]


@dataclass(frozen=True)
class Lying:
    """``order``: dims from the largest stride to the smallest. ``gaps``: whether memory between
    elements, or a stride that nobody steps by, tells it from a tensor made in that order.
    ``repeats``: whether one element in memory is several of the tensor.
    """

    order: tuple[int, ...]
    gaps: bool = False
    repeats: bool = False


def lying_of(tensor: torch.Tensor) -> Lying:
    """How ``tensor`` lies."""
    shape, strides = tensor.shape, tensor.stride()
    plain = tuple(range(len(shape)))
    if strides == dense_strides(shape, plain):
        return Lying(plain)
    order = tuple(sorted(plain, key=lambda d: (-strides[d], d)))
    repeats = any(n > 1 and not step for n, step in zip(shape, strides, strict=True))
    return Lying(order, strides != dense_strides(shape, order), repeats)


def dense_strides(shape: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    """Strides of a tensor made with its dims in ``order``, as torch writes them."""
    found = [1] * len(shape)
    step = 1
    for dim in reversed(order):
        found[dim] = step
        step *= max(shape[dim], 1)
    return tuple(found)
