"""Tapes as the rules read them: every number as it is at several sizes, an extent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from piecewise_core.graph.padding.extents import Extent, Value, extent
from piecewise_core.graph.padding.tape import Noted, Ref
from piecewise_core.torch_compat.operators import OpOverload

__all__ = ["Call", "at_sizes", "together"]


@dataclass(frozen=True)
class Call:
    """What a rule is asked about.

    ``arguments``: by name; Values in place of tensors. ``results``: the shapes of the tensors that
    the operator gave. ``empty``: whether a padded dim may have no rows at all.
    """

    op: OpOverload
    arguments: Mapping[str, Any]
    results: tuple[tuple[Extent, ...], ...]
    empty: bool

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def get(self, name: str, otherwise: Any = None) -> Any:
        """The argument ``name``, or ``otherwise`` where this overload has none."""
        return self.arguments.get(name, otherwise)

    @property
    def tensors(self) -> list[Value]:
        """The tensors among the arguments, in order."""
        return [v for value in self.arguments.values() for v in _values(value)]


def at_sizes(tape: Sequence[Noted], number: Callable[[Any], Any]) -> list[Noted]:
    """A tape whose numbers are symbols. ``number``: what a symbol is at the sizes looked at."""
    return [_mapped(call, number) for call in tape]


def together(tapes: Sequence[Sequence[Noted]]) -> list[Noted] | None:
    """Runs of one program at several sizes as one; None where they ran other operators."""
    if len({len(tape) for tape in tapes}) != 1:
        return None
    try:
        return [_merged_call(calls) for calls in zip(*tapes, strict=True)]
    except _Different:
        return None


class _Different(Exception):
    pass


def _values(value: Any) -> list[Value]:
    if isinstance(value, Value):
        return [value]
    return [v for part in value for v in _values(part)] if isinstance(value, tuple) else []


def _mapped(call: Noted, number: Callable[[Any], Any]) -> Noted:
    def of(value: Any) -> Any:
        if isinstance(value, Ref):
            return Ref(value.number, tuple(map(number, value.shape)), value.dtype)
        if isinstance(value, tuple):
            return tuple(map(of, value))
        return number(value)

    arguments = {name: of(value) for name, value in call.arguments.items()}
    return Noted(call.op, arguments, of(call.results), call.place)


def _merged_call(calls: Sequence[Noted]) -> Noted:
    first = calls[0]
    if any(c.op is not first.op or c.arguments.keys() != first.arguments.keys() for c in calls):
        raise _Different
    arguments = {name: _merged([c.arguments[name] for c in calls]) for name in first.arguments}
    return Noted(first.op, arguments, _merged([c.results for c in calls]), first.place)


def _merged(values: Sequence[Any]) -> Any:
    first = values[0]
    if any(type(v) is not type(first) for v in values):
        raise _Different
    if isinstance(first, Ref):
        if any((v.number, v.dtype) != (first.number, first.dtype) for v in values):
            raise _Different
        return Ref(first.number, _merged([v.shape for v in values]), first.dtype)
    if isinstance(first, tuple):
        if any(len(v) != len(first) for v in values):
            raise _Different
        return tuple(_merged(parts) for parts in zip(*values, strict=True))
    if isinstance(first, (int, float)) and not isinstance(first, bool):
        return extent(values)
    if any(v is not first and v != first for v in values):
        raise _Different
    return first
