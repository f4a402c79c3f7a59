"""From the guards that tracing left behind to the sizes for which the graph holds.

A guard over one dim is computed for each size in bounds: those for which it holds are the graph's
region, others are traced by themselves. Where the user declares the cuts, a guard may hold up to
0 or 1 or a listed endpoint only. What relates dims is refused with its place.
"""

from __future__ import annotations

import linecache
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import sympy
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from piecewise_core.config import Dim
from piecewise_core.errors import SizeBranch, TraceFailed
from piecewise_core.graph.branches import Guard, holds, settled
from piecewise_core.graph.conditions import evaluator, implied
from piecewise_core.graph.varying import is_varying
from piecewise_core.ranges import Box, Range, Sizes

__all__ = ["Guard", "Held", "collect", "region"]

_DENSE = 1 << 16
"""Sizes evaluated one by one when a guard's threshold is looked for."""

_MOST_ENDS = 8
"""Endpoints of one guard that somebody may want to list."""

_FREE_CUTS = (0, 1)
"""Endpoints at which the bounds may always be cut: 0 | 1 and 1 | 2."""


def collect(shape_env: ShapeEnv) -> list[Guard]:
    """Every guard of ``shape_env``, those that only narrowed a symbol's range included."""
    guards = [Guard(shape_env.replace(g.expr), _place(g.sloc), g.expr) for g in shape_env.guards]
    for symbol, value in shape_env.replacements.items():
        # What data decides is asserted by the graph itself.
        if symbol != value and not is_varying(symbol):
            asked = (g.sloc for g in shape_env.guards if symbol in g.expr.free_symbols)
            place = next(map(_place, asked), "the trace")
            equal = sympy.Eq(symbol, value, evaluate=False)
            guards.append(Guard(equal, place, equal))
    return guards


def _place(sloc: Any) -> str:
    user = getattr(sloc, "maybe_user_loc", None)
    if user:
        source, _, where = str(user).rpartition("# ")
        if where.startswith("<"):
            return "the call's arguments"  # code of ours, which nobody can look at
        return f"`{source.strip()}` ({_whole(where.strip())})" if source else str(user)
    return str(sloc)


def _whole(where: str) -> str:
    """``where`` with its file's full name, whose beginning torch cuts off."""
    path = where.partition(":")[0]
    full = next((f for f in linecache.cache if f.endswith(path)), path)
    return full + where.removeprefix(path)


@dataclass(frozen=True)
class Held:
    """``box``: where all guards hold. ``cuts``: the guards that hold nowhere else, and the lines
    that asked.
    """

    box: Box
    cuts: tuple[str, ...] = ()


def region(
    guards: Sequence[Guard],
    symbols: Mapping[sympy.Symbol, int],
    cell: Box,
    hint: Sizes,
    dims: Sequence[Dim],
    endpoints: Sequence[Sequence[int]] | None,
) -> Held:
    """The sizes inside ``cell`` for which every guard holds; ``hint`` is among them.

    ``symbols``: symbol -> place of its dim. ``endpoints``: per dim, the inclusive ends the user
    listed, at which alone regions may end; then those next to ``hint``. None: all there are, and
    regions end where they do. Raises SizeBranch naming guard, place and what would make it legal.
    """
    box = cell
    cuts: list[str] = []
    for guard in guards:
        used = [s for s in guard.expr.free_symbols if s in symbols]
        if len(used) != 1 or len(guard.expr.free_symbols) > 1:
            continue
        place = symbols[used[0]]
        before, dim = box.ranges[place], dims[place]
        if not implied(guard.expr, {used[0]: 0}, Box((dim.sizes,))):
            cuts.append(f"{_text(guard.expr, symbols, dims)} at {guard.where}")
        if implied(guard.expr, {used[0]: place}, box):
            continue
        held = _held(guard, used[0], before, hint[place], dim)
        if endpoints is not None:
            run = _around(before, held, hint[place])
            _check_cuts(guard, held, run, cell.ranges[place], dim, endpoints[place])
            held = run
        if held != before:
            box = box.replaced(place, held)
    for guard in guards:
        free = guard.expr.free_symbols
        unknown = any(s not in symbols and not is_varying(s) for s in free)
        if (unknown or len(free) > 1) and not _relates(guard.expr, symbols, box):
            _refuse_data(guard, symbols, dims)
            names = sorted(dims[symbols[s]].name for s in guard.expr.free_symbols if s in symbols)
            raise SizeBranch(
                f"the model depends on how dims {', '.join(names)} relate: "
                f"{_text(guard.expr, symbols, dims)} at {guard.where}; give dims that are always "
                f"equal one Dim name{settled(guard.expr, symbols, box, dims)}, or compile a "
                "submodule without that branch"
            )
    return Held(box, tuple(dict.fromkeys(cuts)))


def _refuse_data(guard: Guard, symbols: Mapping[sympy.Symbol, int], dims: Sequence[Dim]) -> None:
    """Raise TraceFailed where a guard compares a size that no input has: tensor data decides it."""
    unknown = sorted(map(str, guard.expr.free_symbols - set(symbols)))
    if unknown:
        raise TraceFailed(
            f"sizes {unknown} depend on tensor data, and the model compares them with others: "
            f"{_text(guard.expr, symbols, dims)} at {guard.where}; piecewise needs sizes that "
            "follow from the inputs' sizes. Move the data-dependent part out of the compiled model"
        )


