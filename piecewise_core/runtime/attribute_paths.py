"""Where plain Python objects and globals hold given tensors: in attributes, lists and dicts.

Module trees have places of their own (`module_paths`). What a model keeps elsewhere, a cache
object's list of layers say, is found here, so that a replaced tensor is noticed there too.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, MemberDescriptorType, ModuleType
from typing import Any

import torch

from piecewise_core.graph.entries import entries, items
from piecewise_core.graph.wrappers import is_wrapper
from piecewise_core.runtime.classes import is_heap
from piecewise_core.runtime.closure_walk import Anchor
from piecewise_core.runtime.contents import codes

__all__ = ["globals_holding", "holders_of"]

_MOST = 50_000
"""Objects looked into before the search is given up."""

_LEAVES = (str, bytes, int, float, complex, type(None), ModuleType, torch.Tensor)
_PLAIN = frozenset({str, bytes, bool, int, float, complex, type(None)})
_CODE = (FunctionType, BuiltinFunctionType)


@dataclass(frozen=True)
class _Link:
    """An entry, and which object (by id) it is an entry of."""

    entry: Anchor
    owner: int


class _Looked:
    """Attributes of a class, its bases' too, or in slots of an object: read as a dict's entries."""

    def __init__(self, item: Any) -> None:
        self._item = item

    def __getitem__(self, name: str) -> Any:
        try:
            return getattr(self._item, name)
        except AttributeError:
            raise KeyError(name) from None


def holders_of(
    tensors: Sequence[torch.Tensor], starts: Iterable[Any], most: int = _MOST
) -> list[Anchor]:
    """Every entry of a dict, list or class, and every slot, from ``starts`` to ``tensors``."""
    wanted = {id(t) for t in tensors}
    found: dict[tuple[int, Any], Anchor] = {}
    above: dict[int, _Link | None] = {}
    waiting: deque[tuple[Any, _Link | None]] = deque((item, None) for item in starts)
    while waiting and wanted and len(above) < most:
        item, link = waiting.popleft()
        if id(item) in wanted:
            _keep(link, above, found)
        if id(item) in above or (isinstance(item, (*_LEAVES, *_CODE)) and not _holds(item)):
            continue
        above[id(item)] = link
        waiting.extend(_entries(item, link))
    return list(found.values())


def globals_holding(
    tensors: Sequence[torch.Tensor], modules: Iterable[torch.nn.Module]
) -> list[Anchor]:
    """The globals that methods of ``modules`` name and that lead to one of ``tensors``."""
    wanted = {id(t) for t in tensors}
    found: dict[tuple[int, str], Anchor] = {}
    named = {(id(d), n): (d, n, d[n]) for d, n in _named(modules)}.values()
    objects = [value for _, _, value in named if not isinstance(value, (ModuleType, *_CODE))]
    # Objects that many globals lead to are looked into once, for most models for the last time.
    leads = bool(holders_of(tensors, objects, _MOST * len(objects)))
    for held, name, value in named:
        looked = leads and not isinstance(value, (ModuleType, *_CODE))
        inner = holders_of(tensors, [value]) if looked else []
        if inner or id(value) in wanted:
            for anchor in (Anchor(value, held, name), *inner):
                found[id(anchor.holder), anchor.key] = anchor
    return list(found.values())


def _named(modules: Iterable[torch.nn.Module]) -> Iterator[tuple[dict[str, Any], str]]:
    """The entries of modules' namespaces that methods name; torch's own do not count."""
    kinds = {c for m in modules for c in type(m).__mro__}
    methods = [inspect.unwrap(f) for c in kinds for f in vars(c).values() if callable(f)]
    for fn in methods:
        if not isinstance(fn, FunctionType) or _is_torchs(fn.__globals__):
            continue
        names = {name for code in codes(fn.__code__) for name in code.co_names}
        named = [fn.__globals__[n] for n in names if n in fn.__globals__]
        others = [vars(m) for m in named if isinstance(m, ModuleType)]
        spaces = [fn.__globals__, *(held for held in others if not _is_torchs(held))]
        yield from ((held, name) for held in spaces for name in names if name in held)


def _holds(item: Any) -> bool:
    """Whether it is a tensor that holds others: made of them, or given them as attributes."""
    return isinstance(item, torch.Tensor) and (is_wrapper(item) or bool(_attributes(item)))


def _is_torchs(namespace: dict[str, Any]) -> bool:
    return str(namespace.get("__name__", "")).partition(".")[0] == "torch"


def _keep(
    link: _Link | None, above: dict[int, _Link | None], found: dict[tuple[int, Any], Anchor]
) -> None:
    """Put the entry of ``link``, and those that lead to it, into ``found``."""
    while link is not None and (id(link.entry.holder), link.entry.key) not in found:
        found[id(link.entry.holder), link.entry.key] = link.entry
        link = above.get(link.owner)


def _entries(item: Any, link: _Link | None) -> Iterator[tuple[Any, _Link | None]]:
    """All that ``item`` holds, with the entry that does; a tuple's have that of the tuple."""
    if isinstance(item, tuple):
        yield from ((value, link) for value in items(item))
    held: list[tuple[Any, Any, Any]] = []
    if isinstance(item, dict):
        held += [(value, item, key) for key, value in entries(item).items()]
    elif isinstance(item, list):
        held += [(value, item, place) for place, value in enumerate(items(item))]
    if isinstance(item, type):
        names = dict.fromkeys(n for kind in _outside_torch(item) for n in vars(kind))
        looked, pairs = _Looked(item), ((getattr(item, name, None), name) for name in names)
        held += [(value, looked, name) for value, name in pairs if not callable(value)]
    else:
        own = _attributes(item)
        held += [(value, own, key) for key, value in own.items()]
        yield (type(item), link)
        kinds = _outside_torch(type(item))
        slots = [
            n for k in kinds for n, v in vars(k).items() if isinstance(v, MemberDescriptorType)
        ]
        looked = _Looked(item)
        held += [(getattr(item, n), looked, n) for n in slots if hasattr(item, n)]
    for value, holder, key in held:
        if type(value) not in _PLAIN:  # most are: a module's flags
            yield value, _Link(Anchor(value, holder, key), id(item))


def _outside_torch(kind: type) -> list[type]:
    """A class and its bases, but for those of torch's and built-in ones: nobody replaces theirs."""
    return [k for k in kind.__mro__ if is_heap(k) and not _is_torchs({"__name__": k.__module__})]


def _attributes(item: Any) -> dict[str, Any]:
    try:
        held = vars(item)
    except Exception:  # it has none, or stands for something that is not there
        return {}
    return held if isinstance(held, dict) else {}
