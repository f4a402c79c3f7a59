"""The Python state that a recorded function may read: there is no trace that says what it did read.

Watched is what the function reaches (`reached`): its modules and their attributes, the lists, dicts
and plain objects in them, closure cells, methods, and the globals that code names. Tensors have
checks of their own (`runtime.parameters`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Container, Iterator
from itertools import chain
from types import CellType, FunctionType
from typing import Any

import torch

from piecewise_core.graph.entries import entries, items
from piecewise_core.graph.memory import memory_of, values
from piecewise_core.graph.questions import WATCHED, words
from piecewise_core.graph.structure import is_plain
from piecewise_core.runtime.classes import alike
from piecewise_core.runtime.closure_walk import Anchor, anchors_in, roots_of
from piecewise_core.runtime.contents import codes, content_of
from piecewise_core.runtime.hostrandom import is_random
from piecewise_core.runtime.polls import BYTES, Poll, Switch, asked
from piecewise_core.runtime.reached import reached
from piecewise_core.runtime.readback import names_read
from piecewise_core.runtime.restore import restore
from piecewise_core.runtime.switches import switches
from piecewise_core.runtime.watch import Watch, identity
from piecewise_core.torch_compat.modules import STATIC_MARK, unpatched

__all__ = ["TreeState"]


class TreeState:
    """Watches what ``fn`` reaches, the forward of ``module`` if of one, and torch's switches.

    ``check()`` is 0 while nothing was written; else ``look_again()`` says whether what was written
    differs. ``settle()`` takes everything as it is now for what it should be, ``ran()`` what the
    function itself may have changed: whole numbers that it writes are counters, and are let be.
    ``put_back()`` undoes what was written since. ``iterators``, pools of threads among them, and
    ``randoms``: that ``fn`` reaches. ``device_type``: the platform's. ``words``: what code that it
    reaches names of `graph.questions.WATCHED`. ``objects``: that calls give ``fn``, to be set.
    """

    check: Callable[[], int]

    def __init__(
        self, fn: Callable[..., Any], device_type: str, module: torch.nn.Module | None = None
    ) -> None:
        self._fn = fn
        self._device_type = device_type
        self._module = module
        self.objects: list[Any] = []
        self._counts: set[Any] = set()
        self.words: frozenset[str] = frozenset()
        self.iterators: list[Any] = []
        self.randoms: list[Any] = []
        self.check = lambda: 0
        self._functions: list[FunctionType] = []
        self._containers: list[Any] = []

    def settle(self) -> None:
        """Look anew at all that ``fn`` reaches."""
        met: list[Any] = []
        containers = list(reached(self._fn, self._module, met, self.objects))
        self.randoms = [each for each in met if is_random(each)]
        self.iterators = [each for each in met if not is_random(each)]
        self.words = frozenset(chain.from_iterable(map(_words, containers)))
        self._functions = [c for c in containers if isinstance(c, FunctionType)]
        containers += switches(self._device_type, self.words)
        self._watch, self._containers = Watch(containers), containers
        self._contents = {identity(c): _contents(c) for c in containers}
        self.check = self._watch.check

    def look_again(self) -> str | None:
        """What differs, in one sentence; None after a false alarm."""
        for container in self._written():
            if isinstance(container, Switch):
                return container.change()
            name = identity(container)
            was, now = self._contents[name], _contents(container)
            for key in _differing(was, now):
                if (name, key) not in self._counts or type(now.get(key)) is not int:
                    return _change_text(container, key, was, now)
            if isinstance(container, dict) and list(was) != list(now):
                return f"the entries of a {_kind(container)} are in another order"
            self._contents[name] = now
        return None

    def ran(self) -> bool:
        """``fn`` ran as it is: take what it changed for what it should be.

        Returns whether it replaced or removed anything, rather than added to it.
        """
        if not self.check():
            return False
        grown = replaced = False
        for container in self._written():
            name = identity(container)
            was, now = self._contents[name], _contents(container)
            self._contents[name] = now
            for key in _differing(was, now):
                if type(was.get(key)) is int and type(now.get(key)) is int:
                    self._counts.add((name, key))
                grown |= not isinstance(now.get(key), _PLAIN)
                replaced |= key in was
        if grown:  # there may be more to look into
            self.settle()
        return replaced

    def holders(self, tensors: Container[int]) -> Iterator[Anchor]:
        """The entries that hold the tensors of these ids, but for those of module trees."""
        return anchors_in(self._containers, tensors, roots_of(self._fn))

    def holding(self, memory: Collection[int]) -> str | None:
        """Where what was written since holds a tensor that lies in ``memory``; None if nowhere."""
        for container, key, _, now in self._set():
            if any(isinstance(t, torch.Tensor) and memory_of(t) in memory for t in values(now)):
                return f"{key!r} of a {_kind(container)}"
        return None

    def sets(self) -> dict[Any, tuple[str, Any]]:
        """What was set since, to what, and where: entries of attributes, items and the like.

        Numbers, text and the like count only where code that ``fn`` reaches reads them back.
        """
        if not self.check():
            return {}
        found = [each for each in self._set() if not alike(each[2], each[3])]
        data = {key for _, key, _, now in found if isinstance(key, str) and _is_data(now)}
        read = names_read((codes(c.__code__) for c in self._functions), data)
        return {
            (identity(container), key): (f"{key!r} of a {_kind(container)}", now)
            for container, key, _, now in found
            if key in read or key == BYTES or not _is_data(now)
        }

    def put_back(self) -> None:
        """``fn`` ran for nobody: undo what it changed, as far as containers go."""
        if not self.check():
            return
        for container in self._written():
            was = self._contents[identity(container)]
            if not isinstance(container, Switch) and not _same(was, _contents(container)):
                restore(container, was)
        self._written()

    def _set(self) -> Iterator[tuple[Any, Any, Any, Any]]:
        """What holds another object since: container, name, the one before and now."""
        for container in self._watch.changed():
            if not isinstance(container, Switch):
                was, now = self._contents[identity(container)], _contents(container)
                for key in {**was, **now}:
                    a, b = was.get(key, _MISSING), now.get(key, _MISSING)
                    if a is not b:
                        yield container, key, a, b

    def _written(self) -> list[Any]:
        concerned = self._watch.renew()
        self.check = self._watch.check
        return concerned


def _is_data(value: Any) -> bool:
    """Whether it is plain, or made of what is."""
    if isinstance(value, dict):
        return all(map(_is_data, entries(value).values()))
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        return all(map(_is_data, items(value)))
    return (
        value is _MISSING or is_plain(value) or isinstance(value, (type, torch.dtype, torch.device))
    )


def _words(container: Any) -> Collection[str]:
    """What a function's code names, or a global is under another name, of torch's switches."""
    if isinstance(container, FunctionType):
        return words(codes(container.__code__))
    if isinstance(container, tuple) and len(container) == 2 and isinstance(container[0], dict):
        found = dict.get(container[0], container[1])
        return WATCHED & {str(getattr(found, "__name__", ""))} if callable(found) else ()
    return ()


def _contents(container: Any) -> dict[Any, Any]:
    """What a container holds, by name."""
    if isinstance(container, type):
        held = {n: unpatched(v) for n, v in vars(container).items() if n not in _NO_MATTER}
        return {**held, "__mro__": container.__mro__}
    if isinstance(container, dict):
        found = entries(container)
        found.pop(STATIC_MARK, None)  # a trace writes it on parameters
        return found
    if isinstance(container, Poll):
        return {container.name: asked(container)}
    if isinstance(container, list):
        return dict(enumerate(items(container)))
    if isinstance(container, CellType):
        return {"": content_of(container)}
    if isinstance(container, FunctionType):
        parts = ("__code__", "__defaults__", "__kwdefaults__")
        return {part: getattr(container, part) for part in parts}
    if len(container) == 1:
        return {"__class__": type(container[0])}
    return {container[1]: dict.get(container[0], container[1])}


def _differing(was: dict[Any, Any], now: dict[Any, Any]) -> list[Any]:
    """The names under which something else is held; tensors are not looked at."""
    found = []
    for name in {**was, **now}:
        a, b = was.get(name, _MISSING), now.get(name, _MISSING)
        tensors = isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
        if not tensors and not alike(a, b):
            found.append(name)
    return found


def _same(was: dict[Any, Any], now: dict[Any, Any]) -> bool:
    """Whether the same objects are held under the same names."""
    return list(was) == list(now) and all(was[name] is now[name] for name in was)


def _change_text(container: Any, name: Any, was: dict[Any, Any], now: dict[Any, Any]) -> str:
    a, b = was.get(name, _MISSING), now.get(name, _MISSING)
    return f"{name!r} of a {_kind(container)} is {_shown(b)}, and was {_shown(a)}"


def _kind(container: Any) -> str:
    return container.__qualname__ if isinstance(container, type) else type(container).__name__


_NO_MATTER = frozenset({"__slotnames__", "__annotations__", "__doc__", "__weakref__"})
"""What Python itself notes in a class: copying an instance writes the first."""

_PLAIN = (str, bytes, int, float, complex, type(None))
_MISSING = object()


def _shown(value: Any) -> str:
    if value is _MISSING:
        return "not there"
    text = repr(value) if isinstance(value, (bool, int, float, str, type(None))) else ""
    return text[:40] or f"a {type(value).__name__}"
