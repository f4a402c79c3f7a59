"""Operators that read or write elements by index: only in dims that are fixed."""

from __future__ import annotations

import torch

from piecewise_core.graph.padding.calls import Call
from piecewise_core.graph.padding.extents import Axes, Axis, Extent, Value, axes_of, total
from piecewise_core.graph.padding.padvalues import index_within
from piecewise_core.graph.padding.rowplaces import inside
from piecewise_core.graph.padding.rule import (
    Mixes,
    Rule,
    along,
    broadcast,
    fixed,
    fixed_tensors,
    known,
)

__all__ = ["RULES"]

_PICKED = "picks rows of it by index"


def _picked(axis: Axis, index: Value, *, backwards: bool = False) -> None:
    """Refuse to pick rows of a dim that varies, unless by their places; or any out of bounds."""
    if not inside(index, axis):
        fixed((axis,), _PICKED)
    index_within(index, total(axis), backwards=backwards)


def _count(axes: Axes, at: int) -> Extent:
    return total(axes[at]) if axes else 1


def _embedded(call: Call) -> list[Axes]:
    weight = known(call["weight"])
    for axis in weight[:1]:
        _picked(axis, call["indices"])
    return [(*known(call["indices"]), *weight[1:])]


def _indexed(call: Call) -> list[Axes]:
    axes = known(call["self"])
    picked = {i: v for i, v in enumerate(call["indices"]) if isinstance(v, Value)}
    if any(v.dtype in (torch.bool, torch.uint8) for v in picked.values()):
        raise Mixes("picks rows by a mask")
    for i, value in picked.items():
        _picked(axes[i], value, backwards=True)
    made = broadcast(known(v) for v in picked.values())
    order = sorted(picked)
    rest = [a for i, a in enumerate(axes) if i not in picked]
    together = order == list(range(order[0], order[-1] + 1)) if order else False
    at = order[0] if together else 0
    return [(*rest[:at], *made, *rest[at:])]


def _index_written(call: Call) -> list[Axes]:
    axes = known(call["self"])
    fixed_tensors(call.tensors[1:], "writes to places that rows of padding name too")
    for i, value in enumerate(call["indices"]):
        if isinstance(value, Value):
            fixed(axes[i : i + 1], _PICKED)
    return [axes]


def _index_selected(call: Call) -> list[Axes]:
    axes, at = along(call)
    _picked(axes[at], call["index"])
    return [(*axes[:at], *known(call["index"]), *axes[at + 1 :])]


def _gathered(call: Call) -> list[Axes]:
    axes, at = along(call)
    index = known(call["index"] if "index" in call.arguments else call["indices"])
    fixed(axes[at : at + 1], _PICKED)
    if len(index) != len(axes):
        raise Mixes(_PICKED)
    index_within(call.get("index", call.get("indices")), _count(axes, at))
    rest = broadcast([(*a[:at], *a[at + 1 :]) for a in (axes, index)])
    return [(*rest[:at], *index[at : at + 1], *rest[at:])]


def _scattered(call: Call) -> list[Axes]:
    """Each row writes to its own row."""
    axes, at = along(call)
    for other in call.tensors[1:]:
        found = known(other)
        if len(found) != len(axes):
            raise Mixes("writes by index")
        fixed((axes[at], found[at]), "writes to places of it by index")
        for i, axis in enumerate(found):
            if i != at and axis != axes[i]:
                fixed((axis, axes[i]), "writes by index to rows that lie otherwise")
    index_within(call["index"], _count(axes, at))
    return [axes]


def _added_at(call: Call) -> list[Axes]:
    """Whole slices written to places of one dim."""
    axes, at = along(call)
    fixed((axes[at], *known(call["index"])), "writes to places of it by index")
    source = call.get("source", call.get("src"))
    if isinstance(source, Value):
        found = known(source)
        fixed(found[at : at + 1], "writes to places of it by index")
        broadcast([(*a[:at], *a[at + 1 :]) for a in (axes, found)])
    return [axes]


def _hot(call: Call) -> list[Axes]:
    if call["num_classes"] < 0:
        raise Mixes("counts the classes that it meets")
    index_within(call["self"], call["num_classes"])
    return [(*known(call["self"]), axes_of((call["num_classes"],))[0])]


RULES = {
    "embedding": Rule(_embedded),
    "index": Rule(_indexed),
    "_unsafe_index": Rule(_indexed),
    **dict.fromkeys(("index_put", "index_put_", "_unsafe_index_put"), Rule(_index_written)),
    "index_select": Rule(_index_selected),
    **dict.fromkeys(("gather", "take_along_dim"), Rule(_gathered)),
    **dict.fromkeys(
        ("scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce"), Rule(_scattered)
    ),
    **dict.fromkeys(
        ("index_add", "index_add_", "index_copy", "index_copy_", "index_fill", "index_fill_"),
        Rule(_added_at),
    ),
    "one_hot": Rule(_hot),
}
