"""What is asked of the objects that a frame's expressions give, each time before its graph serves.

What code looked for in vain, the order of keys, lists in tuples, and which objects are one: no
container tells of these by a version, or it would have to be held.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from types import CodeType
from typing import Any

import torch

from piecewise_core.graph.assumptions import is_object
from piecewise_core.graph.codedigests import is_of_python
from piecewise_core.graph.codefacts import lists_attributes
from piecewise_core.graph.facts import aliases
from piecewise_core.graph.identity import contents
from piecewise_core.graph.looks import met_twice
from piecewise_core.graph.misses import missed
from piecewise_core.graph.questions import IDENTITY, words
from piecewise_core.runtime.hooks import of_every_module

__all__ = ["by_expression"]

_MANY = 32
"""Objects beyond which nobody asks at each call whether two modules of them became one."""


def by_expression(
    values: Mapping[str, Any],
    read: Mapping[str, Any],
    keyed: Collection[str],
    codes: Sequence[CodeType],
) -> tuple[list[tuple[str, str]], list[str], Callable[[Sequence[Any]], bool]]:
    """``attributes``, ``sources`` and ``alike`` of ``Asking``, all else as of `guard_frame`."""
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
    twice = [name for look in met_twice(read, read) for name in (look.source, look.key)]
    objects = [*dict.fromkeys((*objects, *twice))]
    alone = {}
    if lists_attributes(codes):
        plain = (o for o in values if is_object(values[o]) and not _is_module(values[o]))
        alone = {o: tuple(vars(values[o])) for o in plain if type(values[o]).__dictoffset__}
    held = {o: contents(v) for o, v in values.items() if _holds_lists(v)}
    # Of these Dynamo compares keys by where they were put in, which `move_to_end` does not change.
    ordered = {o: tuple(v) for o in keyed if isinstance(v := values.get(o), OrderedDict)}
    ones = aliases([read[o] if o in read else values[o] for o in objects])
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
