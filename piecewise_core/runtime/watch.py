"""Whether containers hold what they held: dicts, classes, lists, cells, functions, entries.

A dict, and the dict of a class, tells of writes by its version; the rest is small and compared item
by item, by identity. One call of the C module of `unchanged` asks all; without it Python does.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable
from types import CellType, FunctionType
from typing import Any

import torch

from piecewise_core.runtime.unchanged import native

__all__ = ["Poll", "Watch", "asked", "identity"]


class Poll:
    """What no container tells of, a slot or the items of a set: ``ask()`` is compared by ``==``.

    ``name``: tells it from other polls of ``of``.
    """

    def __init__(self, of: Any, name: str, ask: Callable[[], Any]) -> None:
        self.of = of
        self.name = name
        self.ask = ask


class Watch:
    """Watches ``containers``, each once.

    A container is a dict, a class made by Python code, a list, a closure's cell, a function (its
    code, defaults and closure), a pair (dict, key) for that entry alone, or a Poll.

    ``check()`` is 0 while nothing was written since ``settle()``. A write of the same object may
    raise a false alarm: ``changed()`` gives the containers concerned.
    """

    check: Callable[[], int]
    settle: Callable[[], None]

    def __init__(self, containers: Iterable[Any]) -> None:
        once = list({identity(c): c for c in containers}.values())
        self._dicts = tuple(c for c in once if isinstance(c, (dict, type)))
        self._polls = tuple(c for c in once if isinstance(c, Poll))
        self._others = tuple(c for c in once if not isinstance(c, (dict, type, Poll)))
        module = native()
        if module is not None and hasattr(module, "state"):
            self._natively(module)
        else:
            self._slowly()
        self.settle()

    def changed(self) -> list[Any]:
        """The containers that were written to since ``settle()``."""
        return [*self._written(), *self._others_changed()]

    def _others_changed(self) -> list[Any]:
        pairs = zip(self._others, self._held, strict=True)
        others = [c for c, held in pairs if not _same(_held(c), held)]
        answers = zip(self._polls, self._answers, strict=True)
        return [*others, *(p for p, was in answers if asked(p) != was)]

    def _hold(self) -> None:
        self._held = tuple(map(_held, self._others))
        self._answers = tuple(map(asked, self._polls))

    def _with_polls(self, check: Callable[[], int]) -> Callable[[], int]:
        if not self._polls:
            return check
        polls, answers = self._polls, self._answers
        return lambda: check() or tuple(map(asked, polls)) != answers

    def _natively(self, module: Any) -> None:
        stamp = bytearray()

        def settle() -> None:
            module.stamp(self._dicts, stamp)
            self._hold()
            ask = functools.partial(module.state, self._dicts, stamp, self._others, self._held)
            self.check = self._with_polls(ask)

        def written() -> list[Any]:
            return [self._dicts[i] for i in module.written(self._dicts, stamp)]

        self.settle, self._written = settle, written

    def _slowly(self) -> None:
        copies: list[dict[Any, Any]] = []

        def settle() -> None:
            copies[:] = [dict(_dict_of(d)) for d in self._dicts]
            self._hold()

        def written() -> list[Any]:
            pairs = zip(self._dicts, copies, strict=True)
            return [d for d, copy in pairs if not _same_dict(_dict_of(d), copy)]

        def check() -> int:
            # By identity: an equal list in the place of another would be written to unseen.
            pairs = zip(self._dicts, copies, strict=True)
            return (
                0
                if all(_same_dict(_dict_of(d), c) for d, c in pairs)
                and not (self._others_changed())
                else 1
            )

        self.settle, self._written, self.check = settle, written, check


def identity(container: Any) -> Any:
    """What tells a container from others."""
    if isinstance(container, Poll):
        return id(container.of), container.name
    if isinstance(container, tuple):
        return id(container[0]), container[1]
    return id(container)


def asked(poll: Poll) -> Any:
    """The answer, or what kind of error there was; of a tensor, which one it is."""
    try:
        found = poll.ask()
        return id(found) if isinstance(found, torch.Tensor) else found
    except Exception as error:  # not there now
        return type(error)


def _dict_of(container: Any) -> Any:
    return vars(container) if isinstance(container, type) else container


def _held(container: Any) -> Any:
    """What the C module's ``holds`` compares: what is not there stands as the container itself."""
    if isinstance(container, list):
        return tuple(container)
    if isinstance(container, CellType):
        try:
            return container.cell_contents
        except ValueError:
            return container
    if isinstance(container, FunctionType):
        parts = container.__code__, container.__defaults__
        return *parts, container.__kwdefaults__, container.__closure__
    return container[0].get(container[1], container)


def _same(a: Any, b: Any) -> bool:
    if type(a) is tuple and type(b) is tuple:
        return len(a) == len(b) and all(map(operator.is_, a, b))
    return a is b


def _same_dict(now: Any, was: dict[Any, Any]) -> bool:
    same = len(now) == len(was) and all(map(operator.is_, now.values(), was.values()))
    return same and all(map(operator.eq, now, was))
