"""What elements of padding may be, as far as indices are concerned.

Rows of padding are zeros where a call's tensors are staged; what a program computes of those may be
no index. A CPU raises then; on a device it ends the context, for the whole process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from piecewise_core.graph.padding.calls import Call
from piecewise_core.graph.padding.extents import Extent, Value, Varies, total, varies
from piecewise_core.graph.padding.rule import Mixes, place
from piecewise_core.torch_compat.operators import schema_of

__all__ = ["OWN", "Span", "index_within", "span_of"]

Span = tuple[float, float] | str | None
"""The least and the largest; or OWN; None where nobody knows."""

OWN = "own"
"""Computed of no call's tensors: the numbers that a call of the captured size meets as well."""


def index_within(index: Value, size: Extent, *, backwards: bool = False) -> None:
    """Refuse an index whose padding may lie outside of ``size`` elements.

    ``backwards``: whether a negative one counts from the end.
    """
    if not varies(index) or index.span == OWN:
        return
    least = min(size) if isinstance(size, Varies) else size
    span = index.span
    if isinstance(span, tuple) and (-least if backwards else 0) <= span[0] and span[1] < least:
        return
    raise Mixes("may be given an index out of bounds by rows of padding, which are made of zeros")


def span_of(call: Call, result: int, dtype: torch.dtype | None) -> Span:
    """What the padding of an operator's result may be; ``result``: its place, of ``dtype``."""
    values = call.tensors
    if all(v.span == OWN for v in values):
        return OWN
    if dtype is torch.bool:
        return (0, 1)
    name = schema_of(call.op).name.removeprefix("aten::").removesuffix("_")
    found = _of_places(name, call, result)
    if found is None and name in _KNOWN:
        found = _KNOWN[name](call)
    if found is None or any(map(math.isnan, found)):
        return None
    whole = dtype is not None and not dtype.is_floating_point and not dtype.is_complex
    return (math.trunc(found[0]), math.trunc(found[1])) if whole and _finite(found) else found


def _finite(span: tuple[float, float]) -> bool:
    return all(map(math.isfinite, span))


_Range = tuple[float, float]

_PLACES = ("argmax", "argmin", "argsort")


def _of_places(name: str, call: Call, result: int) -> _Range | None:
    """Of operators that give places in a dim, which they count."""
    first = call.tensors[0]
    if name in _PLACES or (result and name in ("sort", "topk", "max", "min")):
        dim = call.get("dim", None if name.startswith("arg") else -1)
        if first.axes is None or not isinstance(dim, int):
            return None
        size = total(first.axes[place(dim, first.dims)]) if first.axes else 1
        return None if isinstance(size, Varies) else (0, size - 1)
    if name in ("bucketize", "searchsorted"):
        among = call.get("boundaries", call.get("sorted_sequence"))
        found = total(among.axes[-1]) if isinstance(among, Value) and among.axes else None
        return (0, found) if isinstance(found, int) else None
    return None


def _range(value: Any) -> _Range | None:
    """Of an argument: a number, or a tensor."""
    if isinstance(value, Value):
        return value.span if isinstance(value.span, tuple) else None
    return (value, value) if isinstance(value, (bool, int, float)) else None


def _binary(function: Callable[[float, float], float]) -> Callable[[Call], _Range | None]:
    """Of two arguments, at the ends of whose ranges the result has its own."""

    def of(call: Call) -> _Range | None:
        a, b = _range(call["self"]), _range(call["other"])
        scale = call.get("alpha", 1)
        if a is None or b is None or not isinstance(scale, (int, float)):
            return None
        ends = [function(x, y * scale) for x in a for y in b]
        return min(ends), max(ends)

    return of


def _unary(function: Callable[[float], float]) -> Callable[[Call], _Range | None]:
    def of(call: Call) -> _Range | None:
        a = _range(call.tensors[0])
        ends = [] if a is None else [function(x) for x in a]
        return (min(ends), max(ends)) if ends else None

    return of


