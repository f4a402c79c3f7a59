"""What one object holds: what to look into next, and which containers to watch."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from functools import partial
from types import CellType, CodeType, FunctionType, MemberDescriptorType, ModuleType
from typing import Any

import torch

from piecewise_core.graph.entries import entries, items
from piecewise_core.runtime.classes import is_heap
from piecewise_core.runtime.polls import BYTES, Poll
from piecewise_core.runtime.watch import class_of

__all__ = ["OWN", "Found", "codes", "content_of", "globals_of", "of_container", "of_instance"]

OWN = frozenset({"torch", "piecewise_core"})
"""Packages whose own classes and functions are not looked into."""

_UNSEEN = frozenset(
    name
    for name in vars(torch.nn.Module())
    if ("hooks" in name and name not in ("_forward_hooks", "_forward_pre_hooks")) or "set" in name
)
"""Of modules: hooks that no forward runs, and what torch notes beside those that it does."""

_LARGE = 1 << 24
"""Bytes up to which arrays are compared at every call."""

Found = tuple[list[Any], list[Any]]
"""What to look into next, and what to watch."""


def of_container(value: Any) -> Found:
    """The items of a list, a dict, a set and the like."""
    if isinstance(value, dict):
        held = entries(value)
        moves = isinstance(value, OrderedDict) and len(held) > 1  # without a write
        order = [Poll(value, "order", lambda: list(entries(value)))] if moves else []
        return list(held.values()), [value, *order]
    if isinstance(value, list):
        return items(value), [value]
    if isinstance(value, tuple):
        return items(value), []
    if isinstance(value, (set, frozenset)):
        return items(value), [Poll(value, "items", partial(set, value))]
    if isinstance(value, deque):
        return items(value), [Poll(value, "items", partial(items, value))]
    if _bytes(value) is not None:
        return [], [Poll(value, BYTES, partial(_bytes, value))]
    return [], []


def _bytes(value: Any) -> bytes | None:
    """What an array of numpy's or Python's library holds, of which code reads numbers."""
    try:
        memory = memoryview(value)
        return memory.tobytes() if memory.nbytes <= _LARGE else None
    except (TypeError, ValueError, NotImplementedError, BufferError):  # it is no array
        return None


def of_instance(value: Any) -> Found:
    """Attributes, in a dict or in slots, and the class."""
    kind = type(value)
    own = getattr(value, "__dict__", None)
    held = [own] if isinstance(own, dict) else []
    skipped = _UNSEEN if isinstance(value, torch.nn.Module) else ()
    inner = [v for d in held for n, v in d.items() if n not in skipped]
    if not is_heap(kind):
        return inner, [*held]
    heap = [c for c in kind.__mro__ if is_heap(c)]
    slots = [n for c in heap for n, v in vars(c).items() if isinstance(v, MemberDescriptorType)]
    polls = [Poll(value, n, partial(getattr, value, n)) for n in slots]
    values = [getattr(value, n, None) for n in slots]
    return [*inner, *values, kind], [*held, *polls, class_of(value)]


def globals_of(fn: FunctionType, met: set[str]) -> Found:
    """The globals that the code names, and of modules among them what it may name there.

    ``met``: takes in all names that the code mentions.
    """
    names = {n for code in codes(fn.__code__) for n in code.co_names}
    met |= names
    named = [n for n in names if n in fn.__globals__]
    inner = [fn.__globals__[n] for n in named]
    entries: list[Any] = [(fn.__globals__, n) for n in named]
    for module in [m for m in inner if isinstance(m, ModuleType)]:
        held = vars(module)
        entries += [(held, n) for n in names if n in held]
        if module.__name__.partition(".")[0] not in OWN:
            inner += [held[n] for n in names if n in held]
    return inner, entries


def codes(code: CodeType) -> Iterator[CodeType]:
    """``code``, and that of the functions made in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes(constant)


def content_of(cell: CellType) -> Any:
    """What a closure's cell holds; None before it is assigned."""
    try:
        return cell.cell_contents
    except ValueError:
        return None
