"""What a callable reaches by name: the modules and tensors in its owner, closure and globals."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, replace
from types import CellType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any

import torch

from piecewise_core.graph.entries import entries, items
from piecewise_core.graph.signatures import holders_of_defaults
from piecewise_core.graph.wrappers import is_wrapper
from piecewise_core.runtime.contents import content_of

__all__ = [
    *("Anchor", "Reach", "anchors_in", "anchors_of", "anchors_to"),
    *("default_anchors", "reach", "roots_of"),
]

_OF_EVERY_MODULE = frozenset(vars(torch.nn.Module()))
_DEPTH, _MOST = 3, 1000  # containers within each other, and entries of each, that are looked into


@dataclass(frozen=True, eq=False)
class Anchor:
    """A module, a tensor or what leads to one, and the entry or closure cell that held it.

    ``holder``: None for what the callable is itself: that cannot be replaced.
    """

    value: Any
    holder: dict[Any, Any] | list[Any] | CellType | None = None
    key: Any = ""

    def moved(self) -> bool:
        """Whether another object is there now."""
        if self.holder is None:
            return False
        try:
            if isinstance(self.holder, CellType):
                return self.holder.cell_contents is not self.value
            return self.holder[self.key] is not self.value
        except (LookupError, ValueError):  # gone, or an emptied cell
            return True


@dataclass(frozen=True)
class Reach:
    """What a callable reaches by name, through plain functions and objects too.

    ``anchors``: modules and tensors. ``objects``: what else was looked into; tensors may lie
    deeper in it. ``called``: the modules that a trace calls, hooks and all: not the one whose
    forward the callable is.
    """

    anchors: tuple[Anchor, ...]
    objects: tuple[Any, ...]
    called: tuple[torch.nn.Module, ...]

    @property
    def roots(self) -> tuple[torch.nn.Module, ...]:
        """The modules among the anchors, each once."""
        return _modules(self.anchors)


def reach(fn: Callable[..., Any], given: Iterable[Any] = (), without: Reach | None = None) -> Reach:
    """What ``fn`` reaches. ``given``: arguments that are constants of its calls, reached too.

    ``without``: what it reaches without these, where that is known.
    """
    walk = _Walk()
    brought = [anchor for value in given for anchor in walk.argument(value)]
    if without is not None and not brought:
        return replace(without, objects=(*without.objects, *walk.objects))
    anchors = [*walk.callable(fn), *brought]
    anchors += _kept_aside(_modules(anchors))
    own = getattr(fn, "__self__", None) if getattr(fn, "__name__", "") == "forward" else None
    called = (m for root in _modules(anchors) for m in root.modules() if m is not own)
    return Reach(tuple(anchors), tuple(walk.objects), tuple(called))


def anchors_of(fn: Callable[..., Any]) -> tuple[Anchor, ...]:
    """The modules and tensors that ``fn`` reaches."""
    return reach(fn).anchors


def anchors_to(fn: Callable[..., Any], tensors: Container[int]) -> tuple[Anchor, ...]:
    """Of the anchors of ``fn``, modules, the tensors of these ids, and what wraps tensors."""
    kinds = torch.nn.Module
    found = ((a, a.value) for a in anchors_of(fn))
    return tuple(a for a, v in found if isinstance(v, kinds) or id(v) in tensors or is_wrapper(v))


def default_anchors(fn: Callable[..., Any]) -> Iterator[Anchor]:
    """The tensors that calls mean which omit an argument, where one could be replaced."""
    for held in holders_of_defaults(fn):
        for name, value in held.items():
            if isinstance(value, torch.Tensor):
                yield Anchor(value, held, name)


def anchors_in(
    containers: Iterable[Any], tensors: Container[int], roots: Iterable[torch.nn.Module]
) -> Iterator[Anchor]:
    """The entries of dicts, classes, lists and cells with the tensors of these ids, or wrappers.

    ``containers``: a pair is a dict and its one key. ``roots``: whose trees' dicts do not count.
    """
    modules = [m for root in roots for m in root.modules()]
    trees = {id(d) for m in modules for d in (m._parameters, m._buffers, vars(m))}
    # Once each: of the globals of one module there are as many pairs as code names.
    holders = {id(c): c for c in (c[0] if isinstance(c, tuple) else c for c in containers)}
    for each in holders.values():
        holder: Any = vars(each) if isinstance(each, type) else each
        if id(holder) not in trees:
            for key, value in _pairs(holder):
                # By type: a module's deprecated name may warn when it is asked for its class.
                wraps = issubclass(type(value), torch.Tensor) and is_wrapper(value)
                if id(value) in tensors or wraps:
                    yield Anchor(value, holder, key)


def _pairs(holder: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(holder, CellType):
        return [("", content_of(holder))]
    if isinstance(holder, (dict, MappingProxyType)):
        return list(entries(holder).items())
    return enumerate(items(holder)) if isinstance(holder, list) else ()


def roots_of(fn: Callable[..., Any]) -> tuple[torch.nn.Module, ...]:
    """The modules among them, each once."""
    return reach(fn).roots


def _kept_aside(roots: Iterable[torch.nn.Module]) -> Iterator[Anchor]:
    """Modules that modules keep in plain attributes, lists and dicts, where torch does not look."""
    waiting = [m for root in roots for m in root.modules()]
    known = set(map(id, waiting))
    for module in waiting:  # grows as it goes
        for name in [n for n in vars(module) if n not in _OF_EVERY_MODULE]:
            for anchor in _inside(Anchor(vars(module)[name], vars(module), name), _DEPTH):
                if id(anchor.value) not in known:
                    waiting += anchor.value.modules()
                    known.update(map(id, anchor.value.modules()))
                    yield anchor


def _inside(anchor: Anchor, depth: int) -> Iterator[Anchor]:
    """The modules among an entry and, ``depth`` containers deep, what is in it."""
    value = anchor.value
    if isinstance(value, torch.nn.Module):
        yield anchor
    elif depth and isinstance(value, (list, tuple, dict)):
        pairs = entries(value).items() if isinstance(value, dict) else enumerate(items(value))
        holder = None if isinstance(value, tuple) else value
        for key, item in itertools.islice(pairs, _MOST):
            yield from _inside(Anchor(item, holder, key), depth - 1)


def _modules(anchors: Iterable[Anchor]) -> tuple[torch.nn.Module, ...]:
    found = (a.value for a in anchors)
    return tuple(dict.fromkeys(v for v in found if isinstance(v, torch.nn.Module)))


class _Walk:
    def __init__(self) -> None:
        self.objects: list[Any] = []
        self._seen: set[int] = set()

    def argument(self, value: Any) -> Iterator[Anchor]:
        """What a constant argument reaches; of an object, tensors count that a trace reads."""
        if isinstance(value, (torch.nn.Module, functools.partial, FunctionType, MethodType)):
            yield from self.callable(value)
        else:
            found = self._object(value)
            yield from (a for a in found if isinstance(a.value, torch.nn.Module))

    def callable(self, fn: Any) -> Iterator[Anchor]:
        """What a function, method, partial or callable object reaches."""
        if isinstance(fn, torch.nn.Module):
            yield Anchor(fn)
        elif isinstance(fn, functools.partial):
            yield from self.callable(fn.func)
        elif isinstance(fn, MethodType) and isinstance(fn.__self__, torch.nn.Module):
            yield Anchor(fn.__self__)
        elif isinstance(fn, MethodType):
            yield from self._object(fn.__self__)
            yield from self.callable(fn.__func__)
        elif isinstance(inspect.unwrap(fn), FunctionType):
            yield from self._function(inspect.unwrap(fn))
        elif not isinstance(fn, type) and hasattr(fn, "__dict__"):
            yield from self._object(fn)
            yield from self.callable(getattr(type(fn).__call__, "__get__")(fn))  # noqa: B009

    def _function(self, fn: FunctionType) -> Iterator[Anchor]:
        if id(fn) in self._seen or str(fn.__module__).partition(".")[0] == "torch":
            return
        self._seen.add(id(fn))
        for cell in fn.__closure__ or ():
            try:
                yield from self._value(cell.cell_contents, cell, "", fn.__code__.co_names)
            except ValueError:  # not assigned yet
                continue
        names = [n for n in fn.__code__.co_names if n in fn.__globals__]
        for name in names:
            value = fn.__globals__[name]
            yield from self._value(value, fn.__globals__, name, fn.__code__.co_names)

    def _value(
        self, value: Any, holder: dict[str, Any] | CellType, key: str, names: Iterable[str]
    ) -> Iterator[Anchor]:
        if isinstance(value, (torch.nn.Module, torch.Tensor)):
            yield Anchor(value, holder, key)
        elif isinstance(value, ModuleType):
            yield from self._entries(value, [n for n in names if n in vars(value)])
        elif isinstance(value, (FunctionType, MethodType)):
            yield from self.callable(value)
        else:
            yield from self._object(value)

    def _object(self, value: Any) -> Iterator[Anchor]:
        self.objects.append(value)
        if hasattr(value, "__dict__") and not isinstance(value, type):
            yield from self._entries(value, list(vars(value)))

    def _entries(self, value: Any, names: Iterable[str]) -> Iterator[Anchor]:
        for name in names:
            held = vars(value)[name]
            if isinstance(held, (torch.nn.Module, torch.Tensor)):
                yield Anchor(held, vars(value), name)
