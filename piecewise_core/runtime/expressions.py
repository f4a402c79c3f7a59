"""Expressions over a traced frame, evaluated step by step to see what they go through."""

from __future__ import annotations

import ast
import functools
from typing import Any, Protocol

from piecewise_core.graph.facts import CHAIN, LAST, Scope, item_of

__all__ = ["Expressions", "Notes"]


class Notes(Protocol):
    """Told of each step, after it went well."""

    def attribute(self, base: Any, name: str, value: Any, source: str) -> None:
        """``base.name`` was ``value``."""

    def item(self, base: Any, key: Any, value: Any, source: str) -> None:
        """``base[key]`` was ``value``."""

    def argument(self, value: Any) -> None:
        """A function was called with ``value``, whose contents it may have looked at."""

    def kind(self, value: Any) -> None:
        """``value`` was asked what class it is of."""


class Expressions:
    """Evaluates the sources of one scope; each common beginning once."""

    def __init__(self, scope: Scope, notes: Notes) -> None:
        self._scope = scope
        self._notes = notes
        self._values: dict[str, Any] = {}

    def value(self, source: str) -> Any:
        """What ``source`` is now. Raises whatever evaluating it does."""
        if source in self._values:
            return self._values[source]
        if CHAIN.fullmatch(source):
            found = self._chain(source)
        elif parts := _parts(source):
            found = tuple(map(self.value, parts))
        else:
            found = self._node(*_parsed(source))
        self._values[source] = found
        return found

    def _chain(self, source: str) -> Any:
        """Attributes and items of a name: most of all expressions, and quick to take apart."""
        last = LAST.search(source)
        if last is None:
            return self._scope[source]
        base = self.value(source[: last.start()])
        name, key, place = last.groups()
        if name is not None:
            return self._attribute(base, name, source)
        return self._item(base, key if place is None else int(place), source)

    def _node(self, node: ast.expr, source: str) -> Any:
        text = source.encode()[node.col_offset : node.end_col_offset].decode()
        if text != source:
            return self.value(text)
        if isinstance(node, ast.Attribute):
            return self._attribute(self._node(node.value, source), node.attr, source)
        if isinstance(node, ast.Subscript):
            key = self._node(node.slice, source)
            if _is_class_dict(node.value):
                arguments: Any = node.value
                kind = self._node(arguments.args[0].value, source)
                return self._attribute_of_class(kind, key, source)
            return self._item(self._node(node.value, source), key, source)
        if isinstance(node, ast.Call) and not node.keywords:
            return self._call(node, source)
        if isinstance(node, ast.Tuple):
            return tuple(self._node(part, source) for part in node.elts)
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Is):
            return self._node(node.left, source) is self._node(node.comparators[0], source)
        return eval(compile(ast.Expression(node), "<fact>", "eval"), self._scope)

    def _attribute(self, base: Any, name: str, source: str) -> Any:
        found = getattr(base, name)
        self._notes.attribute(base, name, found, source)
        return found

    def _attribute_of_class(self, kind: type, name: Any, source: str) -> Any:
        found = vars(kind)[name]
        self._notes.attribute(kind, name, found, source)
        return found

    def _item(self, base: Any, key: Any, source: str) -> Any:
        if base is self._scope["G"] or base is self._scope["L"]:
            return base[key]
        found = item_of(base, key)
        self._notes.item(base, key, found, source)
        return found

    def _call(self, node: ast.Call, source: str) -> Any:
        arguments = [self._node(a, source) for a in node.args]
        called = ast.unparse(node.func)
        if called == "type" and len(arguments) == 1:
            self._notes.kind(arguments[0])
        elif called == "dict.__getitem__":
            found = dict.__getitem__(*arguments)
            self._notes.item(arguments[0], arguments[1], found, source)
            return found
        else:
            for value in arguments:
                self._notes.argument(value)
        if isinstance(node.func, ast.Attribute) and not isinstance(node.func.value, ast.Name):
            self._notes.argument(self._node(node.func.value, source))
        return eval(called, self._scope)(*arguments)


def _is_class_dict(node: ast.expr) -> bool:
    """Whether it is ``dict(kind.__dict__)``."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "dict"
        and len(node.args) == 1
        and isinstance(node.args[0], ast.Attribute)
        and node.args[0].attr == "__dict__"
    )


@functools.lru_cache(4096)
def _parts(source: str) -> tuple[str, ...]:
    """The items of a tuple, as they are written; () of all else.

    Tuples of all that is compared by identity have hundreds.
    """
    node, text = _parsed(source)[0], source.encode()
    items = node.elts if isinstance(node, ast.Tuple) else ()
    return tuple(text[item.col_offset : item.end_col_offset].decode() for item in items)


@functools.lru_cache(65536)
def _parsed(source: str) -> tuple[ast.expr, str]:
    return ast.parse(source, mode="eval").body, source
