"""The Python state that a recorded function may read: there is no trace that says what it did read.

Watched is what the function reaches (`reached`): its modules and their attributes, the lists, dicts
and plain objects in them, closure cells, methods, and the globals that code names. Tensors have
checks of their own (`runtime.parameters`).
"""

from __future__ import annotations

from collections.abc import Callable
from types import BuiltinFunctionType, CellType, FunctionType
from typing import Any

import torch

from piecewise_core.graph.questions import MODES
from piecewise_core.runtime.classes import alike
from piecewise_core.runtime.reached import reached
from piecewise_core.runtime.watch import Poll, Watch, asked, identity

__all__ = ["TreeState"]

_switches: tuple[Callable[[], Any], ...] = (
    torch.get_default_dtype,
    torch._C._get_deterministic_algorithms,
    torch._C._get_float32_matmul_precision,
)
"""Torch's own state that recordings fix, cheap enough to ask at every call."""


class TreeState:
    """Watches what ``fn`` reaches.

    ``check()`` is 0 while nothing was written; else ``look_again()`` says whether what was written
    differs. ``settle()`` takes everything as it is now for what it should be, ``ran()`` what the
    function itself may have changed: whole numbers that it writes are counters, and are let be.
    ``asks_modes``: whether code that it reaches names a question about torch's modes.
    """

    check: Callable[[], int]

    def __init__(self, fn: Callable[..., Any]) -> None:
        self._fn = fn
        self._counts: set[Any] = set()
        self.asks_modes = False
        self.check = lambda: 0

    def settle(self) -> None:
        """Look anew at all that ``fn`` reaches."""
        containers = list(reached(self._fn))
        self._watch = Watch(containers)
        self._contents = {identity(c): _contents(c) for c in containers}
        self._switches = [ask() for ask in _switches]
        self.asks_modes = any(map(_asks_modes, containers))
        self._arm()

    def look_again(self) -> str | None:
        """What differs, in one sentence; None after a false alarm."""
        for ask, was in zip(_switches, self._switches, strict=True):
            if ask() != was:
                return f"torch's {ask.__name__.lstrip('_')}() is {ask()}, and was {was}"
        for container in self._written():
            name = identity(container)
            was, now = self._contents[name], _contents(container)
            for key in _differing(was, now):
                if (name, key) not in self._counts or type(now.get(key)) is not int:
                    return _told(container, key, was, now)
            self._contents[name] = now
        return None

    def ran(self) -> None:
        """``fn`` ran as it is: take what it changed for what it should be."""
        if not self.check():
            return
        grown = False
        for container in self._written():
            name = identity(container)
            was, now = self._contents[name], _contents(container)
            self._contents[name] = now
            for key in _differing(was, now):
                if type(was.get(key)) is int and type(now.get(key)) is int:
                    self._counts.add((name, key))
                grown |= not isinstance(now.get(key), _PLAIN)
        if grown:  # there may be more to look into
            self.settle()

    def _written(self) -> list[Any]:
        concerned = self._watch.changed()
        self._watch.settle()
        self._arm()
        return concerned

    def _arm(self) -> None:
        asked, was = self._watch.check, self._switches
        get_dtype, is_exact, get_precision = _switches

        def check() -> int:
            return asked() or [get_dtype(), is_exact(), get_precision()] != was

        self.check = check


def _asks_modes(container: Any) -> bool:
    """Whether a function names a question about modes, or a global is one under another name."""
    if isinstance(container, FunctionType):
        return bool(MODES & {*container.__code__.co_names})
    if isinstance(container, tuple) and len(container) == 2 and isinstance(container[0], dict):
        found = container[0].get(container[1])
        return isinstance(found, BuiltinFunctionType) and found.__name__ in MODES
    return False


def _contents(container: Any) -> dict[Any, Any]:
    """What a container holds, by name."""
    if isinstance(container, type):
        held = {n: v for n, v in vars(container).items() if n not in _NO_MATTER}
        return {**held, "__mro__": container.__mro__}
    if isinstance(container, dict):
        return dict(container)
    if isinstance(container, Poll):
        return {container.name: asked(container)}
    if isinstance(container, list):
        return dict(enumerate(container))
    if isinstance(container, CellType):
        return {"": _content(container)}
    if isinstance(container, FunctionType):
        parts = ("__code__", "__defaults__", "__kwdefaults__")
        return {part: getattr(container, part) for part in parts}
    if len(container) == 1:
        return {"__class__": type(container[0])}
    return {container[1]: container[0].get(container[1])}


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def _differing(was: dict[Any, Any], now: dict[Any, Any]) -> list[Any]:
    """The names under which something else is held; tensors are not looked at."""
    found = []
    for name in {**was, **now}:
        a, b = was.get(name, _MISSING), now.get(name, _MISSING)
        tensors = isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
        if not tensors and not alike(a, b):
            found.append(name)
    return found


def _told(container: Any, name: Any, was: dict[Any, Any], now: dict[Any, Any]) -> str:
    where = container.__qualname__ if isinstance(container, type) else type(container).__name__
    a, b = was.get(name, _MISSING), now.get(name, _MISSING)
    return f"{name!r} of a {where} is {_shown(b)}, and was {_shown(a)}"


_NO_MATTER = frozenset({"__slotnames__", "__annotations__", "__doc__", "__weakref__"})
"""What Python itself notes in a class: copying an instance writes the first."""

_PLAIN = (str, bytes, int, float, complex, type(None))
_MISSING = object()


def _shown(value: Any) -> str:
    if value is _MISSING:
        return "not there"
    text = repr(value) if isinstance(value, (bool, int, float, str, type(None))) else ""
    return text[:40] or f"a {type(value).__name__}"
