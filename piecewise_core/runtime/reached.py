"""Every container that a callable may read from, by what its code and its objects name."""

from __future__ import annotations

import functools
import gc
import io
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from types import (
    BuiltinMethodType,
    CodeType,
    FunctionType,
    MappingProxyType,
    MethodType,
    MethodWrapperType,
    ModuleType,
)
from typing import Any

import torch

from piecewise_core.runtime.classes import is_heap
from piecewise_core.runtime.closure_walk import reach
from piecewise_core.runtime.contents import (
    OWN,
    Found,
    content_of,
    globals_of,
    of_container,
    of_instance,
)
from piecewise_core.runtime.hooks import of_every_module
from piecewise_core.runtime.hostrandom import is_random
from piecewise_core.runtime.polls import Poll
from piecewise_core.torch_compat.modules import default_device

__all__ = ["reached"]

_MOST = 50_000
"""Objects looked into; what lies beyond is not watched."""

_LEAVES = (str, bytes, int, float, complex, type(None), ModuleType, torch.Tensor, CodeType)
_LIBRARY = sys.stdlib_module_names - {
    *("array", "builtins", "collections", "types", "functools", "dataclasses", "enum"),
    *("os", "_thread", "contextvars", "_contextvars", "weakref", "__main__"),
}


def reached(
    fn: Callable[..., Any],
    module: torch.nn.Module | None = None,
    met: list[Any] | None = None,
    objects: Iterable[Any] = (),
) -> Iterator[Any]:
    """What to watch of all that ``fn`` reaches, and of ``module``, whose forward it is.

    ``objects``: that calls give it. ``met``: takes in what advances when it is asked, and code
    names: iterators, random generators, pools of threads.
    """
    found = reach(fn)
    yield from of_every_module
    yield (default_device, "CURRENT_DEVICE")
    yield torch.Tensor
    kinds = {type(m) for root in found.roots for m in root.modules()}
    packages = {_package(thing) for thing in (fn, *kinds, *map(type, [*found.objects, *objects]))}
    walk = _Walk(packages - _LIBRARY)
    yield from walk.containers(
        [fn, *found.roots, *found.objects, *([] if module is None else [module]), *objects]
    )
    if met is not None:
        met += walk.advancing()


