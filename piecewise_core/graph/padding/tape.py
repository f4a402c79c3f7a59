"""Notes which operators a program runs, on which tensors: what the rules of padding are asked of.

Both front ends fill a tape: a traced program run on fake tensors, a recorded function while it
runs. An operator that no rule knows is noted as the simpler ones that torch says it consists of.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

from piecewise_core.graph.composite import parts_of_conversion
from piecewise_core.graph.memory import values
from piecewise_core.torch_compat import pytree
from piecewise_core.torch_compat.dispatcher import DisableTorchFunction, TorchDispatchMode
from piecewise_core.torch_compat.operators import (
    OpOverload,
    can_decompose,
    decomposition_table,
    schema_of,
)

__all__ = ["Noted", "Noting", "Ref", "Tape", "makes_whole_numbers"]

logger = logging.getLogger(__name__)

_QUIET = frozenset({"prim", "profiler"})
"""Operators that compute nothing."""


@dataclass(frozen=True)
class Ref:
    """A tensor of a tape: its number, its shape when it was used, its dtype."""

    number: int
    shape: tuple[Any, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Noted:
    """One call of an operator.

    ``arguments``: by their names in the schema, Refs in place of tensors. ``results``: its tensors
    in order. ``place``: says where it was called.
    """

    op: OpOverload
    arguments: Mapping[str, Any]
    results: tuple[Ref, ...]
    place: Callable[[], str]


class Tape:
    """Calls in order. Tensors are kept weakly: a run frees its memory as it goes.

    ``knows(op)``: whether there is a rule for an operator.
    """

    def __init__(self, knows: Callable[[OpOverload], bool]) -> None:
        self.calls: list[Noted] = []
        self._knows = knows
        self._numbers: Any = WeakIdKeyDictionary()
        self._count = 0

    def ref(self, tensor: torch.Tensor) -> Ref:
        """What stands for ``tensor``."""
        number = self._numbers.get(tensor)
        if number is None:
            self._numbers[tensor] = number = self._count
            self._count += 1
        return Ref(number, tuple(tensor.shape), tensor.dtype)

    def note(self, op: Any, args: Any, kwargs: Any, result: Any, place: Callable[[], str]) -> None:
        """One operator ran and gave ``result``."""
        if not isinstance(op, OpOverload) or op.namespace in _QUIET:
            return
        given = _tensors((args, kwargs))
        if not self._knows(op) and self._in_parts(op, args, kwargs, result, given, place):
            return
        arguments = {name: self._kept(value) for name, value in _named(op, args, kwargs)}
        results = tuple(self.ref(t) for t in _tensors(result))
        self.calls.append(Noted(op, arguments, results, place))

    def _kept(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self.ref(value)
        if isinstance(value, (tuple, list)):
            return tuple(map(self._kept, value))
        return value

    def _in_parts(
        self,
        op: Any,
        args: Any,
        kwargs: Any,
        result: Any,
        given: Sequence[torch.Tensor],
        place: Callable[[], str],
    ) -> bool:
        """Note the operators that ``op`` consists of, found with tensors that have no data."""
        parts = _parts_of(op)
        if parts is None or (not given and torch.Tag.nondeterministic_seeded in op.tags):
            return False  # what draws without any tensor would draw again
        before = len(self.calls)
        with _without_data(given) as stand_in, DisableTorchFunction():
            for tensor in given:
                self._numbers[stand_in(tensor)] = self.ref(tensor).number
            try:
                with Noting(self, lambda: place):
                    own, named = pytree.tree_map_only(torch.Tensor, stand_in, (args, kwargs))
                    made = parts(*own, **named)
                found, wanted = _tensors(made), _tensors(result)
                if made is not NotImplemented and _alike(found, wanted):
                    for real, made_of in zip(wanted, found, strict=True):
                        self._numbers[real] = self.ref(made_of).number
                    return True
            except Exception as error:  # what cannot be taken apart has no rule either
                logger.debug("%s cannot be taken apart: %s", op, error)
        del self.calls[before:]
        return False


class Noting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Puts every operator that runs on a tape. ``place()``: where that is, as a Noted has it."""

    def __init__(self, tape: Tape, place: Callable[[], Callable[[], str]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tape = tape
        self._place = place

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        parts = parts_of_conversion(func)
        if parts is not None:
            with self:
                return parts(*args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        self._tape.note(func, args, kwargs or {}, result, self._place())
        return result


def makes_whole_numbers(call: Noted) -> bool:
    """Whether an operator makes whole numbers, indices perhaps, of floats."""
    given = [v.dtype for v in call.arguments.values() if isinstance(v, Ref)]
    whole = [not r.dtype.is_floating_point and r.dtype != torch.bool for r in call.results]
    return any(whole) and any(d.is_floating_point for d in given)


def _parts_of(op: OpOverload) -> Callable[..., Any] | None:
    if can_decompose(op):
        return op.decompose
    return decomposition_table.get(op)


@contextmanager
def _without_data(
    tensors: Sequence[torch.Tensor],
) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """Tensors like ``tensors`` that hold no data, by the tensors."""
    modes = [m for m in (getattr(t, "fake_mode", None) for t in tensors) if m is not None]
    made: dict[int, torch.Tensor] = {}

    def stand_in(tensor: torch.Tensor) -> torch.Tensor:
        return made[id(tensor)]

    with modes[0] if modes else nullcontext():
        for tensor in tensors:
            if id(tensor) not in made:
                device = tensor.device if modes else torch.device("meta")
                made[id(tensor)] = torch.empty_strided(
                    tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device
                )
        yield stand_in


def _alike(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> bool:
    return len(found) == len(wanted) and all(
        a.dim() == b.dim() and a.dtype == b.dtype for a, b in zip(found, wanted, strict=True)
    )


def _named(op: OpOverload, args: Any, kwargs: Any) -> Iterator[tuple[str, Any]]:
    """Every argument by its name, those left out by their defaults."""
    for place, argument in enumerate(schema_of(op).arguments):
        if place < len(args):
            yield argument.name, args[place]
        elif argument.name in kwargs:
            yield argument.name, kwargs[argument.name]
        elif argument.has_default_value():
            yield argument.name, argument.default_value


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in values(value) if isinstance(leaf, torch.Tensor)]
