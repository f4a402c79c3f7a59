"""What a graph of Dynamo's took from modules and classes, and no guard of Dynamo's asks for.

Hooks of inner and of all modules, methods that a class gets later, the code of functions, torch's
switches, the environment where code names it: Dynamo goes on with the old ones. One more guard asks
for all of these, by versions; a write is looked at, and where something differs Dynamo traces anew.
"""

from __future__ import annotations

import os
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from piecewise_core.graph.assumptions import is_object, variables_named
from piecewise_core.graph.codedigests import is_of_python
from piecewise_core.graph.facts import aliases
from piecewise_core.graph.misses import missed
from piecewise_core.graph.questions import IDENTITY, words
from piecewise_core.runtime.classes import Classes
from piecewise_core.runtime.hooks import HookWatch, of_every_module
from piecewise_core.runtime.switches import ENVIRONMENT, switches
from piecewise_core.runtime.watch import Watch, answer_of
from piecewise_core.torch_compat.frameguards import Asking, guard_frame

__all__ = ["guard_surroundings"]

_MANY = 32
"""Objects beyond which nobody asks at each call whether two modules of them became one."""


def guard_surroundings(device_type: str | None) -> None:
    """For the frame that Dynamo is at. ``device_type``: what its graph computes on."""

    def ask(values: Mapping[str, Any], codes: Sequence[CodeType]) -> Asking:
        found = _Found(values.values(), frozenset(codes), device_type or "cpu")
        return Asking(found.holds, *_lacked(values, codes))

    guard_frame(ask, "hooks, classes, functions and switches are as piecewise's graph found them")


def _lacked(
    values: Mapping[str, Any], codes: Sequence[CodeType]
) -> tuple[list[tuple[str, str]], list[str], Callable[[Sequence[Any]], bool]]:
    """What was looked for in vain, and which objects were one where code asks: as of ``Asking``."""
    attributes: list[tuple[str, str]] = []
    keys: dict[str, set[Any]] = {}
    objects = [source for source, value in values.items() if is_object(value)]
    for (source, (question, name)), _ in missed(values, objects, values, codes):
        value = values[source]
        if question == "DICT_CONTAINS":
            if not any(value is hooks for hooks in of_every_module):
                keys.setdefault(source, set()).add(name)
        elif type(value).__dictoffset__:  # methods pass on what their functions have
            attributes.append((source, name))
    if IDENTITY not in words(code for code in codes if not is_of_python(code)):
        objects = []
    elif len(objects) > _MANY:
        objects = [o for o in objects if not isinstance(values[o], torch.nn.Module)]
    ones, lacking = aliases([values[source] for source in objects]), list(keys.values())

    def alike(now: Sequence[Any]) -> bool:
        dicts, those = now[: len(lacking)], now[len(lacking) :]
        return aliases(those) == ones and all(
            isinstance(held, dict) and lacked.isdisjoint(dict.keys(held))
            for lacked, held in zip(lacking, dicts, strict=True)
        )

    return attributes, [*keys, *objects], alike


class _Weakly(Collection[torch.nn.Module]):
    """Modules, each once, as long as they live."""

    def __init__(self) -> None:
        self._refs: dict[int, weakref.ref[torch.nn.Module]] = {}

    def add(self, modules: Iterator[torch.nn.Module]) -> None:
        for module in modules:
            self._refs.setdefault(id(module), weakref.ref(module))

    def __iter__(self) -> Iterator[torch.nn.Module]:
        return (m for ref in self._refs.values() if (m := ref()) is not None)

    def __len__(self) -> int:
        return len(self._refs)

    def __contains__(self, module: object) -> bool:
        return id(module) in self._refs


class _Found:
    """How it was. Modules are held weakly: whoever has a hook may hold the model by it."""

    def __init__(self, values: Iterable[Any], codes: frozenset[CodeType], device_type: str) -> None:
        modules = _Weakly()
        functions: set[FunctionType] = set()
        self._ordered: list[tuple[Callable[[], Any], tuple[Any, ...]]] = []
        self._classes = Classes(codes=codes)
        self._classes.read |= {name for code in codes for name in code.co_names}
        self._classes.add(torch.Tensor)
        for value in values:
            if isinstance(value, torch.nn.Module):
                modules.add(value.modules())
                continue
            if isinstance(value, OrderedDict) and value:
                self._ordered.append((weakref.ref(value), tuple(value)))
            value = value.__func__ if isinstance(value, MethodType) else value
            if isinstance(value, FunctionType) and not value.__closure__:
                functions.add(value)  # what it closes over, maybe the model, would live on
            self._classes.add(value if isinstance(value, type) else type(value))
        for module in modules:
            self._classes.add(type(module))
        self._hooks = HookWatch(modules)
        self._hooked = bool(self._hooks.hooked())
        self._of_all = [tuple(hooks) for hooks in of_every_module]
        functions |= {*self._classes.functions()}
        self._functions = [(function, *_parts(function)) for function in functions]
        asked = switches(device_type, words(codes))
        self._switches = [(s, answer_of(s)) for s in asked if s.name != ENVIRONMENT]
        # Compiling sets variables itself: only those that code may mean count.
        names = {name for code in codes for name in variables_named(code)}
        self._variables = [(name, os.environ.get(name)) for name in names]
        self._watch = Watch([*self._classes, *functions, *of_every_module, *asked])
        self._seen, self._differs = RemovableHandle.next_id, False

    def holds(self, _locals: Any) -> bool:
        """Whether all is as it was when Dynamo made its guards. Asked at every call."""
        if self._watch.check() or RemovableHandle.next_id != self._seen or self._unversioned():
            self._look()
        return not self._differs

    def _unversioned(self) -> bool:
        """Whether something differs that tells of no write."""
        return (self._hooked and self._hooks.changed()) or any(
            tuple(held() or ()) != keys for held, keys in self._ordered
        )

    def _look(self) -> None:
        """See whether what is there now is what was there."""
        self._watch.renew()  # first: what is written meanwhile is looked at the next time
        self._seen = RemovableHandle.next_id
        self._differs = (
            self._unversioned()
            or self._hooks.changed()
            or [tuple(hooks) for hooks in of_every_module] != self._of_all
            or self._classes.any_differs() is not None
            or any(_other(_parts(function), was) for function, *was in self._functions)
            or any(answer_of(switch) != was for switch, was in self._switches)
            or any(os.environ.get(name) != was for name, was in self._variables)
        )


def _parts(function: FunctionType) -> tuple[Any, ...]:
    return function.__code__, function.__defaults__, function.__kwdefaults__


def _other(now: Sequence[Any], was: Sequence[Any]) -> bool:
    return any(a is not b for a, b in zip(now, was, strict=True))
