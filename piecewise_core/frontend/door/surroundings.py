"""What a graph of Dynamo's took from modules and classes, and no guard of Dynamo's asks for.

Hooks of inner and of all modules, methods that a class gets later, the code of functions, torch's
switches, the environment where code names it: Dynamo goes on with the old ones. One more guard asks
for all of these, by versions; a write is looked at, and where something differs Dynamo traces anew.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch

from piecewise_core.graph.assumptions import is_object, variables_named
from piecewise_core.graph.codedigests import is_of_python
from piecewise_core.graph.codefacts import lists_attributes
from piecewise_core.graph.facts import aliases
from piecewise_core.graph.identity import contents
from piecewise_core.graph.misses import missed
from piecewise_core.graph.questions import IDENTITY, words
from piecewise_core.runtime.classes import Classes
from piecewise_core.runtime.hooks import of_every_module
from piecewise_core.runtime.switches import ENVIRONMENT, switches
from piecewise_core.runtime.watch import Watch, answer_of
from piecewise_core.torch_compat.frameguards import Asking, guard_frame

__all__ = ["guard_surroundings"]

_MANY = 32
"""Objects beyond which nobody asks at each call whether two modules of them became one."""


def guard_surroundings(device_type: str | None) -> None:
    """For the frame that Dynamo is at. ``device_type``: what its graph computes on."""

    def ask(values: Mapping[str, Any], keyed: Collection[str], codes: Sequence[CodeType]) -> Asking:
        found = _Found(values.values(), frozenset(codes), device_type or "cpu")
        return Asking(found.holds, *_lacked(values, keyed, codes))

    guard_frame(ask, "hooks, classes, functions and switches are as piecewise's graph found them")


def _lacked(
    values: Mapping[str, Any], keyed: Collection[str], codes: Sequence[CodeType]
) -> tuple[list[tuple[str, str]], list[str], Callable[[Sequence[Any]], bool]]:
    """What was looked for in vain, the order of keys, and which objects were one where code asks:
    as of ``Asking``.
    """
    attributes: list[tuple[str, str]] = []
    keys: dict[str, set[Any]] = {}
    slots: dict[str, set[str]] = {}
    objects = [source for source, value in values.items() if is_object(value)]
    for (source, (question, name)), _ in missed(values, objects, values, codes):
        value = values[source]
        if question == "DICT_CONTAINS":
            if not any(value is hooks for hooks in of_every_module):
                keys.setdefault(source, set()).add(name)
        elif type(value).__dictoffset__:  # a bound method shows that of its function
            attributes.append((source, name))
        else:
            slots.setdefault(source, set()).add(name)
    if IDENTITY not in words(code for code in codes if not is_of_python(code)):
        objects = []
    elif len(objects) > _MANY:
        objects = [o for o in objects if not _is_module(values[o])]
    alone = {}
    if lists_attributes(codes):
        plain = (o for o in values if is_object(values[o]) and not _is_module(values[o]))
        alone = {o: tuple(vars(values[o])) for o in plain if type(values[o]).__dictoffset__}
    held = {o: contents(v) for o, v in values.items() if _holds_lists(v)}
    # Of these Dynamo compares keys by where they were put in, which `move_to_end` does not change.
    ordered = {o: tuple(v) for o in keyed if isinstance(v := values.get(o), OrderedDict)}
    ones = aliases([values[source] for source in objects])
    asks = [
        *(partial(_lacks_keys, lacked) for lacked in keys.values()),
        *(partial(_lacks_attributes, lacked) for lacked in slots.values()),
        *(partial(_in_order, order) for order in ordered.values()),
        *(partial(_has_alone, names) for names in alone.values()),
        *(partial(_holds, was) for was in held.values()),
    ]

    def alike(now: Sequence[Any]) -> bool:
        return aliases(now[len(asks) :]) == ones and all(map(_ask, asks, now))

    return attributes, [*keys, *slots, *ordered, *alone, *held, *objects], alike


def _holds_lists(value: Any) -> bool:
    """Whether a tuple holds what changes: Dynamo takes it for a constant, equal to itself."""
    inner = value if isinstance(value, tuple) else ()
    return any(isinstance(v, (list, dict, set)) or _holds_lists(v) for v in inner)


def _is_module(value: Any) -> bool:
    return isinstance(value, torch.nn.Module)


def _ask(question: Callable[[Any], bool], value: Any) -> bool:
    return question(value)


def _lacks_keys(lacked: set[Any], value: Any) -> bool:
    return isinstance(value, dict) and lacked.isdisjoint(dict.keys(value))


def _lacks_attributes(lacked: set[str], value: Any) -> bool:
    return not any(hasattr(value, name) for name in lacked)


def _holds(was: Any, value: Any) -> bool:
    return bool(contents(value) == was)


def _has_alone(names: tuple[str, ...], value: Any) -> bool:
    return tuple(vars(value)) == names


def _in_order(keys: tuple[Any, ...], value: Any) -> bool:
    return isinstance(value, OrderedDict) and tuple(value) == keys


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