def _relates(expr: Any, symbols: Mapping[sympy.Symbol, int], box: Box) -> bool:
    """Whether what ``expr`` says of several sizes holds for all in ``box``."""
    if isinstance(expr, sympy.Eq) and all(isinstance(side, sympy.Symbol) for side in expr.args):
        one, other = (symbols.get(side) for side in expr.args)
        if one is not None and one == other:
            return True  # of one dim: equal by its name
    return implied(expr, symbols, box)


def _held(guard: Guard, symbol: sympy.Symbol, span: Range, hint: int, dim: Dim) -> Range:
    """The sizes of ``span`` for which the guard holds; of very many, some around ``hint``."""
    asked = evaluator(guard.expr, [symbol])
    low = span.start if hint - span.start <= _DENSE else hint - _DENSE // 2
    tried = span.clip(low, low + _DENSE) or span
    found = Range.of(size for size in tried if holds(asked, size))
    if found is None or hint not in found:
        raise SizeBranch(
            f'the model depends on dim "{dim.name}" by {guard.expr} at {guard.where}, which does '
            f"not say of size {hint} what it said while tracing; compile a submodule without it"
        )
    above = span.clip(tried.end + 1, span.end)
    if above is None or not implied(guard.expr, {symbol: 0}, Box((above,))):
        return found
    run = _around(tried, found, tried.end)
    return span.clip(run.start, span.end) or found if hint in run else found


def _around(span: Range, held: Range, hint: int) -> Range:
    """The sizes of ``held`` next to ``hint`` without one of ``span`` between that is not."""
    missing = span.without(held) if span.end - span.start <= 2 * _DENSE else None
    if missing is None:
        return held
    below = [size for size in missing if size < hint]
    above = next((size for size in missing if size > hint), held.end + 1)
    return held.clip(below[-1] + 1 if below else held.start, above - 1) or held


def _check_cuts(
    guard: Guard, held: Range, run: Range, cell: Range, dim: Dim, endpoints: Sequence[int]
) -> None:
    """Refuse a cut that is neither at 0 or 1 nor at a listed endpoint.

    ``run``: the sizes of ``held`` that lie next to the traced one.
    """
    free = (*_FREE_CUTS, *endpoints)

    def unlisted(ends: Iterable[tuple[int, int]]) -> list[int]:
        return [last for last, first in ends if not any(last <= e < first for e in free)]

    below = cell.clip(cell.start, run.start - 1)
    above = cell.clip(run.end + 1, cell.end)
    cuts = [(below.end, run.start)] if below is not None else []
    cuts += [(run.end, above.start)] if above is not None else []
    illegal = unlisted(cuts)
    if not illegal:
        return
    if held != run:
        near = cell.clip(run.start - _DENSE, run.end + _DENSE) or run
        illegal = unlisted(p for p in pairwise(near) if (p[0] in held) != (p[1] in held))
    text = _branch_text(guard, held, run, dim, endpoints, illegal)
    ends = tuple(illegal) if len(illegal) <= _MOST_ENDS else ()
    error = SizeBranch(text)
    error.dim, error.bounds, error.endpoints = dim.name, (dim.min, dim.max), ends
    raise error


def _branch_text(
    guard: Guard, held: Range, run: Range, dim: Dim, endpoints: Sequence[int], illegal: list[int]
) -> str:
    """What to do about a guard that cuts at ``illegal``, where nobody listed an endpoint."""
    text = str(guard.expr).replace(str(next(iter(guard.expr.free_symbols))), dim.name)
    others = f'set regions="auto", which traces such sizes by themselves{_multiple(held, dim)}'
    if len(illegal) > _MOST_ENDS:
        return (
            f'the model takes another path at some sizes of dim "{dim.name}": {text} at '
            f"{guard.where} holds for {held} only; {others}"
        )
    ends = ", ".join(map(str, illegal))
    listed = (
        f"list the endpoint{'s' if len(illegal) > 1 else ''} {ends} in compile_ranges_endpoints "
        f"(now {list(endpoints)})"
    )
    if run.is_single_size():
        return (
            f'dim "{dim.name}" is fixed to {run.start} by {text} at {guard.where}; if no other '
            f"size works, take it out of Config.dynamic; if others take another path, {listed}, "
            f"or {others}"
        )
    return (
        f'the model takes another path at some sizes of dim "{dim.name}": {text} at '
        f"{guard.where} holds for {held} only; {listed}, so that each side is traced by itself, "
        f"narrow Dim(min, max) to one side, or {others}"
    )


def _multiple(held: Range, dim: Dim) -> str:
    """What to write where only multiples of something are wanted."""
    if held.is_whole or held.modulus > held.end or not held.residues & 1:
        return ""
    step = next(m for m in range(2, held.modulus + 1) if not held.residues >> m << m)
    return f', or Dim("{dim.name}", ..., multiple_of={step}) if no other sizes are called'


def _text(expr: sympy.Basic, symbols: Mapping[sympy.Symbol, int], dims: Sequence[Dim]) -> str:
    return str(expr.subs({s: sympy.Symbol(dims[i].name) for s, i in symbols.items()}))
