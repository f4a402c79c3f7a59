"""Tensors whose elements are places of rows, as ``arange`` makes them: by these, own rows are
picked for a call's own elements.
"""

from __future__ import annotations

from piecewise_core.graph.padding.calls import Call
from piecewise_core.graph.padding.extents import Axis, Extent, Value, added, total, within
from piecewise_core.torch_compat.operators import schema_of

__all__ = ["below", "inside"]

_KEEP = frozenset({
    "to", "_to_copy", "clone", "contiguous", "alias", "detach", "lift_fresh", "view", "reshape",
    "_unsafe_view", "unsqueeze", "squeeze", "expand", "expand_as", "broadcast_to", "transpose", "t",
    "permute", "movedim", "flatten", "unflatten", "slice", "select", "narrow", "repeat", "cat",
    "repeat_interleave", "_reshape_alias", "view_as",
})  # fmt: skip


def below(call: Call) -> Extent | None:
    """The number that elements of an operator's result, whole and not negative, stay below.

    None where nobody knows.
    """
    name = schema_of(call.op).name.removeprefix("aten::")
    values = call.tensors
    if name == "arange":
        plain = call.get("start", 0) == 0 and call.get("step", 1) == 1
        end = call["end"]
        return end if plain and _is_whole(end) else None
    if name in _KEEP and values and len({v.below for v in values}) == 1:
        return values[0].below
    if name == "add" and len(values) == 1 and call.get("alpha", 1) == 1:
        other = call.get("other")
        if values[0].below is not None and type(other) is int and other >= 0:
            return added(values[0].below, other)
    return None


def inside(index: Value, axis: Axis) -> bool:
    """Whether a call's own elements of ``index`` are places of own rows of ``axis``."""
    return index.below is not None and len(axis) <= 1 and within(index.below, total(axis))


def _is_whole(value: object) -> bool:
    numbers = value if isinstance(value, tuple) else (value,)
    return all(type(n) is int for n in numbers)
