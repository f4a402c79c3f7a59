"""Gives containers back what they held, in place."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from types import CellType
from typing import Any

from piecewise_core.runtime.polls import BYTES, Poll, Which

__all__ = ["restore"]


def restore(container: Any, was: Mapping[Any, Any]) -> None:
    """Give ``container``, one that a Watch watches, what it held, by name. Others stay."""
    if isinstance(container, dict):
        container.clear()
        container.update(was)
    elif isinstance(container, list):
        container[:] = was.values()
    elif isinstance(container, CellType):
        container.cell_contents = was[""]
    elif isinstance(container, Poll):
        _polled(container, was[container.name])
    elif isinstance(container, type):
        _attributes(container, {n: v for n, v in was.items() if n != "__mro__"})
    elif isinstance(container, tuple) and len(container) == 2 and container[1] in was:
        container[0][container[1]] = was[container[1]]


def _polled(poll: Poll, answer: Any) -> None:
    if not isinstance(answer, tuple):  # there was none
        return
    found: Any = answer[1].tensor if isinstance(answer[1], Which) else answer[1]
    if poll.name == "items" and isinstance(poll.of, (set, deque)):
        poll.of.clear()
        (poll.of.extend if isinstance(poll.of, deque) else poll.of.update)(found)
    elif poll.name == BYTES:
        _fill(poll.of, found)
    elif poll.name not in ("items", "order", "get"):
        setattr(poll.of, poll.name, found)


def _fill(array: Any, held: bytes) -> None:
    if hasattr(array, "frombytes"):  # the library's
        del array[:]
        array.frombytes(held)
    elif isinstance(array, bytearray):
        array[:] = held
    elif hasattr(array, "setflags"):  # numpy's
        array[...] = type(array)(array.shape, array.dtype, held)


def _attributes(kind: type, was: Mapping[str, Any]) -> None:
    for name in set(vars(kind)) - set(was) - {"__mro__"}:
        if not name.startswith("__"):
            delattr(kind, name)
    for name, value in was.items():
        if vars(kind).get(name, was) is not value and not name.startswith("__"):
            setattr(kind, name, value)
