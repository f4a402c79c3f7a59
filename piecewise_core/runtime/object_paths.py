"""Where a call's constant objects hold tensors, so that other objects' are found in their place.

A cache that is made anew for each generation holds, in the same places, other tensors of the same
kinds; so does one whose tensors were replaced.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from piecewise_core.graph.entries import entries, items
from piecewise_core.graph.identity import tensor_facts
from piecewise_core.torch_compat.storages import sharing

__all__ = ["Otherwise", "Paths", "paths_of", "same_places"]

Path = tuple[tuple[str, Any], ...]
"""Steps from the list of objects: an attribute's name, or a key or place of what has items."""

Paths = dict[int, list[Path]]
"""The places among given tensors that lie in objects, and every path that leads to each."""

_MOST = 50_000
"""Objects looked into before the search is given up."""

_LEAVES = (str, bytes, int, float, complex, type, type(None), torch.nn.Module)


class Otherwise(Exception):
    """What other objects hold otherwise. Never reaches a user."""


def paths_of(tensors: Sequence[torch.Tensor], objects: Sequence[Any]) -> Paths:
    """The paths from ``objects`` to those of ``tensors`` that they hold."""
    place = {id(tensor): i for i, tensor in enumerate(tensors)}
    found: Paths = {}
    seen: set[int] = set()
    waiting: deque[tuple[Any, Path]] = deque((o, (("item", i),)) for i, o in enumerate(objects))
    while waiting and len(seen) < _MOST:
        item, path = waiting.popleft()
        if isinstance(item, torch.Tensor):
            if id(item) in place:
                found.setdefault(place[id(item)], []).append(path)
        elif not isinstance(item, _LEAVES) and id(item) not in seen:
            seen.add(id(item))
            waiting.extend((value, (*path, step)) for step, value in _entries(item))
    return found


def same_places(
    tensors: Sequence[torch.Tensor], paths: Paths, objects: Sequence[Any]
) -> list[torch.Tensor]:
    """``tensors`` with what ``objects`` hold in place of those that lay in ``paths``.

    Raises Otherwise where one is not there, or is of another kind, or shares memory otherwise.
    """
    now = list(tensors)
    for place, each in paths.items():
        try:
            held = [_at(path, objects) for path in each]
        except (AttributeError, LookupError, TypeError):
            raise Otherwise("it holds other tensors") from None
        first = held[0]
        if not isinstance(first, torch.Tensor) or any(other is not first for other in held):
            raise Otherwise("it holds other tensors")
        now[place] = first
    for was, new in ((tensors[place], now[place]) for place in paths):
        if was.shape != new.shape:
            a, b = tuple(new.shape), tuple(was.shape)
            raise Otherwise(f"it holds a tensor of shape {a} where the other held {b}")
        if tensor_facts(was) != tensor_facts(new):
            raise Otherwise("it holds tensors of another dtype, device or layout")
    if sharing(tensors) != sharing(now) or len({*map(id, now)}) != len(now):
        raise Otherwise("its tensors share memory in other ways")
    return now


def _entries(item: Any) -> Iterator[tuple[tuple[str, Any], Any]]:
    if isinstance(item, dict):
        yield from ((("item", key), value) for key, value in entries(item).items())
    elif isinstance(item, (list, tuple)):
        yield from ((("item", place), value) for place, value in enumerate(items(item)))
    held = getattr(item, "__dict__", None)
    if type(held) is dict:
        yield from ((("attribute", name), value) for name, value in held.items())


def _at(path: Path, objects: Sequence[Any]) -> Any:
    found: Any = objects
    for kind, key in path:
        found = found[key] if kind == "item" else vars(found)[key]
    return found
