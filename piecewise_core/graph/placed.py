"""Modules and tensors that a trace met elsewhere than where a module tree has them.

What is kept says of tensors where the tree has them. ``self.active`` may be another of the tree's
modules in the next process: of the same class, and so are all that it holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from piecewise_core.graph.looks import Look

__all__ = ["placed"]


def placed(values: Mapping[str, Any], met: Iterable[str]) -> Iterator[Look]:
    """That each is what lies at its place in the tree. ``met``: expressions for them."""
    sources: dict[int, str] = {}
    roots: list[str] = []
    for source in met:
        if isinstance(values[source], torch.nn.Module):
            roots.append(source)
        sources.setdefault(id(values[source]), source)
    seen: set[int] = set()
    for root in roots:
        for place, value in _tree(root, values[root], seen):
            source = sources.get(id(value), place)
            if source != place:
                yield Look(place, "DUPLICATE_INPUT", source)


def _tree(place: str, module: torch.nn.Module, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Every module and tensor of a tree, once, by the expression for its first place."""
    if id(module) in seen:
        return
    seen.add(id(module))
    yield place, module
    for part in ("_parameters", "_buffers"):
        for name, tensor in getattr(module, part).items():
            if isinstance(tensor, torch.Tensor):
                yield f"{place}.{part}[{name!r}]", tensor
    for name, held in vars(module).items():
        if isinstance(held, torch.Tensor):
            yield f"{place}.{name}", held
    for name, child in module._modules.items():
        if child is not None:
            yield from _tree(f"{place}._modules[{name!r}]", child, seen)
