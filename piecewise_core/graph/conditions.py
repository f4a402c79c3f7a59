"""Conditions over sizes: computed for given sizes, and whether they hold for all of a box."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sympy
import torch

from piecewise_core.ranges import Box, Range
from piecewise_core.torch_compat.symbols import (
    FloorDiv,
    Mod,
    PythonMod,
    PythonPrinter,
    ValueRanges,
    bound_sympy,
)

__all__ = ["evaluator", "implied", "python_source"]

logger = logging.getLogger(__name__)

_DENSE = 1 << 14
"""Combinations of sizes that are tried one by one before a condition is given up."""

_LISTED = 1 << 16
"""Sizes from a range's first to its last, where it may have few."""


def implied(expr: sympy.Basic, symbols: Mapping[sympy.Symbol, int], box: Box) -> bool:
    """Whether ``expr`` is known to hold for all sizes in ``box``.

    ``symbols``: symbol -> place of its dim. By its bounds, by dividing what divides evenly, or by
    trying every combination of sizes where there are few.
    """
    bounds: Any = {
        s: ValueRanges(box.ranges[i].start, box.ranges[i].end) for s, i in symbols.items()
    }
    expr, bounds, ranges = _stepped(expr, bounds, {s: box.ranges[i] for s, i in symbols.items()})
    return (
        _bounded(expr, bounds) or _bounded(_divided(expr, bounds), bounds) or _tried(expr, ranges)
    )


def _stepped(expr: Any, bounds: Any, ranges: dict[Any, Range]) -> tuple[Any, Any, dict[Any, Range]]:
    """The same with sizes that are multiples of something written as such."""
    for symbol, span in list(ranges.items()):
        residue, modulus = span.start % span.modulus, span.modulus
        if span.is_whole or span.residues != 1 << residue or symbol not in expr.free_symbols:
            continue
        times = sympy.Symbol(f"{symbol}_times", integer=True, nonnegative=True)
        try:
            expr = expr.xreplace({symbol: modulus * times + residue})
        except Exception as error:  # torch's own functions refuse some arguments
            logger.debug("%s is taken as it is: %s", expr, error)
            continue
        whole = Range(span.start // modulus, span.end // modulus)
        ranges = {**ranges, times: whole}
        bounds = {**bounds, times: ValueRanges(whole.start, whole.end)}
    return expr, bounds, ranges


def _bounded(expr: Any, bounds: Any) -> bool:
    if expr == sympy.true:
        return True
    try:
        found = bound_sympy(expr, bounds)
    except Exception:
        return False
    return bool(found.is_singleton() and found.lower == sympy.true)


def _divided(expr: Any, bounds: Any) -> Any:
    """``expr`` with ``a // b`` and ``a % b`` worked out where b divides a whatever the sizes."""
    try:
        while found := _first_even(expr, bounds):
            expr = expr.xreplace(found)
        if isinstance(expr, sympy.core.relational.Relational):
            return expr.func(sympy.expand(expr.lhs - expr.rhs), 0)
    except Exception as error:  # what sympy cannot work out stays as it is
        logger.debug("%s is taken as it is: %s", expr, error)
    return expr


def _first_even(expr: Any, bounds: Any) -> dict[Any, Any]:
    """One division in ``expr`` that leaves no remainder, and its result; {} when there is none."""
    for part in expr.atoms(FloorDiv, Mod, PythonMod):
        dividend, divisor = part.args
        if bound_sympy(divisor, bounds).lower < 1:
            continue
        quotient = sympy.cancel(dividend / divisor)
        symbols = sorted(quotient.free_symbols, key=str) or [sympy.Dummy()]
        if not quotient.is_polynomial(*symbols):
            continue
        if all(c.is_integer for c in sympy.Poly(quotient, *symbols).coeffs()):
            return {part: quotient if isinstance(part, FloorDiv) else sympy.S.Zero}
    return {}


def _tried(expr: sympy.Basic, ranges: Mapping[sympy.Symbol, Range]) -> bool:
    used = sorted(expr.free_symbols & set(ranges), key=str)
    if expr.free_symbols - set(used):
        return False
    if any(ranges[s].end - ranges[s].start > _LISTED for s in used):
        return False
    spans = [list(ranges[s]) for s in used]
    if math.prod(map(len, spans)) > _DENSE:
        return False
    holds = evaluator(expr, used)
    try:
        return all(holds(*sizes) for sizes in itertools.product(*spans))
    except ArithmeticError:
        return False


def evaluator(expr: sympy.Basic, symbols: Sequence[sympy.Symbol]) -> Callable[..., Any]:
    """A plain function of one int per symbol that computes ``expr``."""
    source = python_source(expr)
    names = ", ".join(str(s) for s in symbols)
    namespace: dict[str, Any] = {"math": math, "torch": torch}
    exec(compile(f"def holds({names}):\n return {source}", "<guard>", "exec"), namespace)
    found: Callable[..., Any] = namespace.pop("holds")
    return found


def python_source(expr: sympy.Basic) -> str:
    """``expr`` as a Python expression over its symbols' names; may use ``math``."""
    return str(PythonPrinter().doprint(expr))
