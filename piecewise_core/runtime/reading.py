"""What the facts of traces rest on: the containers on the way to each, and what those hold."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Sequence
from enum import Enum
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any, cast

import torch

from piecewise_core.graph.facts import Evaluated, Fact, Scope
from piecewise_core.runtime.answers import Answers
from piecewise_core.runtime.classes import is_heap, same_answers
from piecewise_core.runtime.expressions import Expressions
from piecewise_core.runtime.holdings import ABSENT, Holdings, attributes_of, behind, parts_of
from piecewise_core.runtime.hooks import of_every_module
from piecewise_core.runtime.polls import Poll
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
        answers = Answers(holdings)
        self._answers, self._values = [], []
        for fact, scope in facts:
            expressions = by_scope.setdefault(id(scope), Expressions(scope, self))
            value = ABSENT
            try:
                value = expressions.value(fact.source)
                self._answers.append(answers.to(value, fact.question))
            except Exception as error:  # not there any more
                self._answers.append(type(error))
            self._values.append(value)
        self._functions = [(f, *parts_of(f)) for f in self.holdings.classes.functions()]
        for function, *_ in self._functions:
            self.holdings.function(function)

    def broken(self, facts: Sequence[tuple[Fact, Scope]]) -> str | None:
        """Which of the facts that were read does not hold; to be asked once, behind reading."""
        values, self._values = self._values, []
        for (fact, scope), value in zip(facts, values, strict=True):
            absent = value is ABSENT
            why = fact.broken(Evaluated(scope)) if absent else fact.contradicted(value)
            if why is not None:
                return why
        return None

    def differs(self, before: Reading) -> int | None:
        """The place of the first fact whose answer is not what it was."""
        for place, (now, was) in enumerate(zip(self._answers, before._answers, strict=True)):
            if not same_answers(was, now):
                return place
        return None

    def surroundings_differ(self, before: Reading) -> str | None:
        """What of classes, or of what any trace reads, is not as it was, in one sentence."""
        if self._hooked != before._hooked:
            return "hooks of all modules were added or removed"
        if self._device != before._device:
            return f"torch's default device is {self._device}, and was {before._device}"
        function = before._rewritten()
        if function is not None:
            return f"{function.__qualname__} has other code or defaults"
        return before.holdings.classes.any_differs()

    def stands(self, containers: Sequence[Any]) -> bool:
        """Whether ``containers`` surely hold what was noted: quicker than another reading."""
        return all(map(self.holdings.surely_holds, containers))

    def _rewritten(self) -> FunctionType | None:
        """A function that has other code or defaults than were noted."""
        for function, *was in self._functions:
            if any(a is not b for a, b in zip(parts_of(function), was, strict=True)):
                return cast("FunctionType", function)
        return None

    # Notes: told of each step --------------------------------------------------------

    def attribute(self, base: Any, name: str, value: Any, source: str) -> None:
        """Note where the attribute came from."""
        if isinstance(base, ModuleType):
            self.holdings.entry(vars(base), name, value)
        elif isinstance(base, CellType):
            self.holdings.cell(base, value)
        elif isinstance(base, type):
            self.holdings.classes.add(base)
            self.holdings.classes.read.add(name)
            found = inspect.getattr_static(base, name, value)
            if found is not value and not isinstance(value, Enum) and _computes(found):
                self.holdings.keep(Poll(base, name, partial(getattr, base, name)))
        elif isinstance(base, FunctionType) and name in _PARTS:
            self.holdings.function(base)
        elif isinstance(base, torch.Tensor):  # what somebody set on a parameter: its scale
            if name in vars(base):
                self.holdings.entry(vars(base), name, value)
        elif not isinstance(base, MethodType):
            self._of_instance(base, name, value)

    def _of_instance(self, base: Any, name: str, value: Any) -> None:
        self.kind(base)
        own = attributes_of(base)
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
