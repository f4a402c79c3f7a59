"""Whether containers hold what they held: dicts, classes, lists, cells, functions, entries.

A dict, and the dict of a class, tells of writes by its version; the rest is small and compared item
by item, by identity. One call of the C module of `dict_guard` asks all; without it Python does.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from types import CellType, FunctionType
from typing import Any

from piecewise_core.graph.entries import entries, items
from piecewise_core.runtime.dict_guard import native
from piecewise_core.runtime.polls import Poll, Switch, answer_of, asked, differ
from piecewise_core.runtime.slowwatch import Asker

__all__ = ["Outline", "Watch", "class_of", "contents_of", "identity"]


class Outline:
    """Of a class, its bases and how many entries it has: what is quickly asked without C."""

    def __init__(self, kind: type) -> None:
        self.of = kind


def class_of(value: Any) -> Any:
    """The container of the class that ``value`` is of."""
    return (value,)


class Watch:
    """Watches ``containers``, each once.

    A container is a dict, a class made by Python code, a list, a closure's cell, a function (its
    code, defaults and closure), a pair (dict, key) for that entry alone, what ``class_of`` gives,
    a Switch or another Poll; without C also an Outline, or a pair of a class and a name.

    ``check()`` is 0 while nothing was written since ``settle()``. A write of the same object may
    raise a false alarm: ``changed()`` gives the containers concerned.
    """

    check: Callable[[], int]
    settle: Callable[[], None]
    _noted: Callable[[], Any]
    _written: Callable[[Any], list[Any]]

    def __init__(self, containers: Iterable[Any]) -> None:
        once = list({identity(c): c for c in containers}.values())
        self.containers = once
        self._dicts = tuple(c for c in once if isinstance(c, (dict, type)))
        self._polls = tuple(c for c in once if isinstance(c, Poll))
        self._switches = [c for c in self._polls if isinstance(c, Switch)]
        self._others = tuple(c for c in once if not isinstance(c, (dict, Poll)))
        module = native()
        if module is not None and hasattr(module, "state"):
            self._natively(module)
        else:
            self._slowly()
        self.settle()

    def close(self) -> None:
        """Watch nothing any more, and keep nothing: this lies on circles."""
        vars(self).clear()

    def changed(self) -> list[Any]:
        """The containers that were written to since ``settle()``."""
        return self._since(self._noted(), self._held, self._answers)

    def renew(self) -> list[Any]:
        """The same, and settle: first, since what is written in between is not to be lost."""
        before = self._noted(), self._held, self._answers
        self.settle()
        return self._since(*before)

    def _since(self, noted: Any, held: Sequence[Any], answers: Sequence[Any]) -> list[Any]:
        others = [c for c, was in zip(self._others, held, strict=True) if not _same(_held(c), was)]
        polls = [p for p, was in zip(self._polls, answers, strict=True) if differ(asked(p), was)]
        found = {identity(c): c for c in (*self._written(noted), *others, *polls)}
        return list(found.values())

    def _hold(self) -> None:
        self._held = tuple(map(_held, self._others))
        self._answers = tuple(map(asked, self._polls))

    def _with_polls(self, check: Callable[[], int], polls: Sequence[Poll]) -> Callable[[], int]:
        if not polls:
            return check
        answers = tuple(map(asked, polls))
        return lambda: check() or differ(tuple(map(asked, polls)), answers)

    def _natively(self, module: Any) -> None:
        stamp = bytearray()
        polls = [p for p in self._polls if not isinstance(p, Switch)]

        def settle() -> None:
            module.stamp(self._dicts, stamp)
            self._hold()
            others = (*self._others, *(s.ask for s in self._switches))
            held = (*self._held, *(answer_of(s) for s in self._switches))
            ask = functools.partial(module.state, self._dicts, stamp, others, held)
            self.check = self._with_polls(ask, polls)

        def written(noted: bytearray) -> list[Any]:
            return [self._dicts[i] for i in module.written(self._dicts, noted)]

        self.settle, self._written, self._noted = settle, written, stamp.copy

    def _slowly(self) -> None:
        copies: list[dict[Any, Any]] = []
        asker = Asker([_dict_of(d) for d in self._dicts], self._others)

        def settle() -> None:
            copies[:] = [entries(_dict_of(d)) for d in self._dicts]
            self._hold()
            self.check = self._with_polls(asker.check(self._held), self._polls)

        def written(noted: list[dict[Any, Any]]) -> list[Any]:
            pairs = zip(self._dicts, noted, strict=True)
            return [d for d, copy in pairs if not _same_dict(_dict_of(d), copy)]

        self.settle, self._written, self._noted = settle, written, copies.copy


def identity(container: Any) -> Any:
    """What tells a container from others."""
    if isinstance(container, Poll):
        return id(container.of), container.name
    if isinstance(container, Outline):
        return id(container.of), Outline
    if isinstance(container, tuple):
        return (id(container[0]), *container[1:], "class" * (len(container) == 1))
    return id(container)


def _dict_of(container: Any) -> Any:
    return vars(container) if isinstance(container, type) else container


def contents_of(cell: CellType) -> Any:
    """What it holds; an empty one itself."""
    try:
        return cell.cell_contents
    except ValueError:
        return cell


def _held(container: Any) -> Any:
    """What the C module's ``holds`` compares: what is not there stands as the container itself."""
    if isinstance(container, list):
        return tuple(items(container))
    if isinstance(container, CellType):
        return contents_of(container)
    if isinstance(container, FunctionType):
        parts = container.__code__, container.__defaults__
        return *parts, container.__kwdefaults__, container.__closure__
    if isinstance(container, type):
        return container.__mro__
    if isinstance(container, Outline):
        return container.of.__mro__, len(vars(container.of))
    if len(container) == 1:
        return type(container[0])
    if isinstance(container[0], type):
        return vars(container[0]).get(container[1], container)
    return dict.get(container[0], container[1], container)


def _same(a: Any, b: Any) -> bool:
    if type(a) is tuple and type(b) is tuple:
        pairs = zip(a, b, strict=False)
        return len(a) == len(b) and all(x is y or (type(x) is int and x == y) for x, y in pairs)
    return a is b


def _same_dict(now: Any, was: dict[Any, Any]) -> bool:
    held = entries(now)
    same = len(held) == len(was) and all(map(operator.is_, held.values(), was.values()))
    return same and all(map(operator.eq, held, was))
