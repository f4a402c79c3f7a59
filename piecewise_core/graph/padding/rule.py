"""What a rule is: from dims of an operator's arguments to those of its results, or a refusal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from piecewise_core.graph.padding.calls import Call
from piecewise_core.graph.padding.extents import (
    Axes,
    Axis,
    Extent,
    Value,
    Varies,
    axes_of,
    total,
    varies,
)

__all__ = [
    "Mixes",
    "Rule",
    "agreed",
    "along",
    "broadcast",
    "fewest",
    "fixed",
    "fixed_tensors",
    "known",
    "place",
    "places",
    "prefix",
]


class Mixes(Exception):
    """An operator by which padding reaches a call's own rows; the message says how."""


@dataclass(frozen=True)
class Rule:
    """How one kind of operator treats padding.

    ``apply(call)``: the dims of each result, None for a result that nobody needs to know; raises
    Mixes. ``sizes``: arguments that may be sizes of the call; a size anywhere else is a value.
    """

    apply: Callable[[Call], Sequence[Axes | None]]
    sizes: frozenset[str] = frozenset()


def place(dim: int, dims: int) -> int:
    """A dim counted from the front."""
    return dim % dims if dims else 0


def places(dims: Sequence[int] | int | None, of: Value) -> list[int]:
    """Several dims, counted from the front; all of them where none is named."""
    if dims is None or (isinstance(dims, tuple) and not dims):
        return list(range(of.dims))
    listed = (dims,) if isinstance(dims, int) else dims
    return [place(dim, of.dims) for dim in listed]


def fixed(axes: Iterable[Axis], what: str) -> None:
    """Refuse dims that vary. ``what``: what the operator does along them."""
    if any(map(varies, axes)):
        raise Mixes(what)


def fixed_tensors(values: Iterable[Value], what: str) -> None:
    """Refuse tensors with dims that vary."""
    for value in values:
        fixed(known(value), what)


def along(call: Call, otherwise: int | None = None) -> tuple[Axes, int]:
    """The dims of ``self``, and the place of the one that ``dim`` names, or ``otherwise``."""
    value, dim = call["self"], call.get("dim", otherwise)
    return known(value), place(dim, value.dims)


def agreed(axes: Iterable[Axis]) -> Axis:
    """The one dim that several tensors have in common, those of one element left out."""
    found: Axis = ()
    for axis in axes:
        if axis == ():
            continue
        if found not in ((), axis):
            raise Mixes("meets dims whose rows lie otherwise")
        found = axis
    return found


def broadcast(tensors: Iterable[Axes]) -> Axes:
    """The dims of tensors that are brought to one shape, as element-wise operators do."""
    listed = list(tensors)
    dims = max(map(len, listed), default=0)
    padded = [((),) * (dims - len(axes)) + tuple(axes) for axes in listed]
    return tuple(agreed(axes[i] for axes in padded) for i in range(dims))


def known(value: Value) -> Axes:
    """The dims of a tensor."""
    if value.axes is None:
        raise Mixes("reads a result of an operator whose rows nobody knows")
    return value.axes


def fewest(axis: Axis, call: Call) -> int:
    """The smallest number of elements that a dim may have."""
    found = total(axis)
    if not isinstance(found, Varies):
        return found
    return 0 if call.empty else min(found)


def prefix(axis: Axis, size: Extent, start: int, call: Call) -> Axis:
    """The dim of ``size`` rows that begins at row ``start`` of ``axis``.

    A call's own rows come first in it, as they do in ``axis``, unless those end before it does.
    """
    if total(axis) == size and start == 0:
        return axis
    cut: Axis = axes_of((size,))[0]
    if not varies(axis) and not varies(size):
        return cut
    if len(axis) > 1 or start < 0:
        raise Mixes("takes rows of it by their place from the end, or of several dims joined")
    if varies(axis) and fewest(axis, call) < start + (0 if isinstance(size, Varies) else size):
        raise Mixes("takes rows of it that small calls lack")
    return cut
