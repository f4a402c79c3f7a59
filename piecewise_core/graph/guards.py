"""From the guards that tracing left behind to the box of sizes over which the graph holds.

A guard is accepted when it is a threshold of one dim at 0 or 1, or at an endpoint that the user
listed; it then cuts the bounds into regions. Everything else is refused with its place.
"""

from __future__ import annotations

import linecache
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from piecewise_core.config import Dim
from piecewise_core.errors import SizeBranch
from piecewise_core.graph.conditions import evaluator, implied
from piecewise_core.ranges import Box, Range, Sizes

__all__ = ["Guard", "collect", "region"]

_DENSE = 1 << 16
"""Sizes evaluated one by one when a guard's threshold is looked for."""

_FREE_CUTS = (0, 1)
"""Endpoints at which the bounds may always be cut: 0 | 1 and 1 | 2."""


@dataclass(frozen=True)
class Guard:
    """A condition over sizes under which the traced graph is right, and who asked for it."""

    expr: sympy.Basic
    where: str


def collect(shape_env: ShapeEnv) -> list[Guard]:
    """Every guard of ``shape_env``, those that only narrowed a symbol's range included."""
    guards = [Guard(shape_env.replace(g.expr), _place(g.sloc)) for g in shape_env.guards]
    for symbol, value in shape_env.replacements.items():
        if not value.free_symbols:
            asked = (g.sloc for g in shape_env.guards if symbol in g.expr.free_symbols)
            place = next(map(_place, asked), "the trace")
            guards.append(Guard(sympy.Eq(symbol, value), place))
    return [g for g in guards if g.expr is not sympy.true]


def _place(sloc: Any) -> str:
    user = getattr(sloc, "maybe_user_loc", None)
    if user:
        source, _, where = str(user).rpartition("# ")
        return f"`{source.strip()}` ({_whole(where.strip())})" if source else str(user)
    return str(sloc)


def _whole(where: str) -> str:
    """``where`` with its file's full name, whose beginning torch cuts off."""
    path = where.partition(":")[0]
    full = next((f for f in linecache.cache if f.endswith(path)), path)
    return full + where.removeprefix(path)


def region(
    guards: Sequence[Guard],
    symbols: Mapping[sympy.Symbol, int],
    cell: Box,
    hint: Sizes,
    dims: Sequence[Dim],
    endpoints: Sequence[Sequence[int]],
) -> Box:
    """The largest box inside ``cell``, around ``hint``, on which every guard holds.

    ``symbols``: symbol -> place of its dim. ``endpoints``: per dim, the inclusive ends the user
    listed. Raises SizeBranch naming guard, place and the endpoint that would make it legal.
    """
    box = cell
    for guard in guards:
        used = [s for s in guard.expr.free_symbols if s in symbols]
        if len(used) == 1:
            place = symbols[used[0]]
            span = _span(guard, used[0], box.ranges[place], hint[place], dims[place])
            _check_cuts(guard, span, cell.ranges[place], dims[place], endpoints[place])
            box = Box((*box.ranges[:place], span, *box.ranges[place + 1 :]))
    for guard in guards:
        if len(guard.expr.free_symbols) > 1 and not implied(guard.expr, symbols, box):
            names = sorted(dims[symbols[s]].name for s in guard.expr.free_symbols if s in symbols)
            raise SizeBranch(
                f"the model depends on how dims {', '.join(names)} relate: "
                f"{_text(guard.expr, symbols, dims)} at {guard.where}; give dims that are always "
                "equal one Dim name, or compile a submodule without that branch"
            )
    return box


def _span(guard: Guard, symbol: sympy.Symbol, bounds: Range, hint: int, dim: Dim) -> Range:
    """The sizes around ``hint`` for which the guard holds."""
    holds = evaluator(guard.expr, [symbol])
    last = min(bounds.end, max(bounds.start + _DENSE, hint))
    start = end = hint
    while start > bounds.start and holds(start - 1):
        start -= 1
    while end < last and holds(end + 1):
        end += 1
    if end == last < bounds.end:
        tail = Box((Range(last, bounds.end),))
        if not implied(guard.expr, {symbol: 0}, tail):
            raise SizeBranch(
                f'the model depends on dim "{dim.name}" by {guard.expr} at {guard.where}, '
                f"beyond size {last}; lower Dim.max"
            )
        end = bounds.end
    return Range(start, end)


def _check_cuts(guard: Guard, span: Range, cell: Range, dim: Dim, endpoints: Sequence[int]) -> None:
    """Refuse a cut that is neither at 0 or 1 nor at a listed endpoint."""
    cuts = [] if span.start <= cell.start else [span.start - 1]
    cuts += [span.end] if span.end < cell.end else []
    illegal = [c for c in cuts if c not in _FREE_CUTS and c not in endpoints]
    if not illegal:
        return
    ends = ", ".join(map(str, illegal))
    listed = (
        f"list the endpoint{'s' if len(illegal) > 1 else ''} {ends} in compile_ranges_endpoints "
        f"(now {list(endpoints)})"
    )
    text = str(guard.expr).replace(str(next(iter(guard.expr.free_symbols))), dim.name)
    if span.is_single_size():
        raise SizeBranch(
            f'dim "{dim.name}" is fixed to {span.start} by {text} at {guard.where}; if no other '
            f"size works, take it out of Config.dynamic; if others take another path, {listed}"
        )
    raise SizeBranch(
        f'the model takes another path at some sizes of dim "{dim.name}": {text} at '
        f"{guard.where} holds for {span} only; {listed}, so that each side is traced by itself, "
        "or narrow Dim(min, max) to one side"
    )


def _text(expr: sympy.Basic, symbols: Mapping[sympy.Symbol, int], dims: Sequence[Dim]) -> str:
    return str(expr.subs({s: sympy.Symbol(dims[i].name) for s, i in symbols.items()}))
