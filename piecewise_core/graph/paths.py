"""Whether two traces of one model, at other sizes, took one path through it."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import sympy
import torch

from piecewise_core.graph.segments import is_size
from piecewise_core.graph.sizes import expression
from piecewise_core.graph.structure import is_plain
from piecewise_core.graph.trace import Traced

__all__ = ["same_path"]


_FLOAT = "{:.12g}"
"""A float as text: one made of sizes by sympy, with its own precision, and by Python are alike."""


def same_path(general: Traced, other: Traced, fixed: Mapping[int, int]) -> bool:
    """Whether ``other``, traced with the dims in ``fixed`` at those sizes, is ``general`` there."""
    forms = [_Form(traced, fixed) for traced in (general, other)]
    results = [(t.output.source, _values(t.output.rebuild)) for t in (general, other)]
    return forms[0].lines() == forms[1].lines() and results[0] == results[1]


def _values(rebuild: Any) -> dict[str, str]:
    """What a result's code names: plain constants by value, other objects by identity."""
    held = {k: v for k, v in rebuild.__globals__.items() if k.startswith("_pw_")}
    return {k: repr(v) if is_plain(v) else f"object {id(v)}" for k, v in held.items()}


class _Form:
    """A graph as lines, its sizes as they are where the dims in ``fixed`` have those sizes."""

    def __init__(self, traced: Traced, fixed: Mapping[int, int]) -> None:
        self._traced = traced
        self._number: dict[torch.fx.Node, int] = {}
        self._at = {
            s: sympy.Integer(fixed[i]) if i in fixed else sympy.Symbol(f"d{i}", integer=True)
            for s, i in traced.symbols.items()
        }

    def lines(self) -> list[str]:
        """One line per node that is not a size."""
        sources = iter(self._traced.inputs)
        found = []
        for node in self._traced.graph.graph.nodes:
            source = next(sources) if node.op == "placeholder" else None
            if source is not None and source.size is not None:
                continue
            found += self._line(node, source)
        return found

    def _line(self, node: torch.fx.Node, source: Any = None) -> list[str]:
        if is_size(node):
            return []
        self._number[node] = len(self._number)
        arguments = self._text((node.args, node.kwargs))
        if node.op != "get_attr":
            what = source if source is not None else _called(node)
            return [f"{node.op} {what} {arguments}"]
        held = operator.attrgetter(str(node.target))(node.graph.owning_module)
        if not isinstance(held, torch.fx.GraphModule):
            return [f"object {id(held)}"]
        return ["body of", *(line for inner in held.graph.nodes for line in self._line(inner))]

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
            return _FLOAT.format(found) if isinstance(found, float) else repr(found)
        try:
            there = found.subs(self._at)
            return _FLOAT.format(float(there)) if isinstance(there, sympy.Float) else str(there)
        except (AssertionError, ArithmeticError, ValueError):
            # Torch's Mod has no value for what is negative at 0, a logarithm none for 0.
            return f"no value {id(self)}"


def _called(node: torch.fx.Node) -> str:
    return str(node.target) if isinstance(node.target, str) else f"function {id(node.target)}"
