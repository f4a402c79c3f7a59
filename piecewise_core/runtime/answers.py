"""What a trace knew of a value, by the question that it asked; what was looked into is noted."""

from __future__ import annotations

from collections import OrderedDict, deque
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch

from piecewise_core.graph.facts import Question, aliases
from piecewise_core.graph.identity import is_number
from piecewise_core.graph.structure import is_plain
from piecewise_core.runtime.classes import is_heap
from piecewise_core.runtime.holdings import ABSENT, SOME, Holdings, attributes_of, behind
from piecewise_core.runtime.polls import Poll

__all__ = ["Answers"]


class Answers:
    """``holdings``: takes the notes."""

    def __init__(self, holdings: Holdings) -> None:
        self._holdings = holdings

    def to(self, value: Any, question: Question) -> Any:
        """The answer; two of them are one by `classes.same_answers`."""
        what, key = question or ("", None)
        if what in ("HASATTR", "NOT_PRESENT_IN_GENERIC_DICT"):
            return self._has(value, key, what == "HASATTR")
        if what == "DICT_CONTAINS":
            there = key in value
            self._holdings.entry(behind(value), key, SOME if there else ABSENT)
            return there
        if what == "aliases":
            return aliases(value)
        if what == "attributes":
            self._holdings.all_keys(vars(value))
            return tuple(vars(value))
        if what == "numpy":
            self._plainly(value)
            return (type(value), value.tobytes()) if is_number(value) else value
        if what in ("keys", "length"):
            return self._extent(value, what)
        if what in ("contents", "tensor"):
            return self._deep(value)
        return self._plainly(value)

    def _plainly(self, value: Any) -> Any:
        if isinstance(value, type):
            self._holdings.classes.add(value)
        elif isinstance(value, FunctionType):
            self._holdings.function(value)
            return value, value.__code__, value.__defaults__
        elif isinstance(value, MethodType):
            return value.__self__, self._plainly(value.__func__)
        elif isinstance(value, (set, frozenset)):
            return self._deep(value)
        else:
            self._holdings.kind(value)
        return value if _is_itself(value) else type(value)

    def _has(self, value: Any, name: Any, anywhere: bool) -> bool:
        self._holdings.kind(value)
        own = attributes_of(value)
        there = own is not None and name in own
        if own is not None:
            self._holdings.entry(own, name, SOME if there else ABSENT)
        if not anywhere or there:
            return there
        self._holdings.classes.read.add(name)
        if isinstance(value, torch.nn.Module):
            for held in (value._parameters, value._buffers, value._modules):
                self._holdings.entry(held, name, SOME if name in held else ABSENT)
        elif isinstance(value, ModuleType):
            self._holdings.entry(vars(value), name, SOME if hasattr(value, name) else ABSENT)
        elif own is None or hasattr(type(value), "__getattr__"):
            self._holdings.keep(Poll(value, f"hasattr {name}", partial(hasattr, value, name)))
        return hasattr(value, name)

    def _extent(self, value: Any, what: str) -> Any:
        value = behind(value)
        if isinstance(value, OrderedDict) and not value and what == "length":
            return 0  # hooks: `HookWatch` sees to them
        if isinstance(value, dict):
            self._holdings.all_keys(value)
        elif isinstance(value, (list, deque)):
            self._holdings.everything(value)
        return tuple(value) if what == "keys" else len(value)

    def _deep(self, value: Any) -> Any:
        """Something that equals only that of an equal container."""
        self._holdings.everything(value)
        if isinstance(value, (list, tuple, deque)):
            return type(value), [self._deep(v) for v in value]
        if isinstance(value, dict):
            return type(value), [(k, self._deep(v)) for k, v in value.items()]
        if isinstance(value, (set, frozenset)):
            return type(value), set(value)
        return value if isinstance(value, torch.Tensor) else self._plainly(value)


def _is_itself(value: Any) -> bool:
    """Whether another object, if not an equal plain one, in its place is another answer."""
    if is_plain(value) or isinstance(value, (ModuleType, CodeType)) or type(value) is object:
        return True
    if isinstance(value, torch.nn.Module):  # its tensors are bound where it has them
        return True
    if is_heap(type(value)):  # its class and attributes tell all, but of operators and the like
        ours = type(value).__module__.partition(".")[0] == "torch"
        return ours and callable(value)
    return callable(value)
