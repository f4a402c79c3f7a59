"""Whether padding reaches a call's own rows: every operator asked, in order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from piecewise_core.graph.padding.calls import Call
from piecewise_core.graph.padding.extents import Axes, Value, Varies, axes_of, total, varies
from piecewise_core.graph.padding.padvalues import OWN, span_of
from piecewise_core.graph.padding.rowplaces import below
from piecewise_core.graph.padding.rule import Mixes, known
from piecewise_core.graph.padding.table import rule_of
from piecewise_core.graph.padding.tape import Noted, Ref
from piecewise_core.graph.randomness import draws
from piecewise_core.torch_compat.operators import changes_itself, schema_of

__all__ = ["Mixing", "cannot_pad", "mixing"]


@dataclass(frozen=True)
class Mixing:
    """Why a dim cannot be padded: the operator, where it is called, what it does."""

    op: str
    place: str
    why: str

    def __str__(self) -> str:
        return f"{self.op}{f' at {self.place}' if self.place else ''} {self.why}"


def mixing(
    calls: Iterable[Noted],
    inputs: Iterable[Ref],
    results: Iterable[Ref] = (),
    *,
    empty: bool = False,
) -> Mixing | None:
    """What makes padding reach a call's own rows; None where nothing does.

    ``inputs``: the tensors whose dims may be padded; all others are fixed. ``results``: tensors
    that must have a call's own rows at the beginning of each dim. ``empty``: whether a padded dim
    may have no rows.
    """
    judge = _Judge(inputs, empty)
    for call in calls:
        try:
            judge.look(call)
        except Mixes as reason:
            return Mixing(schema_of(call.op).name, call.place(), str(reason))
    if all(map(judge.can_cut, results)):
        return None
    return Mixing("the result", "", "has rows of padding between a call's own")


def cannot_pad(what: str, why: Mixing) -> str:
    """The message for calls that are served without padding. ``what``: a dim, or sizes."""
    return (
        f"{what} cannot be padded: {why}, so rows of padding could change a call's own. Sizes "
        "between capture sizes are served without padding from now on; list them in capture_sizes, "
        "or compile a part of the model in which rows are alone"
    )


class _Judge:
    def __init__(self, inputs: Iterable[Ref], empty: bool) -> None:
        self._empty = empty
        self._values: dict[int, Value] = {
            ref.number: Value(
                axes_of(ref.shape), ref.dtype, span=(0, 0) if varies(ref.shape) else None
            )
            for ref in inputs
        }

    def can_cut(self, ref: Ref) -> bool:
        """Whether what padding adds to a tensor lies at the end of its dims."""
        axes = self._value(ref).axes
        return axes is not None and all(len(a) == 1 or not varies(a) for a in axes)

    def look(self, noted: Noted) -> None:
        """Ask one operator's rule, and note what it makes."""
        arguments = {name: self._value(value) for name, value in noted.arguments.items()}
        shapes = tuple(ref.shape for ref in noted.results)
        call = Call(noted.op, arguments, shapes, self._empty)
        if varies(shapes) or any(map(varies, arguments.values())):
            axes = _asked(call)
        else:
            axes = [axes_of(shape) for shape in shapes]  # nothing that it sees is padded
        _check_writes(call, axes)
        narrow, limit = _narrows(call, axes), below(call)
        self._forget_written(call)
        for i, (ref, found) in enumerate(zip(noted.results, axes, strict=True)):
            if found is not None and tuple(map(total, found)) != ref.shape:
                raise Mixes("gave another shape than its rule says")
            places = None if ref.dtype.is_floating_point else limit
            span = span_of(call, i, ref.dtype)
            if span != OWN and not varies(ref.shape):
                span = None  # it has no padding, and is nobody's but this call's
            self._values[ref.number] = Value(found, ref.dtype, narrow, places, span)

    def _forget_written(self, call: Call) -> None:
        """What is written may be seen through other tensors: nothing is known of their padding."""
        for argument in schema_of(call.op).arguments:
            value = call.get(argument.name)
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            written = value.dtype if isinstance(value, Value) else None
            for number, found in self._values.items():
                if found.dtype is written:
                    self._values[number] = replace(found, span=None)

    def _value(self, value: Any) -> Any:
        if isinstance(value, Ref):
            found = self._values.get(value.number)
            if found is None:  # a parameter, a constant; what varies there, nobody knows
                axes = None if varies(value.shape) else axes_of(value.shape)
                found = self._values[value.number] = Value(axes, value.dtype, span=OWN)
            return found
        return tuple(map(self._value, value)) if type(value) is tuple else value


def _asked(call: Call) -> list[Axes | None]:
    drawing = SimpleNamespace(
        op="call_function", target=call.op, args=(), kwargs=dict(call.arguments)
    )
    if draws(drawing):
        raise Mixes("draws random numbers, and would draw others for other rows")
    rule = rule_of(call.op)
    if rule is None:
        raise Mixes("is unknown: no rule says whether its rows see each other")
    for name, value in call.arguments.items():
        if name not in rule.sizes and _number_varies(value):
            raise Mixes("computes with a size of the call")
    try:
        found = list(rule.apply(call))
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        # An overload whose arguments are of other kinds than those that the rule was written for.
        raise Mixes(f"is called in a form that its rule does not know ({error})") from error
    if len(found) != len(call.results):
        raise Mixes("gave another number of results than its rule says")
    return found


def _number_varies(value: Any) -> bool:
    if isinstance(value, Varies):
        return True
    return type(value) is tuple and any(map(_number_varies, value))


def _check_writes(call: Call, made: list[Axes | None]) -> None:
    for argument in schema_of(call.op).arguments:
        value = call.get(argument.name)
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        if not isinstance(value, Value):
            if varies(value):
                raise Mixes("writes to a list of tensors")
            continue
        if value.narrow and varies(value):
            raise Mixes("writes rows of padding to memory that is read whole")
        if not changes_itself(call.op) and known(value) not in made and varies([value, *made]):
            raise Mixes("writes to a tensor whose rows lie otherwise")


def _narrows(call: Call, made: list[Axes | None]) -> bool:
    """Whether results are the beginning of a tensor that goes on behind them."""
    returns = schema_of(call.op).returns
    if not any(r.alias_info is not None for r in returns):
        return False
    values = call.tensors
    if any(v.narrow for v in values):
        return True
    before = max((_count(v.axes) for v in values), default=0)
    return any(_count(axes) > before for axes in made)


def _count(axes: Axes | None) -> int:
    return sum(isinstance(factor, Varies) for axis in axes or () for factor in axis)
