"""Objects whose tensors have other sizes than a call: a cache made for another batch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch

from piecewise_core.graph.entries import entries, items
from piecewise_core.graph.structure import Constant, Structure, leaves
from piecewise_core.ranges import Sizes

__all__ = ["held_otherwise"]

_MOST = 10_000
"""Objects looked into before the search is given up."""


def held_otherwise(structure: Structure, sizes: Sizes | None, failure: str) -> str:
    """What to say of objects that a call of these sizes failed over; "" where none is a suspect.

    ``sizes``: None for those of ``structure``'s own call. ``failure``: what the model said; only
    sizes that stand in it are suspects.
    """
    named = {}
    if sizes is not None:
        named = {dim.name: size for dim, size in zip(structure.dims, sizes, strict=True)}
    firsts = [
        (leaf.path, named.get(leaf.dims[0].name if 0 in leaf.dims else "", leaf.sizes[0]))
        for leaf in structure.tensors
        if len(leaf.sizes) > 1
    ]
    for leaf in (leaf for node in structure.arguments.values() for leaf in leaves(node)):
        if not isinstance(leaf, Constant) or not leaf.by_identity:
            continue
        shapes = Counter(tuple(t.shape) for t in _tensors(leaf.value) if t.ndim > 1)
        if len({shape[0] for shape in shapes}) != 1:
            continue
        shape = shapes.most_common(1)[0][0]
        other = next(((path, size) for path, size in firsts if size != shape[0]), None)
        if other is None or not re.search(rf"\b{shape[0]}\b", failure):
            continue
        return (
            f'argument "{leaf.path}" ({type(leaf.value).__name__}) holds tensors for a batch of '
            f'{shape[0]}, as of shape {shape}, and argument "{other[0]}" has {other[1]} in dim 0: '
            "give the call one that was made for its batch"
        )
    return ""


def _tensors(held: Any) -> Iterator[torch.Tensor]:
    waiting, seen = [held], {id(held)}
    for item in waiting:  # grows as it goes
        if isinstance(item, torch.Tensor):
            yield item
            continue
        parts = list(entries(item).values()) if isinstance(item, dict) else items(item)
        own = getattr(item, "__dict__", None)
        parts += own.values() if type(own) is dict else []
        for part in parts:
            if id(part) not in seen and len(seen) < _MOST and not isinstance(part, (str, type)):
                seen.add(id(part))
                waiting.append(part)
