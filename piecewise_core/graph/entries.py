"""What containers hold, read without the methods of their own classes.

A class may load what it holds when it is asked: transformers' table of models imports them all.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

__all__ = ["entries", "items", "keys_of", "values_of"]


def entries(held: Mapping[Any, Any]) -> dict[Any, Any]:
    """A copy of a dict, or of a class's namespace, in its order."""
    return dict(_kind(held).items(held))


def keys_of(held: Mapping[Any, Any]) -> Collection[Any]:
    """Those of a dict or of a class's namespace, in order; a view."""
    view: Collection[Any] = _kind(held).keys(held)
    return view


def values_of(held: Mapping[Any, Any]) -> Collection[Any]:
    """What they hold, a view."""
    view: Collection[Any] = _kind(held).values(held)
    return view


def items(held: Any) -> list[Any]:
    """Those of a list, a tuple, a set or a deque; of anything else none."""
    kinds: tuple[Any, ...] = (list, tuple, set, frozenset, deque)
    for kind in kinds:
        if isinstance(held, kind):
            return list(kind.__iter__(held))
    return []


def _kind(held: Mapping[Any, Any]) -> Any:
    kinds: tuple[Any, ...] = (OrderedDict, dict, MappingProxyType)
    return next(kind for kind in kinds if isinstance(held, kind))
