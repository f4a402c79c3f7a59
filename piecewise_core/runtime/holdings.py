"""What containers must hold for a trace to be right: entries of dicts, items of lists and so on."""

from __future__ import annotations

import gc
import operator
import sys
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from functools import partial
from types import CellType, FunctionType, MappingProxyType
from typing import Any

import torch

from piecewise_core.graph.entries import entries, items
from piecewise_core.runtime.classes import Classes, alike, is_heap
from piecewise_core.runtime.dict_guard import native
from piecewise_core.runtime.polls import Poll, Switch, asked, differ
from piecewise_core.runtime.watch import Outline, class_of, contents_of, identity

__all__ = ["ABSENT", "SOME", "Holdings", "attributes_of", "behind", "parts_of"]

ABSENT: Any = object()
SOME: Any = object()
"""What an entry must be: not there, or whatever is there."""

_TELL = sys.version_info < (3, 13)
"""From 3.13 on, writes to an instance do not always reach the watcher of its dict."""


class Holdings:
    """Grows by what a trace looked into; ``holds`` compares it with what is there now.

    ``ran``: the functions that traces ran through, by module and qualified name. ``counting``:
    objects in which every call writes some number: of their dicts, single entries are watched.
    ``switches``: torch's, which facts may be of.
    """

    def __init__(
        self,
        ran: set[tuple[str, str]],
        counting: Iterable[Any] = (),
        switches: Iterable[Switch] = (),
    ) -> None:
        self._switches = {switch: asked(switch) for switch in switches}
        self._counting = {id(own) for own in map(attributes_of, counting) if own is not None}
        self.classes = Classes(frozenset(ran))
        self._dicts: dict[int, tuple[dict[Any, Any], dict[Any, Any]]] = {}
        self._keys: dict[int, tuple[dict[Any, Any], tuple[Any, ...]]] = {}
        self._lists: dict[int, tuple[list[Any], tuple[Any, ...]]] = {}
        self._cells: dict[int, Any] = {}
        self._functions: dict[int, tuple[Any, ...]] = {}
        self._others: dict[Any, Any] = {}

    def entry(self, held: dict[Any, Any], key: Any, value: Any) -> None:
        """``held[key]`` is ``value``."""
        _, wants = self._dicts.setdefault(id(held), (held, {}))
        if wants.get(key, SOME) is SOME:
            wants[key] = value

    def all_keys(self, held: dict[Any, Any]) -> None:
        """``held`` has these keys, in this order."""
        self._keys[id(held)] = (held, tuple(entries(held)))
        if (
            isinstance(held, OrderedDict) and len(entries(held)) > 1
        ):  # its order is no write to the dict
            self.keep(Poll(held, "order", lambda: list(entries(held))))

    def items(self, held: list[Any]) -> None:
        """``held`` has these items."""
        self._lists[id(held)] = (held, tuple(held))

    def cell(self, cell: CellType, value: Any) -> None:
        """``cell`` holds ``value``."""
        self._cells.setdefault(id(cell), value)
        self.keep(cell)

    def function(self, function: FunctionType) -> None:
        """``function`` has this code, and these defaults."""
        self._functions.setdefault(id(function), parts_of(function))
        self.keep(function)

    def everything(self, value: Any) -> None:
        """If it is a container, it holds what it does now."""
        value = behind(value)
        if isinstance(value, dict):
            self.all_keys(value)
            for key, held in entries(value).items():
                self.entry(value, key, held)
        elif isinstance(value, list):
            self.items(value)
        elif isinstance(value, (set, frozenset, deque)):
            copy = items if isinstance(value, deque) else set
            self.keep(Poll(value, "items", partial(copy, value)))

    def kind(self, value: Any) -> None:
        """``value`` is of its class, and the class is as it is."""
        kind = type(value)
        if is_heap(kind) and not isinstance(value, (type, tuple, torch.Tensor)):
            self.keep(class_of(value))
            self.classes.add(kind)

    def keep(self, container: Any) -> None:
        """A container of any other kind is as it is."""
        self._others.setdefault(identity(container), container)

    def containers(self) -> Iterator[Any]:
        """Everything that has to be watched."""
        whole = native() is not None
        for held, wants in self._dicts.values():
            counts = id(held) in self._counting
            if whole and not counts and (_TELL or id(held) in self._keys):
                yield held
            else:
                yield from ((held, key) for key in wants)
        for held, _ in self._keys.values():
            counts = id(held) in self._counting
            yield Poll(held, "keys", partial(_names, held)) if counts else held
        yield from (held for held, _ in self._lists.values())
        for kind in self.classes:
            yield from (kind,) if whole else self.classes.apart(kind)
        yield from self._others.values()
        yield from self._switches

    def switched_since(self, before: Holdings) -> Switch | None:
        """One of torch's switches that answered something else ``before``."""
        was = {switch.name: answer for switch, answer in before._switches.items()}
        answers = self._switches.items()
        return next((s for s, now in answers if differ(now, was.get(s.name, now))), None)

    def holds(self, container: Any) -> bool:
        """Whether a container that was written to holds what it must.

        False may be wrong: an equal object in the place of another has to be looked into.
        """
        if isinstance(container, (type, Outline)):
            kind = container.of if isinstance(container, Outline) else container
            return self.classes.differs(kind) is None
        if isinstance(container, dict):
            return self._dict_holds(container)
        if isinstance(container, list):
            _, was = self._lists[id(container)]
            return len(was) == len(container) and all(map(alike, was, container))
        if isinstance(container, tuple) and len(container) == 2:
            if isinstance(container[0], type):
                return self.classes.differs(container[0]) is None
            held, wants = self._dicts[id(container[0])]
            return _is_there(held, container[1], wants[container[1]])
        return False

    def surely_holds(self, container: Any) -> bool:
        """Whether what watches a container from here on watches what was noted.

        False where something is asked that no container tells of.
        """
        if isinstance(container, tuple) and len(container) == 1:
            return type(container[0]) in self.classes
        if isinstance(container, CellType):
            noted = self._cells.get(id(container), ABSENT)
            return noted is not ABSENT and contents_of(container) is noted
        if isinstance(container, FunctionType):
            parts = self._functions.get(id(container))
            return parts is not None and all(map(operator.is_, parts, parts_of(container)))
        if isinstance(container, Switch):
            return not differ(asked(container), self._switches[container])
        return self.holds(container)

    def _dict_holds(self, container: dict[Any, Any]) -> bool:
        held, wants = self._dicts.get(id(container), (container, {}))
        if not all(_is_there(held, key, want) for key, want in wants.items()):
            return False
        return id(container) not in self._keys or self._keys[id(container)][1] == tuple(
            entries(container)
        )


def attributes_of(value: Any) -> dict[str, Any] | None:
    """The dict of what is set on it; None where it has none of its own."""
    own = getattr(value, "__dict__", None)
    return own if isinstance(own, dict) else None


def parts_of(function: FunctionType) -> tuple[Any, ...]:
    """What a function runs: somebody may give it other code, or other defaults."""
    return function.__code__, function.__defaults__, function.__kwdefaults__


def _names(held: dict[Any, Any]) -> list[Any]:
    return list(entries(held))


def behind(value: Any) -> Any:
    """The dict that a read-only view of one shows."""
    if isinstance(value, MappingProxyType):
        return next((d for d in gc.get_referents(value) if isinstance(d, dict)), value)
    return value


def _is_there(held: dict[Any, Any], key: Any, want: Any) -> bool:
    now = dict.get(held, key, ABSENT)
    if want is SOME:
        return now is not ABSENT
    return alike(want, now)
