"""Layouts as a piece promises its results, and tensors brought to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Layout", "laid"]


@dataclass(frozen=True)
class Layout:
    """One result as the piece promises it. Sizes are Python expressions over ``Results.symbols``.

    ``dtype``: torch's name of it, "float32". ``input``: the input whose memory it is a view of, or
    None; ``offset`` then counts from that input's first element. ``shared``: a number that results
    which lie in one new memory have in common, or None; ``offset`` is in that memory.
    """

    dtype: str
    shape: tuple[str, ...]
    stride: tuple[str, ...]
    offset: str = "0"
    input: int | None = None
    shared: int | None = None


def laid(
    layouts: Sequence[Layout],
    places: Sequence[tuple[Any, Any, int]],
    found: Sequence[Any],
    inputs: Sequence[Any],
) -> list[Any]:
    """Each of ``found`` in its layout; the same tensor where it lies so already."""
    import torch

    extents: dict[int, int] = {}
    for one, (shape, stride, offset) in zip(layouts, places, strict=True):
        if one.shared is not None:
            end = offset + _extent(shape, stride)
            extents[one.shared] = max(extents.get(one.shared, 0), end)
    bases: dict[int, Any] = {}
    made = []
    for one, (shape, stride, offset), value in zip(layouts, places, found, strict=True):
        if one.input is not None:
            base = inputs[one.input]
            made.append(base.as_strided(shape, stride, base.storage_offset() + offset))
        elif one.shared is not None:
            if one.shared not in bases:
                bases[one.shared] = value.new_empty(extents[one.shared])
            view = bases[one.shared].as_strided(shape, stride, offset)
            made.append(_fill(view, value))
        elif _lies(shape, value.stride(), stride):
            made.append(value)
        else:
            new = torch.empty_strided(shape, stride, dtype=value.dtype, device=value.device)
            made.append(_fill(new, value))
    return made


def _fill(view: Any, value: Any) -> Any:
    """``view`` with the numbers of ``value``; rows that are one in memory are written once."""
    source, into = value, view
    for dim, (size, step) in enumerate(zip(view.shape, view.stride(), strict=True)):
        if size > 1 and not step:
            source, into = source.narrow(dim, 0, 1), into.narrow(dim, 0, 1)
    into.copy_(source)
    return view


def _extent(shape: Sequence[int], stride: Sequence[int]) -> int:
    """Elements from the first to the last of such a tensor."""
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))


def _lies(shape: Sequence[int], now: Sequence[int], wanted: Sequence[int]) -> bool:
    if 0 in shape:
        return tuple(now) == tuple(wanted)
    return all(n <= 1 or a == b for n, a, b in zip(shape, now, wanted, strict=True))
