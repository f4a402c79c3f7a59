"""Operators that make tensors of a size: what they put in a row must not depend on the size."""

from __future__ import annotations

from piecewise_core.graph.padding.calls import Call
from piecewise_core.graph.padding.extents import Axes, axes_of
from piecewise_core.graph.padding.rule import Rule

__all__ = ["RULES"]


def _made(call: Call) -> list[Axes]:
    return [axes_of(shape) for shape in call.results]


_SIZED = Rule(_made, frozenset({"size", "n", "m", "stride"}))

RULES = {
    **dict.fromkeys(
        (
            *("zeros", "ones", "full", "empty", "empty_strided", "new_zeros", "new_ones"),
            *("new_full", "new_empty", "new_empty_strided", "eye", "empty_permuted"),
        ),
        _SIZED,
    ),
    "arange": Rule(_made, frozenset({"end"})),
}