def _joined(*names: str) -> Callable[[Call], _Range | None]:
    """Of operators that give an element of one of their arguments."""

    def of(call: Call) -> _Range | None:
        given = [call[name] for name in names if name in call.arguments] if names else call.tensors
        parts = [_range(value) for value in given]
        known = [part for part in parts if part is not None]
        if not known or len(known) < len(parts):
            return None
        return min(low for low, _ in known), max(high for _, high in known)

    return of


def _clamped(call: Call) -> _Range | None:
    given = _range(call["self"]) or (-math.inf, math.inf)
    low, high = (_range(call.get(name)) for name in ("min", "max"))
    for bound, pick in ((low, max), (high, min)):
        if bound is not None:
            given = (pick(given[0], bound[0]), pick(given[1], bound[1]))
    return given


def _remainder(call: Call) -> _Range | None:
    by = call["other"]
    return (0, by - 1) if type(by) is int and by > 0 else None


def _masked(call: Call) -> _Range | None:
    ranges = [r for r in map(_range, (call["self"], call["other"])) if r is not None and r[0] >= 0]
    return (0, min(high for _, high in ranges)) if ranges else None


def _absolute(call: Call) -> _Range | None:
    a = _range(call["self"])
    return None if a is None else (0, max(map(abs, a)))


def _summed(call: Call) -> _Range | None:
    """Of as many as there are along fixed dims, or up to there."""
    value, dim = call["self"], call.get("dim")
    a = _range(value)
    dims: Sequence[Any] = dim if isinstance(dim, tuple) else (dim,)
    if a is None or value.axes is None or not all(isinstance(d, int) for d in dims):
        return None
    sizes = [total(value.axes[place(d, value.dims)]) for d in dims] if value.axes else []
    if any(isinstance(size, Varies) for size in sizes):
        return None
    count = math.prod(int(size) for size in sizes if isinstance(size, int))
    return min(a[0], a[0] * count), max(a[1], a[1] * count)


_SAME = _joined("self", "input")

_KNOWN: dict[str, Callable[[Call], _Range | None]] = {
    **dict.fromkeys(
        (
            *("to", "_to_copy", "type_as", "contiguous", "clone", "detach", "alias", "long", "int"),
            *("lift_fresh", "view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "t"),
            *("unflatten", "view_as", "unsqueeze", "squeeze", "expand", "expand_as", "unbind"),
            *("broadcast_to", "transpose", "permute", "movedim", "slice", "select", "narrow"),
            *("split", "chunk", "split_with_sizes", "repeat", "repeat_interleave", "swapaxes"),
            *("float", "half", "double", "tril", "triu", "flip", "roll", "ravel", "amax", "amin"),
        ),
        _SAME,
    ),
    "sort": _SAME,
    "topk": _SAME,
    **dict.fromkeys(("round", "floor", "ceil", "trunc", "relu"), _SAME),
    "add": _binary(lambda x, y: x + y),
    "sub": _binary(lambda x, y: x - y),
    "mul": _binary(lambda x, y: x * y),
    "minimum": _binary(min),
    "maximum": _binary(max),
    "neg": _unary(lambda x: -x),
    "abs": _absolute,
    **dict.fromkeys(("clamp", "clip", "clamp_min", "clamp_max"), _clamped),
    "remainder": _remainder,
    **dict.fromkeys(("bitwise_and", "__and__", "logical_and"), _masked),
    "where": _joined("self", "other"),
    "masked_fill": _joined("self", "value"),
    **dict.fromkeys(("cat", "stack", "concat"), _joined()),
    **dict.fromkeys(("sum", "cumsum"), _summed),
    **dict.fromkeys(("zeros_like", "new_zeros", "zeros"), lambda call: (0, 0)),
    **dict.fromkeys(("ones_like", "new_ones", "ones"), lambda call: (1, 1)),
    **dict.fromkeys(("full_like", "new_full", "full"), lambda call: _range(call["fill_value"])),
}
"""By the names of operators; those that are not here give anything."""
