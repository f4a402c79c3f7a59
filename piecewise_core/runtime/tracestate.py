"""The Python state that traces read: watched through what holds it, asked again on an alarm.

What a trace took for granted is a list of expressions with answers (`graph.assumptions`). Each is
walked once to see which dicts, classes, lists, cells and functions it goes through; these are
watched. After a write only the expressions through what was written are evaluated anew.
"""

from __future__ import annotations

import ast
import functools
import inspect
import operator
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import CellType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any

from piecewise_core.graph.assumptions import Assumptions, Fact, Scope
from piecewise_core.runtime.watch import Poll, Watch, identity

__all__ = ["TraceState"]

_FUNCTION_PARTS = frozenset({"__code__", "__defaults__", "__kwdefaults__", "__closure__"})
_INSTANCES_TELL = sys.version_info < (3, 13)
"""From 3.13 on, writes to an instance do not always reach the watcher of its dict."""
_FALSE_ALARMS = 8
"""After so many for one dict, the entries that matter are watched in its place."""

_HEAP = 1 << 9  # of a class's flags: it was made by Python code, and may be changed


class TraceState:
    """Watches what the traces of one callable read.

    ``check()`` is 0 while nothing was written; else ``look_again()`` says what changed.
    """

    check: Callable[[], int]

    def __init__(self) -> None:
        self._facts: list[_Watched] = []
        self._by_container: dict[Any, list[_Watched]] = {}
        self._alarms: dict[int, int] = {}
        self._classes: dict[type, dict[str, Any]] = {}
        self._watch = Watch(())
        self.check = self._watch.check

    def add(self, assumptions: Assumptions | None, fn: Any, objects: Sequence[Any]) -> None:
        """Watch what one trace took for granted of ``fn`` and its calls' constants ``objects``."""
        if assumptions is None:
            return
        scope = assumptions.scope(fn, objects)
        known = {f.fact.source + str(f.fact.question) for f in self._facts}
        self._facts += [
            _Watched(fact, scope)
            for fact in assumptions.looks()
            if fact.source + str(fact.question) not in known
        ]
        self._walk_all()

    def look_again(self) -> str | None:
        """What is no longer as a trace found it, in one sentence; None after a false alarm."""
        concerned = self._watch.changed()
        self._watch.settle()  # before asking: a write by another thread meanwhile is an alarm again
        self.check = self._watch.check
        rewalk = False
        for fact in {id(f): f for c in concerned for f in self._through(c)}.values():
            why = fact.broken()
            if why is not None:
                return why
            rewalk |= fact.walk(self._busy)
        for container in concerned:
            if isinstance(container, type) and _methods(container) != self._classes[container]:
                return f"class {container.__qualname__} has other methods"
            if isinstance(container, dict):
                count = self._alarms[id(container)] = self._alarms.get(id(container), 0) + 1
                rewalk |= count == _FALSE_ALARMS
        if rewalk:
            self._walk_all()
        return None

    def _through(self, container: Any) -> list[_Watched]:
        return self._by_container.get(identity(container), [])

    def _busy(self, container: dict[Any, Any]) -> bool:
        return self._alarms.get(id(container), 0) >= _FALSE_ALARMS

    def _walk_all(self) -> None:
        self._by_container = {}
        found: dict[Any, Any] = {}
        memo: dict[Any, Any] = {}
        for fact in self._facts:
            fact.walk(self._busy, memo)
            for container in fact.containers:
                found[identity(container)] = container
                self._by_container.setdefault(identity(container), []).append(fact)
        self._classes = {c: _methods(c) for c in found.values() if isinstance(c, type)}
        self._watch = Watch(found.values())
        self.check = self._watch.check


class _Watched:
    """One fact, and the containers that its expression goes through."""

    def __init__(self, fact: Fact, scope: Scope) -> None:
        self.fact = fact
        self.containers: list[Any] = []
        self._scope = scope

    def broken(self) -> str | None:
        return self.fact.broken(self._scope)

    def walk(self, busy: Callable[[Any], bool], memo: dict[Any, Any] | None = None) -> bool:
        """Find the containers anew; whether they are others than before."""
        before = list(map(identity, self.containers))
        path = _Path(self._scope, busy, {} if memo is None else memo)
        self.containers = path.through(self.fact)
        return before != list(map(identity, self.containers))


