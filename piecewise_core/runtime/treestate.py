"""The Python state that a recorded function may read: there is no trace that says what it did read.

Watched is what the function reaches by name: its modules and their attributes, the lists, dicts and
plain objects in them, closure cells and the globals that its code names. Tensors have checks of
their own (`runtime.parameters`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import CellType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any

import torch

from piecewise_core.runtime.reach import reach
from piecewise_core.runtime.watch import Poll, Watch, asked, identity

__all__ = ["TreeState"]

_MOST = 100_000
"""Objects looked into; what lies beyond is not watched."""

_HEAP = 1 << 9
_LEAVES = (str, bytes, int, float, complex, type(None), ModuleType, torch.Tensor)
_OWN = ("torch", "piecewise_core")


class TreeState:
    """Watches what ``fn`` reaches.

    ``check()`` is 0 while nothing was written; else ``look_again()`` says whether what was written
    differs. ``settle()`` takes everything as it is now for what it should be.
    """

    check: Callable[[], int]

    def __init__(self, fn: Callable[..., Any]) -> None:
        self._fn = fn
        self.check = lambda: 0

    def settle(self) -> None:
        """Look anew at all that ``fn`` reaches."""
        containers = list(_reached(self._fn))
        self._watch = Watch(containers)
        self._contents = {identity(c): _contents(c) for c in containers}
        self.check = self._watch.check

    def look_again(self) -> str | None:
        """What differs, in one sentence; None after a false alarm."""
        concerned = self._watch.changed()
        self._watch.settle()
        self.check = self._watch.check
        for container in concerned:
            was, now = self._contents[identity(container)], _contents(container)
            why = _difference(container, was, now)
            if why is not None:
                return why
            self._contents[identity(container)] = now
        return None


def _reached(fn: Callable[..., Any]) -> Iterator[Any]:
    """Every container that ``fn`` may read from."""
    found = reach(fn)
    waiting: deque[Any] = deque([fn, *found.roots, *found.objects])
    seen: set[int] = set()
    while waiting and len(seen) < _MOST:
        value = waiting.popleft()
        if id(value) in seen or isinstance(value, _LEAVES):
            continue
        seen.add(id(value))
        inner, containers = _looked_into(value)
        yield from containers
        waiting.extend(inner)


def _looked_into(value: Any) -> tuple[Sequence[Any], Sequence[Any]]:
    """What to look into next, and what to watch, of one object."""
    if isinstance(value, MethodType):
        return [value.__self__, value.__func__], []
    if isinstance(value, FunctionType):
        return _of_function(value)
    if isinstance(value, dict):
        return list(value.values()), [value]
    if isinstance(value, (list, tuple)):
        return list(value), [value] if isinstance(value, list) else []
    if isinstance(value, (set, frozenset, deque)):
        return [], [
            Poll(value, "items", lambda: (list if isinstance(value, deque) else set)(value))
        ]
    if isinstance(value, type):
        return [], [c for c in value.__mro__ if c.__flags__ & _HEAP]
    if _is_torchs(type(value)) and not isinstance(value, torch.nn.Module):
        return [], []  # an operator, say: what it calls runs at every replay, or is native
    own = getattr(value, "__dict__", None)
    kinds = [type(value)] if type(value).__flags__ & _HEAP else []
    slots = [Poll(value, n, partial(getattr, value, n)) for k in kinds for n in _slots(k)]
    return ([*own.values(), *kinds], [own, *slots]) if isinstance(own, dict) else (kinds, slots)


def _is_torchs(thing: Any) -> bool:
    return str(getattr(thing, "__module__", "")).partition(".")[0] in _OWN


def _slots(kind: type) -> list[str]:
    """The names of a class's slots."""
    found = (
        (n, v) for base in kind.__mro__ if base.__flags__ & _HEAP for n, v in vars(base).items()
    )
    return [name for name, value in found if isinstance(value, MemberDescriptorType)]


def _of_function(fn: FunctionType) -> tuple[Sequence[Any], Sequence[Any]]:
    """Its closure, and the globals that its code names; of torch's functions, nothing."""
    if _is_torchs(fn):
        return [], []
    cells = list(fn.__closure__ or ())
    names = [n for n in fn.__code__.co_names if n in fn.__globals__]
    entries = [(fn.__globals__, name) for name in names]
    inner = [*map(_content, cells), *(fn.__globals__[name] for name in names)]
    for value in [fn.__globals__[n] for n in names if isinstance(fn.__globals__[n], ModuleType)]:
        entries += [(vars(value), n) for n in fn.__code__.co_names if n in vars(value)]
    return inner, [fn, *cells, *entries]


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def _contents(container: Any) -> dict[Any, Any]:
    """What a container holds, by name."""
    if isinstance(container, type):
        return dict(vars(container))
    if isinstance(container, dict):
        return dict(container)
    if isinstance(container, Poll):
        return {container.name: asked(container)}
    if isinstance(container, list):
        return dict(enumerate(container))
    if isinstance(container, CellType):
        return {"": _content(container)}
    if isinstance(container, FunctionType):
        return {"__code__": container.__code__, "__defaults__": container.__defaults__}
    return {container[1]: container[0].get(container[1])}


def _difference(container: Any, was: dict[Any, Any], now: dict[Any, Any]) -> str | None:
    for name in {**was, **now}:
        a, b = was.get(name, _MISSING), now.get(name, _MISSING)
        if a is b or (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)):
            continue
        if type(a) is type(b) and isinstance(a, (*_PLAIN,)) and repr(a) == repr(b):
            continue
        where = container.__qualname__ if isinstance(container, type) else type(container).__name__
        return f"{name!r} of a {where} is {_shown(b)}, and was {_shown(a)}"
    return None


_PLAIN = (str, bytes, int, float, complex, set, frozenset)
_MISSING = object()


def _shown(value: Any) -> str:
    if value is _MISSING:
        return "not there"
    text = repr(value) if isinstance(value, (bool, int, float, str, type(None))) else ""
    return text[:40] or f"a {type(value).__name__}"
