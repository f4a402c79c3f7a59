"""What a callable reaches by name: the modules and tensors in its owner, closure and globals."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

import torch

__all__ = ["Anchor", "anchors_of", "roots_of", "traced_in"]


@dataclass(frozen=True, eq=False)
class Anchor:
    """A module or tensor, and the dict entry or closure cell that held it when it was reached.

    ``holder``: None for what the callable is itself: that cannot be replaced.
    """

    value: torch.nn.Module | torch.Tensor
    holder: dict[str, Any] | CellType | None = None
    key: str = ""

    def moved(self) -> bool:
        """Whether another object is there now."""
        if self.holder is None:
            return False
        if isinstance(self.holder, dict):
            return self.holder.get(self.key) is not self.value
        try:
            return self.holder.cell_contents is not self.value
        except ValueError:  # emptied
            return True


def anchors_of(fn: Callable[..., Any]) -> list[Anchor]:
    """The modules and tensors that ``fn`` reaches, through plain functions and objects too."""
    return list(_Walk().callable(fn))


def roots_of(fn: Callable[..., Any]) -> tuple[torch.nn.Module, ...]:
    """The modules among them, each once."""
    found = [a.value for a in anchors_of(fn)]
    return tuple(dict.fromkeys(v for v in found if isinstance(v, torch.nn.Module)))


def traced_in(fn: Callable[..., Any]) -> list[torch.nn.Module]:
    """The modules that a trace of ``fn`` calls, hooks and all: not the one whose forward it is."""
    own = getattr(fn, "__self__", None) if getattr(fn, "__name__", "") == "forward" else None
    return [m for root in roots_of(fn) for m in root.modules() if m is not own]


class _Walk:
    def __init__(self) -> None:
        self._seen: set[int] = set()

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
        if hasattr(value, "__dict__") and not isinstance(value, type):
            yield from self._entries(value, list(vars(value)))

    def _entries(self, value: Any, names: Iterable[str]) -> Iterator[Anchor]:
        for name in names:
            held = vars(value)[name]
            if isinstance(held, (torch.nn.Module, torch.Tensor)):
                yield Anchor(held, vars(value), name)
