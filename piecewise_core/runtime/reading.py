"""What the facts of traces rest on: the containers on the way to each, and what those hold."""

from __future__ import annotations

import inspect
from collections import OrderedDict, deque
from collections.abc import Sequence
from enum import Enum
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch

from piecewise_core.graph.facts import Fact, Scope, aliases
from piecewise_core.graph.identity import is_number
from piecewise_core.graph.structure import is_plain
from piecewise_core.runtime.classes import alike, is_heap
from piecewise_core.runtime.expressions import Expressions
from piecewise_core.runtime.holdings import ABSENT, SOME, Holdings, behind
from piecewise_core.runtime.hooks import of_every_module
from piecewise_core.runtime.watch import Poll
from piecewise_core.torch_compat.modules import default_device

__all__ = ["Reading"]

_PARTS = frozenset({"__code__", "__defaults__", "__kwdefaults__", "__closure__"})


class Reading:
    """Evaluates ``facts``, and notes what each went through, as it is now.

    ``holdings``: takes the notes; nothing is in it yet.
    """

    def __init__(self, facts: Sequence[tuple[Fact, Scope]], holdings: Holdings) -> None:
        self.holdings = holdings
        self.argument = self.holdings.everything
        self.kind = self.holdings.kind
        self._always()
        by_scope: dict[int, Expressions] = {}
        self._answers = []
        for fact, scope in facts:
            expressions = by_scope.setdefault(id(scope), Expressions(scope, self))
            try:
                value = expressions.value(fact.source)
                self._answers.append(self._answer(value, fact.question))
            except Exception as error:  # not there any more
                self._answers.append(type(error))
        self._functions = [(f, *_parts(f)) for f in self.holdings.classes.functions()]
        for function, *_ in self._functions:
            self.holdings.keep(function)

    def differs(self, before: Reading) -> int | None:
        """The place of the first fact whose answer is not what it was."""
        for place, (now, was) in enumerate(zip(self._answers, before._answers, strict=True)):
            if not _same(was, now):
                return place
        return None

    def surroundings_differ(self, before: Reading) -> str | None:
        """What of classes, or of what any trace reads, is not as it was, in one sentence."""
        if self._hooked != before._hooked:
            return "hooks of all modules were added or removed"
        if self._device != before._device:
            return f"torch's default device is {self._device}, and was {before._device}"
        for function, *was in before._functions:
            if any(a is not b for a, b in zip(_parts(function), was, strict=True)):
                return f"{function.__qualname__} has other code or defaults"
        return before.holdings.classes.any_differs()

    # Notes: told of each step --------------------------------------------------------

    def attribute(self, base: Any, name: str, value: Any, source: str) -> None:
        """Note where the attribute came from."""
        if isinstance(base, ModuleType):
            self.holdings.entry(vars(base), name, value)
        elif isinstance(base, CellType):
            self.holdings.keep(base)
        elif isinstance(base, type):
            self.holdings.classes.add(base)
            self.holdings.classes.read.add(name)
            found = inspect.getattr_static(base, name, value)
            if found is not value and not isinstance(value, Enum) and _computes(found):
                self.holdings.keep(Poll(base, name, partial(getattr, base, name)))
        elif isinstance(base, FunctionType) and name in _PARTS:
            self.holdings.keep(base)
        elif isinstance(base, torch.Tensor):  # what somebody set on a parameter: its scale
            if name in vars(base):
                self.holdings.entry(vars(base), name, value)
        elif not isinstance(base, MethodType):
            self._of_instance(base, name, value)

    def _of_instance(self, base: Any, name: str, value: Any) -> None:
        self.kind(base)
        own = _attributes(base)
        if name in ("__dict__", "__class__"):
            return
        if own is not None and name in own:
            self.holdings.entry(own, name, value)
            return
        if own is not None:
            self.holdings.entry(own, name, ABSENT)
        found = inspect.getattr_static(type(base), name, ABSENT)
        if found is value or isinstance(value, MethodType):
            self.holdings.classes.read.add(name)  # a method, or a value of the class
        elif isinstance(base, torch.nn.Module) and found is ABSENT:
            for held in (base._parameters, base._buffers, base._modules):
                self.holdings.entry(held, name, held.get(name, ABSENT))
        elif is_heap(type(base)):  # a slot, a property, or made up by __getattr__
            self.holdings.keep(Poll(base, name, partial(getattr, base, name)))

    def item(self, base: Any, key: Any, value: Any, source: str) -> None:
        """Note what the entry is of."""
        base = behind(base)
        if isinstance(base, dict):
            self.holdings.entry(base, key, value)
            self.kind(base)
        elif isinstance(base, list):
            self.holdings.items(base)
        elif isinstance(base, deque):
            self.holdings.keep(Poll(base, "items", partial(list, base)))
        elif is_heap(type(base)) and not isinstance(base, (tuple, torch.Tensor)):
            self.holdings.keep(Poll(base, f"[{key!r}]", partial(base.__getitem__, key)))
            self.kind(base)

    # Answers ---------------------------------------------------------------------------

    def _answer(self, value: Any, question: Any) -> Any:
        """What the trace knew of ``value``; what it is made of is noted."""
        what, key = question or ("", None)
        if what in ("HASATTR", "NOT_PRESENT_IN_GENERIC_DICT"):
            return self._has(value, key, what == "HASATTR")
        if what == "DICT_CONTAINS":
            there = key in value
            self.holdings.entry(behind(value), key, SOME if there else ABSENT)
            return there
        if what == "aliases":
            return aliases(value)
        if what == "attributes":
            self.holdings.all_keys(vars(value))
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
            self.holdings.classes.add(value)
        elif isinstance(value, FunctionType):
            self.holdings.keep(value)
            return value, value.__code__, value.__defaults__
        elif isinstance(value, MethodType):
            return value.__self__, self._plainly(value.__func__)
        elif isinstance(value, (set, frozenset)):
            return self._deep(value)
        else:
            self.kind(value)
        return value if _is_itself(value) else type(value)

    def _has(self, value: Any, name: Any, anywhere: bool) -> bool:
        self.kind(value)
        own = _attributes(value)
        there = own is not None and name in own
        if own is not None:
            self.holdings.entry(own, name, SOME if there else ABSENT)
        if not anywhere or there:
            return there
        self.holdings.classes.read.add(name)
        if isinstance(value, torch.nn.Module):
            for held in (value._parameters, value._buffers, value._modules):
                self.holdings.entry(held, name, SOME if name in held else ABSENT)
        elif isinstance(value, ModuleType):
            self.holdings.entry(vars(value), name, SOME if hasattr(value, name) else ABSENT)
        elif own is None or hasattr(type(value), "__getattr__"):
            self.holdings.keep(Poll(value, f"hasattr {name}", partial(hasattr, value, name)))
        return hasattr(value, name)

    def _extent(self, value: Any, what: str) -> Any:
        value = behind(value)
        if isinstance(value, OrderedDict) and not value and what == "length":
            return 0  # hooks: `HookWatch` sees to them
        if isinstance(value, dict):
            self.holdings.all_keys(value)
        elif isinstance(value, (list, deque)):
            self.argument(value)
        return tuple(value) if what == "keys" else len(value)

    def _deep(self, value: Any) -> Any:
        """Something that equals only that of an equal container."""
        self.argument(value)
        if isinstance(value, (list, tuple, deque)):
            return type(value), [self._deep(v) for v in value]
        if isinstance(value, dict):
            return type(value), [(k, self._deep(v)) for k, v in value.items()]
        if isinstance(value, (set, frozenset)):
            return type(value), set(value)
        return value if isinstance(value, torch.Tensor) else self._plainly(value)

    # Containers ------------------------------------------------------------------------

    def _always(self) -> None:
        """What any trace reads: hooks of all modules, methods of tensors, the default device."""
        for hooks in of_every_module:
            self.holdings.all_keys(hooks)
        self._hooked = [tuple(hooks) for hooks in of_every_module]
        self.holdings.classes.add(torch.Tensor)
        self._device = default_device.get("CURRENT_DEVICE")
        self.holdings.entry(default_device, "CURRENT_DEVICE", self._device)


