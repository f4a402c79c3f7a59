"""What a graph of Dynamo's took from modules and classes, and no guard of Dynamo's asks for.

Hooks of inner and of all modules, methods that a class gets later, the code of functions, torch's
switches, the environment where code names it: Dynamo goes on with the old ones. One more guard asks
for all of these, by versions; a write is looked at, and where something differs Dynamo traces anew.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch

from piecewise_core.frontend.door.expressions import by_expression
from piecewise_core.graph.assumptions import variables_named
from piecewise_core.graph.questions import words
from piecewise_core.runtime.classes import Classes
from piecewise_core.runtime.hooks import of_every_module
from piecewise_core.runtime.polls import answer_of
from piecewise_core.runtime.switches import ENVIRONMENT, switches
from piecewise_core.runtime.watch import Watch
from piecewise_core.torch_compat.frameguards import Asking, guard_frame

__all__ = ["guard_surroundings"]


def guard_surroundings(device_type: str | None) -> None:
    """For the frame that Dynamo is at. ``device_type``: what its graph computes on."""

    def ask(
        values: Mapping[str, Any],
        read: Mapping[str, Any],
        keyed: Collection[str],
        codes: Sequence[CodeType],
    ) -> Asking:
        found = _Found(values.values(), frozenset(codes), device_type or "cpu")
        return Asking(found.holds, *by_expression(values, read, keyed, codes))

    guard_frame(ask, "hooks, classes, functions and switches are as piecewise's graph found them")


class _Found:
    """How it was. No module is held: whoever has a hook may hold the model by it."""

    def __init__(self, values: Iterable[Any], codes: frozenset[CodeType], device_type: str) -> None:
        functions: set[FunctionType] = set()
        self._classes = Classes(codes=codes)
        self._classes.read |= {name for code in codes for name in code.co_names}
        self._classes.add(torch.Tensor)
        for value in values:
            value = value.__func__ if isinstance(value, MethodType) else value
            if isinstance(value, FunctionType) and not value.__closure__:
                functions.add(value)  # what it closes over, maybe the model, would live on
            self._classes.add(value if isinstance(value, type) else type(value))
        self._of_all = [tuple(hooks) for hooks in of_every_module]
        functions |= {*self._classes.functions()}
        self._functions = [(function, *_parts(function)) for function in functions]
        asked = switches(device_type, words(codes))
        self._switches = [(s, answer_of(s)) for s in asked if s.name != ENVIRONMENT]
        # Compiling sets variables itself: only those that code may mean count.
        names = {name for code in codes for name in variables_named(code)}
        self._variables = [(name, os.environ.get(name)) for name in names]
        self._watch = Watch([*self._classes, *functions, *of_every_module, *asked])
        self._differs = False

    def holds(self, _locals: Any) -> bool:
        """Whether all is as it was when Dynamo made its guards. Asked at every call."""
        if self._watch.check():
            self._look()
        return not self._differs

    def _look(self) -> None:
        """See whether what is there now is what was there."""
        self._watch.renew()  # first: what is written meanwhile is looked at the next time
        self._differs = (
            [tuple(hooks) for hooks in of_every_module] != self._of_all
            or self._classes.any_differs() is not None
            or any(_other(_parts(function), was) for function, *was in self._functions)
            or any(answer_of(switch) != was for switch, was in self._switches)
            or any(os.environ.get(name) != was for name, was in self._variables)
        )


def _parts(function: FunctionType) -> tuple[Any, ...]:
    return function.__code__, function.__defaults__, function.__kwdefaults__


def _other(now: Sequence[Any], was: Sequence[Any]) -> bool:
    return any(a is not b for a, b in zip(now, was, strict=True))
