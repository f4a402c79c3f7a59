"""What a trace asked of sizes: where each answer holds, and what would leave nothing to ask."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy

from piecewise_core.config import Dim
from piecewise_core.graph.conditions import evaluator, implied
from piecewise_core.ranges import Box, Range

__all__ = ["Branch", "Guard", "branches", "holds", "settled"]


@dataclass(frozen=True)
class Guard:
    """A condition over sizes under which the traced graph is right, and who asked for it.

    ``asked``: as it was asked, before more was known of the sizes.
    """

    expr: sympy.Basic
    where: str
    asked: sympy.Basic = sympy.true


@dataclass(frozen=True)
class Branch:
    """``expr``, over the dim at ``place`` as ``symbol``: it does not hold for all of its sizes."""

    place: int
    expr: sympy.Basic
    symbol: sympy.Symbol
    where: str

    def held(self, span: Range) -> Range | None:
        """The sizes of ``span`` for which it holds."""
        asked = evaluator(self.expr, [self.symbol])
        return Range.of(size for size in span if holds(asked, size))


def branches(
    guards: Sequence[Guard], symbols: Mapping[sympy.Symbol, int], dims: Sequence[Dim]
) -> Iterator[Branch]:
    """What was asked of one dim each, and does not hold for all of its sizes."""
    for guard in guards:
        used = list(guard.asked.free_symbols)
        if len(used) == 1 and used[0] in symbols:
            place = symbols[used[0]]
            if not implied(guard.asked, {used[0]: 0}, Box((dims[place].sizes,))):
                yield Branch(place, guard.asked, used[0], guard.where)


def settled(
    expr: sympy.Basic, symbols: Mapping[sympy.Symbol, int], box: Box, dims: Sequence[Dim]
) -> str:
    """Which dim's multiples, if only they are called, leave nothing of ``expr`` to be asked."""
    for step in sorted(int(n) for n in expr.atoms(sympy.Integer) if n > 1):
        for place in sorted({symbols[s] for s in expr.free_symbols if s in symbols}):
            span = box.ranges[place]
            if span.end < step:
                continue
            multiples = Range(span.start, span.end, step, 1)
            if implied(expr, symbols, box.replaced(place, multiples)):
                return f', set Dim("{dims[place].name}", ..., multiple_of={step})'
    return ""


def holds(asked: Callable[..., Any], size: int) -> bool:
    """Whether a condition is true of ``size``; one that divides by zero is not."""
    try:
        return bool(asked(size))
    except (ArithmeticError, ValueError):
        return False  # a division by zero: the model itself may not get so far
