"""Whether containers hold what they held, asked in Python: for want of the C module.

By identity throughout: an equal object in the place of another would be written to unseen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from operator import is_not
from types import CellType, CodeType, FunctionType
from typing import Any

from piecewise_core.graph.entries import keys_of, values_of

__all__ = ["Asker"]


class Asker:
    """Makes ``check`` functions over ``dicts``, asked whole, and ``others`` of `watch`."""

    def __init__(self, dicts: Sequence[Any], others: Sequence[Any]) -> None:
        self._dicts = dicts
        self._others = others
        self._form: tuple[Any, ...] | None = None
        self._code: CodeType | None = None

    def check(self, held: Sequence[Any]) -> Callable[[], int]:
        """Ask whether all dicts are as they are now, and the others hold ``held``."""
        tests = self._tests(held)
        if not self._dicts:
            return tests
        named, valued = [*map(keys_of, self._dicts)], [*map(values_of, self._dicts)]
        lengths = [*map(len, named)]
        keys = [*chain.from_iterable(named)]
        values = [*chain.from_iterable(valued)]

        def check() -> int:
            if tests() or [*map(len, named)] != lengths:
                return 1
            if any(map(is_not, chain.from_iterable(valued), values)):
                return 1
            return 1 if any(map(is_not, chain.from_iterable(named), keys)) else 0

        return check

    def _tests(self, held: Sequence[Any]) -> Callable[[], int]:
        """One generated function: no call for each. What it compares with are its defaults, so
        that it is written once.
        """
        objects = [c[0] for c in self._others if type(c) is tuple and len(c) == 1]
        classes = [h for c, h in zip(self._others, held, strict=True) if _is_class(c)]
        pairs = [(c, h) for c, h in zip(self._others, held, strict=True) if not _is_class(c)]
        form = tuple(_form(c, h) for c, h in pairs)
        defaults: list[Any] = [objects, classes, is_not]
        for container, was in pairs:
            defaults += _operands(container, was)
        if self._code is None or form != self._form:
            self._form, self._code = form, _written(form, len(defaults))
        made = FunctionType(self._code, {"__builtins__": __builtins__}, "tests", tuple(defaults))
        found: Callable[[], int] = made
        return found


def _is_class(container: Any) -> bool:
    return type(container) is tuple and len(container) == 1


def _form(container: Any, was: Any) -> tuple[str, ...]:
    """How a container is asked."""
    if isinstance(container, type):
        return ("mro",)
    if not isinstance(container, (list, tuple, CellType, FunctionType)):
        return ("outline",)
    if isinstance(container, list):
        return ("list",)
    if isinstance(container, CellType):
        return ("empty",) if was is container else ("cell",)
    if isinstance(container, FunctionType):
        return ("function",)
    if was is container:
        return ("absent",)
    key = container[1]
    return ("named", key) if type(key) is str and type(container[0]) is dict else ("entry",)


def _operands(container: Any, was: Any) -> list[Any]:
    if isinstance(container, tuple):
        held, key = container
        return [vars(held) if isinstance(held, type) else held, key, was]
    if not isinstance(container, (list, type, CellType, FunctionType)):
        return [container.of, vars(container.of), was]
    return [container, None, was]


_TEST = {
    "mro": "a{0}.__mro__ is not a{2}",
    "outline": "a{0}.__mro__ is not a{2}[0] or len(a{1}) != a{2}[1]",
    "list": "list.__len__(a{0}) != len(a{2}) or any(map(is_not, list.__iter__(a{0}), a{2}))",
    "cell": "a{0}.cell_contents is not a{2}",
    "empty": "a{0} != a{2}",  # filling it is no business of a trace's that could not read it
    "function": "a{0}.__code__ is not a{2}[0] or a{0}.__defaults__ is not a{2}[1]"
    " or a{0}.__kwdefaults__ is not a{2}[2]",
    "absent": "a{1} in a{0}",
    "named": "a{0}[{key!r}] is not a{2}",
    "entry": "a{0}[a{1}] is not a{2}",
}


def _written(form: Sequence[tuple[str, ...]], count: int) -> CodeType:
    tests = ["[*map(type, objects)] != classes"]
    for place, (kind, *key) in enumerate(form):
        at = range(3 + 3 * place, 6 + 3 * place)
        tests.append(_TEST[kind].format(*at, key=key[0] if key else ""))
    names = ["objects", "classes", "is_not", *(f"a{i}" for i in range(3, count))]
    source = f"def tests({', '.join(f'{n}=None' for n in names)}):\n try:\n"
    source += f"  return 1 if {' or '.join(tests)} else 0\n"
    source += " except (LookupError, ValueError):\n  return 1\n"  # gone, or an emptied cell
    namespace: dict[str, Any] = {}
    exec(compile(source, "<piecewise state>", "exec"), namespace)
    code: CodeType = namespace["tests"].__code__
    return code