class _Walk:
    """Goes from object to object; of classes, through what code that it met may name.

    ``packages``: of whose functions it follows what they name.
    """

    def __init__(self, packages: set[str]) -> None:
        self._packages = packages
        # Every import writes to it, a compiler's for each kernel: modules are no state of a call.
        self._seen: dict[int, Any] = {id(sys.modules): sys.modules}
        self._names = {"forward", "__call__", "__init__"}
        self._classes: list[type] = []
        self._run: set[str] = set()  # what code mentions that may run at a call
        self._advancing: list[Any] = []
        self._attributes: dict[int, str] = {}

    def containers(self, starts: Iterable[Any]) -> Iterator[Any]:
        """Every container on the way from ``starts``."""
        waiting: deque[Any] = deque(starts)
        # Code that was met last may name more in classes that were met before.
        while len(self._seen) < _MOST:
            if not waiting:
                waiting.extend(self._named())
            if not waiting:
                return
            value = waiting.popleft()
            if id(value) in self._seen or isinstance(value, _LEAVES):
                if isinstance(value, torch.Tensor) and id(value) not in self._seen:
                    self._seen[id(value)] = value
                    yield vars(value)  # what somebody set on a parameter: its scale
                    waiting.extend(vars(value).values())
                continue
            if is_random(value) or _is_iterator(value) or _is_pool(value):
                self._seen[id(value)] = value
                self._advancing.append(value)
            if id(value) in self._seen or _is_librarys(value):
                continue
            self._seen[id(value)] = value
            inner, containers = self._looked_into(value)
            yield from containers
            waiting.extend(inner)

    def advancing(self) -> list[Any]:
        """What advances on the way; of what is in attributes, what code may name."""
        named = {None, *self._run}
        return [i for i in self._advancing if self._attributes.get(id(i)) in named]

    def _named(self) -> Iterator[Any]:
        """What classes hold under names that code mentions, and was not met yet."""
        for kind in self._classes:
            for name in self._names & vars(kind).keys():
                value = vars(kind)[name]
                if not (
                    id(value) in self._seen or isinstance(value, _LEAVES) or _is_librarys(value)
                ):
                    yield value

    def _looked_into(self, value: Any) -> Found:
        if isinstance(value, MethodType):
            return [value.__self__, value.__func__], []
        if isinstance(value, FunctionType):
            return self._of_function(value)
        if isinstance(value, functools.partial):
            return [value.func, *value.args, value.keywords], []
        if isinstance(value, MappingProxyType):
            return [d for d in gc.get_referents(value) if isinstance(d, dict)], []
        if isinstance(value, type):
            return self._of_class(value)
        if isinstance(value, ContextVar):
            return [], [Poll(value, "get", value.get)]
        if isinstance(value, (BuiltinMethodType, MethodWrapperType)):
            return [value.__self__], []  # ``next_item = iterator.__next__``
        if isinstance(value, (staticmethod, classmethod)):
            return [value.__func__], []
        if isinstance(value, property):
            return [value.fget], []
        items, watched = of_container(value)
        own = getattr(value, "__dict__", None)
        self._attributes |= {id(v): n for n, v in own.items()} if isinstance(own, dict) else {}
        inner, more = of_instance(value)
        return [*items, *inner], [*watched, *more]

    def _of_class(self, kind: type) -> Found:
        """The class and its bases; of those that are not torch's, what code may name."""
        watched: list[Any] = [c for c in kind.__mro__ if is_heap(c)]
        inner: list[Any] = []
        for each in list(watched):
            if _package(each) not in OWN:
                self._classes.append(each)
                inner += [vars(each)[name] for name in self._names & vars(each).keys()]
            elif isinstance(vars(each).get("forward"), FunctionType):
                watched += globals_of(vars(each)["forward"], set())[1]
        return inner, watched

    def _of_function(self, fn: FunctionType) -> Found:
        """Its closure, defaults and attributes, and the globals that its code names."""
        if _package(fn) in sys.modules and _package(fn) not in self._packages:
            return [], [fn]
        cells = list(fn.__closure__ or ())
        held = [fn.__dict__] if fn.__dict__ else []
        met: set[str] = set()
        inner, entries = globals_of(fn, met)
        self._names |= met
        self._run |= met if fn.__name__ != "__init__" else set()
        inner += [*map(content_of, cells), *(fn.__defaults__ or ()), fn.__kwdefaults__]
        return [*inner, *fn.__dict__.values()], [fn, *held, *cells, *entries]


def _is_iterator(value: Any) -> bool:
    """Whether a value is one that a call may take from; what a logger writes to is none."""
    if not isinstance(value, Iterator) or is_heap(type(value)):
        return False
    return not isinstance(value, io.IOBase) or (not value.closed and value.readable())


def _is_pool(value: Any) -> bool:
    """Whether ``value`` has other threads work: an executor, a pool."""
    kind = type(value)
    return _package(kind) in ("concurrent", "multiprocessing") and (
        hasattr(kind, "submit") or hasattr(kind, "apply_async")
    )


def _is_librarys(value: Any) -> bool:
    """Whether ``value`` belongs to torch, to us, or to Python's library, and is no container.

    What an operator of torch's calls runs at every replay, or is native.
    """
    kind = value if isinstance(value, (type, FunctionType)) else type(value)
    if _package(kind) in OWN:
        return not isinstance(value, (type, torch.nn.Module))
    return _package(kind) in _LIBRARY


def _package(thing: Any) -> str:
    return str(getattr(thing, "__module__", "")).partition(".")[0]
