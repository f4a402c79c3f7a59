"""Size 0: traced by itself, and joined to the region beside it where both take one path.

Dynamo's sizes are symbols that sympy takes for positive, so ``if rows > 0`` is answered during
the trace and leaves no guard behind. What the model does without rows can only be seen by tracing
it without rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import Any

import sympy
import torch

from piecewise_core.config import Config
from piecewise_core.errors import PiecewiseError
from piecewise_core.graph.segments import is_size
from piecewise_core.graph.sizes import expression
from piecewise_core.graph.structure import Structure, is_plain
from piecewise_core.graph.trace import Traced, trace
from piecewise_core.ranges import Box, Range

__all__ = ["same_path", "trace_region"]

_MOST = 2
"""Dims that may be empty in one trace's check: each doubles the traces that it takes."""


def trace_region(
    fn: Callable[..., Any],
    structure: Structure,
    config: Config,
    cell: Box,
    bind: Callable[[torch.Tensor], int],
) -> Traced:
    """Trace ``fn`` for sizes in ``cell`` as ``trace`` does, size 0 only where it is no exception.

    The result's box leaves size 0 of a dim out when the model does something else there.
    """
    inner = Box(tuple(Range(max(r.start, min(r.end, 1)), r.end) for r in cell.ranges))
    traced = trace(fn, structure, config, inner, bind)
    pairs = enumerate(zip(cell.ranges, traced.box.ranges, strict=True))
    zeros = [i for i, (wanted, found) in pairs if wanted.start == 0 and found.start == 1]
    if not zeros or len(zeros) > _MOST:
        return traced
    for empty in _subsets(zeros):
        ranges = [Range(0, 0) if i in empty else r for i, r in enumerate(traced.box.ranges)]
        try:
            other = trace(fn, structure, config, Box(tuple(ranges)), bind, assume=False)
        except PiecewiseError:
            return traced
        if other.box != Box(tuple(ranges)) or not same_path(traced, other, empty):
            return traced
    joined = [Range(0, r.end) if i in zeros else r for i, r in enumerate(traced.box.ranges)]
    return replace(traced, box=Box(tuple(joined)))


def _subsets(places: Collection[int]) -> Iterator[tuple[int, ...]]:
    for count in range(1, len(places) + 1):
        yield from itertools.combinations(places, count)


def same_path(general: Traced, other: Traced, zeros: Collection[int]) -> bool:
    """Whether ``other``, traced with the dims in ``zeros`` at size 0, is ``general`` at 0 there."""
    forms = [_Form(traced, zeros) for traced in (general, other)]
    results = [(t.output.source, _values(t.output.rebuild)) for t in (general, other)]
    return forms[0].lines() == forms[1].lines() and results[0] == results[1]


def _values(rebuild: Any) -> dict[str, str]:
    """What a result's code names: plain constants by value, other objects by identity."""
    held = {k: v for k, v in rebuild.__globals__.items() if k.startswith("_pw_")}
    return {k: repr(v) if is_plain(v) else f"object {id(v)}" for k, v in held.items()}


class _Form:
    """A graph as lines, its sizes as they are where the dims in ``zeros`` are 0."""

    def __init__(self, traced: Traced, zeros: Collection[int]) -> None:
        self._traced = traced
        self._number: dict[torch.fx.Node, int] = {}
        self._at = {
            s: sympy.Integer(0) if i in zeros else sympy.Symbol(f"d{i}", integer=True)
            for s, i in traced.symbols.items()
        }

    def lines(self) -> list[str]:
        """One line per node that is not a size."""
        sources = iter(self._traced.inputs)
        found = []
        for node in self._traced.graph.graph.nodes:
            source = next(sources) if node.op == "placeholder" else None
            if (source is not None and source.size is not None) or is_size(node):
                continue
            self._number[node] = len(self._number)
            arguments = self._text((node.args, node.kwargs))
            what = source if source is not None else self._target(node)
            found.append(f"{node.op} {what} {arguments}")
        return found

    def _target(self, node: torch.fx.Node) -> str:
        if node.op == "get_attr":
            held: Any = self._traced.graph
            for part in str(node.target).split("."):
                held = getattr(held, part)
            return f"object {id(held)}"
        return str(node.target) if isinstance(node.target, str) else f"function {id(node.target)}"

    def _text(self, value: Any) -> str:
        if isinstance(value, torch.fx.Node):
            if value in self._number:
                return f"%{self._number[value]}"
            return self._text(value.meta.get("example_value"))
        if isinstance(value, (tuple, list)):
            return f"{'[' if isinstance(value, list) else '('}{', '.join(map(self._text, value))})"
        if isinstance(value, dict):
            return f"{{{', '.join(f'{k}: {self._text(v)}' for k, v in value.items())}}}"
        if isinstance(value, slice):
            return f"slice{self._text((value.start, value.stop, value.step))}"
        found = expression(value)
        if not isinstance(found, sympy.Basic):
            return repr(found)
        try:
            return str(found.subs(self._at))
        except (AssertionError, ArithmeticError):
            # Torch's Mod, made for sizes from 1 on, has no value for what is negative at 0.
            return f"no value {id(self)}"
