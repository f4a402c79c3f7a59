"""Sizes that a program computes from one dim, and where they come to be 0 or 1."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sympy
import torch

from piecewise_core.graph.conditions import evaluator
from piecewise_core.graph.memory import values
from piecewise_core.graph.sizes import expression
from piecewise_core.graph.trace import Traced
from piecewise_core.ranges import LISTED, Range
from piecewise_core.torch_compat.symbols import ValueRanges, bound_sympy

__all__ = ["small_derived"]


def small_derived(traced: Traced, place: int) -> Iterator[Range]:
    """Sizes from 2 on of the dim at ``place`` with the same derived sizes at 0 or 1, set by set."""
    span = traced.box.ranges[place].clip(2, traced.box.ranges[place].end)
    if span is None or place not in traced.symbols.values():
        return
    bounds: Any = ValueRanges(span.start, span.end)
    kinds: dict[int, int] = {}
    for bit, (symbol, expr) in enumerate(_derived(traced, place)):
        try:
            if bound_sympy(expr, {symbol: bounds}).lower > 1:
                continue
        except Exception:  # what sympy cannot bound is computed
            pass
        computed = evaluator(expr, [symbol])
        for size in span.clip(span.start, span.start + LISTED // 4) or span:
            try:
                number = int(computed(size))
            except (ArithmeticError, ValueError):
                continue
            if 0 <= number <= 1:
                kinds[size] = kinds.get(size, 0) | (number + 1) << 2 * bit
    for kind in dict.fromkeys(kinds.values()):
        found = Range.of(size for size, of in kinds.items() if of == kind)
        if found is not None:
            yield found


def _derived(traced: Traced, place: int) -> list[tuple[sympy.Symbol, sympy.Basic]]:
    """Every size in the graph that is computed from the dim at ``place`` alone."""
    found: dict[sympy.Basic, sympy.Symbol] = {}
    for node in traced.graph.graph.nodes:
        for value in values(node.meta.get("example_value")):
            for size in value.shape if isinstance(value, torch.Tensor) else ():
                expr = expression(size)
                if isinstance(expr, sympy.Basic) and not isinstance(expr, sympy.Symbol):
                    used = list(expr.free_symbols)
                    if len(used) == 1 and traced.symbols.get(used[0]) == place:
                        found[expr] = used[0]
    return [(symbol, expr) for expr, symbol in found.items()]