def _computes(found: Any) -> bool:
    """Whether it is what a class, or its metaclass, makes an answer with."""
    return isinstance(found, property) or (is_heap(type(found)) and hasattr(found, "__get__"))


def _is_itself(value: Any) -> bool:
    """Whether another object, if not an equal plain one, in its place is another answer."""
    if is_plain(value) or isinstance(value, (ModuleType, CodeType)) or type(value) is object:
        return True
    if is_heap(type(value)):  # its class and attributes tell all, but of operators and the like
        ours = type(value).__module__.partition(".")[0] == "torch"
        return ours and callable(value) and not isinstance(value, torch.nn.Module)
    return callable(value)


def _parts(function: FunctionType) -> tuple[Any, ...]:
    return function.__code__, function.__defaults__, function.__kwdefaults__


def _attributes(value: Any) -> dict[str, Any] | None:
    try:
        own = vars(value)
    except TypeError:
        return None
    return own if isinstance(own, dict) else None


def _same(a: Any, b: Any) -> bool:
    """Whether two answers are one."""
    if type(a) in (tuple, list) and type(a) is type(b):
        return len(a) == len(b) and all(map(_same, a, b))
    if type(a) is set and type(b) is set:
        return a == b and sorted(map(repr, a)) == sorted(map(repr, b))
    return alike(a, b)
