"""Classes as a trace found them: what runs in them, and the values that it read through them."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

import torch

from piecewise_core.graph.structure import is_plain
from piecewise_core.runtime.watch import Outline
from piecewise_core.torch_compat.modules import is_tagging, unpatched

__all__ = ["Classes", "alike", "is_heap", "same_answers"]

_HEAP = 1 << 9  # of a class's flags: it was made by Python code, and may be changed


class Classes:
    """The classes in which attributes were looked up, with all their bases.

    ``read``: names of values that were read through classes. Other values in them may change.
    ``ran``: (module, qualified name) of functions that a trace ran through; ``codes``: their code,
    where that is known.
    """

    def __init__(
        self,
        ran: frozenset[tuple[str, str]] = frozenset(),
        codes: frozenset[CodeType] = frozenset(),
    ) -> None:
        self.read: set[str] = set()
        self._ran, self._codes = ran, codes
        self._known: dict[type, dict[str, Any]] = {}
        self._orders: dict[type, tuple[type, ...]] = {}

    def add(self, kind: type) -> None:
        """Note ``kind`` and its bases as they are."""
        if kind not in self._known:
            for base in kind.__mro__:
                if is_heap(base):
                    self._known.setdefault(base, _held(base))
                    self._orders[base] = base.__mro__

    def __contains__(self, kind: type) -> bool:
        return kind in self._known

    def __iter__(self) -> Iterator[type]:
        return iter(self._known)

    def functions(self) -> Iterator[FunctionType]:
        """The functions in them whose code a trace may have run."""
        for kind, held in self._known.items():
            if not kind.__module__.startswith("torch."):
                for value in held.values():
                    function = getattr(value, "__func__", getattr(value, "fget", value))
                    if isinstance(function, FunctionType) and self._may_have_run(function):
                        yield function

    def _may_have_run(self, function: FunctionType) -> bool:
        if function.__name__ in ("forward", "__call__") or function.__code__ in self._codes:
            return True
        return (function.__module__, function.__qualname__) in self._ran

    def apart(self, kind: type) -> Iterator[Any]:
        """What to watch of ``kind`` where it would take long to ask for all that it holds."""
        yield Outline(kind)
        names = {name.rpartition(".")[2] for _, name in self._ran}
        for name in {*self.read, *names, "forward", "__call__"}:
            if name in vars(kind):
                yield (kind, name)

    def differs(self, kind: type) -> str | None:
        """What of ``kind`` is no longer as it was, in one sentence."""
        if kind.__mro__ != self._orders[kind]:
            return f"class {kind.__module__}.{kind.__qualname__} has other bases"
        was, now = self._known[kind], _held(kind)
        for name in {**was, **now}:
            if name in was and name in now and alike(*map(unpatched, (was[name], now[name]))):
                continue
            if is_tagging(now.get(name)):  # another torch.compile in the process began
                continue
            if self._matters(kind, name, was, now):
                return f"class {kind.__module__}.{kind.__qualname__} has another {name!r}"
        return None

    def _matters(self, kind: type, name: str, was: dict[str, Any], now: dict[str, Any]) -> bool:
        if name in self.read:
            return True
        if not any(_runs(held[name]) for held in (was, now) if name in held):
            return False
        if name in was or (name[:2] == "__" == name[-2:]):
            return True
        # One more method: it may stand in front of that of a base.
        others = (*self._known.values(), *map(vars, kind.__mro__[1:-1]))
        return any(name in held for held in others)

    def any_differs(self) -> str | None:
        """What of any of them is no longer as it was, in one sentence."""
        return next((why for kind in self._known if (why := self.differs(kind))), None)


def _held(kind: type) -> dict[str, Any]:
    """What ``kind`` holds; modules weakly, since a class may be what keeps its last instance."""
    items = vars(kind).items()
    return {k: weakref.ref(v) if isinstance(v, torch.nn.Module) else v for k, v in items}


def is_heap(kind: type) -> bool:
    """Whether Python code made the class."""
    return bool(kind.__flags__ & _HEAP)


def alike(a: Any, b: Any) -> bool:
    """Whether a trace would take ``b`` for ``a``: 1 is not True, nor 1.0, and 0.0 is not -0.0."""
    if a is b:
        return True
    if type(a) is not type(b) or not is_plain(a):
        return False
    return bool(a == b) and repr(a) == repr(b) if isinstance(a, (float, complex)) else bool(a == b)


def _runs(value: Any) -> bool:
    return callable(value) or hasattr(type(value), "__get__")


def same_answers(a: Any, b: Any) -> bool:
    """Whether two answers are one."""
    if type(a) in (tuple, list) and type(a) is type(b):
        return len(a) == len(b) and all(map(same_answers, a, b))
    if type(a) is set and type(b) is set:
        return a == b and sorted(map(repr, a)) == sorted(map(repr, b))
    return alike(a, b)