class _Path:
    """Evaluates expressions step by step; ``memo`` keeps each step's value and containers."""

    def __init__(self, scope: Scope, busy: Callable[[Any], bool], memo: dict[Any, Any]) -> None:
        self._scope = scope
        self._busy = busy
        self._memo = memo

    def through(self, fact: Fact) -> list[Any]:
        try:
            value, found = self._step(_parsed(fact.source))
        except Exception:  # not there any more: its answer will say so
            return []
        return [*found, *self._in_answer(value, fact.question)]

    def _in_answer(self, value: Any, question: Any) -> Iterator[Any]:
        """What the answer to the question depends on besides the value's identity."""
        if isinstance(value, type):
            yield from _classes(value)
        elif isinstance(value, (FunctionType, list)):
            yield value
        elif isinstance(value, MethodType) and isinstance(value.__func__, FunctionType):
            yield value.__func__
        elif type(value).__flags__ & _HEAP and not isinstance(value, dict):
            yield from _classes(type(value))
        if question is not None and question[0] == "contents":
            yield from _deep(value)
        elif question is not None and isinstance(value, dict):
            yield value
        elif question is not None and question[0] in ("HASATTR", "NOT_PRESENT_IN_GENERIC_DICT"):
            own = _attributes(value)
            if own is not None:
                yield own if _INSTANCES_TELL else (own, question[1])

    def _step(self, node: ast.expr) -> tuple[Any, tuple[Any, ...]]:
        """The value of an expression, and the containers on the way."""
        key = (id(self._scope), ast.unparse(node)) if isinstance(node, ast.Call) else _shape(node)
        key = key if isinstance(node, ast.Call) else (id(self._scope), key)
        if key not in self._memo:
            self._memo[key] = self._made(node)
        found: tuple[Any, tuple[Any, ...]] = self._memo[key]
        return found

    def _made(self, node: ast.expr) -> tuple[Any, tuple[Any, ...]]:
        if isinstance(node, ast.Attribute):
            base, found = self._step(node.value)
            return getattr(base, node.attr), (*found, *self._of_attribute(base, node.attr))
        if isinstance(node, ast.Subscript):
            base, found = self._step(node.value)
            place = self._evaluated(node.slice)
            return base[place], (*found, *self._of_item(base, place))
        if isinstance(node, ast.Call):
            parts = [self._step(a) for a in (*_callee(node), *node.args)]
            held = [c for value, found in parts for c in (*found, *self._of_argument(value))]
            return self._evaluated(node), tuple(held)
        return self._evaluated(node), ()

    def _evaluated(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Constant):
            return node.value
        return eval(compile(ast.Expression(node), "<fact>", "eval"), self._scope)

    def _of_attribute(self, base: Any, name: str) -> Iterator[Any]:
        if isinstance(base, ModuleType):
            yield (vars(base), name)
        elif isinstance(base, CellType):
            yield base
        elif isinstance(base, type):
            yield from _classes(base)
        elif isinstance(base, FunctionType) and name in _FUNCTION_PARTS:
            yield base
        elif name != "__dict__":
            own = _attributes(base)
            if own is not None:
                yield (own, name) if not _INSTANCES_TELL or self._busy(own) else own
            if _is_slot(base, name):
                yield Poll(base, name, functools.partial(getattr, base, name))
            yield from _classes(type(base))

    def _of_item(self, base: Any, place: Any) -> Iterator[Any]:
        if isinstance(base, dict) and base is not self._scope.get("G"):
            yield (base, place) if self._busy(base) else base
        elif isinstance(base, list):
            yield base
        elif type(base).__flags__ & _HEAP or isinstance(base, deque):
            yield Poll(base, f"[{place!r}]", functools.partial(operator.getitem, base, place))

    def _of_argument(self, value: Any) -> Iterator[Any]:
        if value is not self._scope.get("G"):
            yield from _deep(value, 0)


def _callee(node: ast.Call) -> list[ast.expr]:
    """What a method is called on."""
    return [node.func.value] if isinstance(node.func, ast.Attribute) else []


@functools.lru_cache(65536)
def _parsed(source: str) -> ast.expr:
    return ast.parse(source, mode="eval").body


def _shape(node: ast.expr) -> Any:
    """Something equal for equal expressions, without writing them out."""
    if isinstance(node, ast.Attribute):
        return "attribute", _shape(node.value), node.attr
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        return "item", _shape(node.value), type(node.slice.value), node.slice.value
    return node.id if isinstance(node, ast.Name) else ast.unparse(node)


def _attributes(value: Any) -> dict[str, Any] | None:
    try:
        own = vars(value)
    except TypeError:
        return None
    return own if isinstance(own, dict) else None


def _is_slot(base: Any, name: str) -> bool:
    return isinstance(inspect.getattr_static(type(base), name, None), MemberDescriptorType)


def _deep(value: Any, depth: int = 8) -> Iterator[Any]:
    """A container and, ``depth`` deep, those in it."""
    if isinstance(value, (dict, list)):
        yield value
    elif isinstance(value, (set, frozenset, deque)):
        yield Poll(value, "items", lambda: (list if isinstance(value, deque) else set)(value))
    if depth and isinstance(value, (dict, list, tuple)):
        for item in list(value.values()) if isinstance(value, dict) else value:
            yield from _deep(item, depth - 1)


def _classes(kind: type) -> Iterator[type]:
    """The classes in which an attribute of ``kind`` is looked up, those that may be changed."""
    return (c for c in kind.__mro__ if c.__flags__ & _HEAP)


def _methods(kind: type) -> dict[str, Any]:
    """What the class's dict holds that runs: functions, properties, and the like."""
    return {
        name: value
        for name, value in vars(kind).items()
        if callable(value) or hasattr(type(value), "__get__")
    }
