"""Sizes as expressions over dims: printed for the plan, rebuilt as nodes inside a piece."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import sympy
import torch
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StrictMinMaxConstraint

from piecewise_core.errors import TraceFailed
from piecewise_core.graph.conditions import python_source
from piecewise_core.torch_compat.dynamo import ConstantSource
from piecewise_core.torch_compat.symbols import PythonReferenceAnalysis, ValueRanges, sympy_interp

__all__ = ["SizeWriter", "at_least", "build", "expression", "hint", "new_size", "number", "valued"]

_ANY = 64


def expression(value: Any) -> Any:
    """A size as a sympy expression, a tuple of them, or a plain number.

    Raises ValueError for the ragged size of a nested tensor.
    """
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        if not hasattr(value.node, "shape_env"):
            raise ValueError(f"{value} is the ragged size of a nested tensor")
        return value.node.shape_env.replace(value.node.expr)
    if isinstance(value, (tuple, list)):
        return tuple(expression(v) for v in value)
    return value


def hint(value: Any) -> Any:
    """The number that a size was traced with; asking adds no guard, as ``int()`` would."""
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return value.node.hint
    return value


def number(value: Any) -> int:
    """The number that a size was traced with; some number where it was marked as unbacked."""
    known = hint(value)
    if known is None:
        symbols = expression(value).free_symbols
        known = valued(value, dict.fromkeys(symbols, sympy.Integer(_ANY)))
    return int(known)


def at_least(value: Any) -> Any:
    """The number that a size is where every dim in it is as small as may be, but not 0.

    As it was traced, if one has no lower end.
    """
    found = expression(value)
    if not isinstance(found, sympy.Basic):
        return found
    ranges = value.node.shape_env.var_to_range
    lows = {symbol: ranges[symbol].lower for symbol in found.free_symbols}
    if not all(low.is_Integer for low in lows.values()):
        return hint(value)
    return int(found.xreplace({symbol: max(low, sympy.S.One) for symbol, low in lows.items()}))


def valued(value: Any, sizes: Mapping[sympy.Symbol, Any]) -> Any:
    """A size with ``sizes`` in place of its symbols."""
    found = expression(value)
    if not isinstance(found, sympy.Basic):
        return found
    if not found.free_symbols:
        return int(found)
    if isinstance(found, sympy.Symbol):  # most are
        return sizes[found]
    used = {s: sizes[s] for s in found.free_symbols}
    return sympy_interp(PythonReferenceAnalysis, used, found)


def new_size(env: ShapeEnv, place: int, low: int, high: int, hint: int) -> Any:
    """A SymInt of ``env`` from ``low`` to ``high``; a plain int when they are equal."""
    if low == high:
        return low
    source = ConstantSource(f"s{place}")
    symbol = env.create_symbol(
        hint,
        source,
        dynamic_dim=DimDynamic.DYNAMIC,
        constraint_dim=StrictMinMaxConstraint(vr=ValueRanges(low, high), warn_only=False),
        # A positive symbol answers ``size > 0`` by itself, without a guard.
        positive=True if low else None,
        do_not_specialize_zero_one=True,
    )
    return env.create_symintnode(symbol, hint=hint, source=source)


class SizeWriter:
    """Prints sizes as source over the plan's variables.

    ``symbols``: symbol -> place of its dim; the variable of place i is ``s{i}``.
    """

    def __init__(self, symbols: Mapping[sympy.Symbol, int]) -> None:
        self._rename = {s: sympy.Symbol(f"s{i}", integer=True) for s, i in symbols.items()}

    def __call__(self, value: Any) -> str:
        """The source of ``value``, a size or a tuple of sizes."""
        found = expression(value)
        if isinstance(found, tuple):
            return "(" + "".join(f"{self(v)}, " for v in found) + ")"
        if not isinstance(found, sympy.Basic):
            return repr(found)
        unknown = found.free_symbols - set(self._rename)
        if unknown:
            raise TraceFailed(
                f"a size depends on tensor data ({found}); piecewise needs sizes that follow from "
                "the inputs' sizes. Move the data-dependent part out of the compiled model"
            )
        return python_source(found.xreplace(self._rename))


def build(
    graph: torch.fx.Graph, value: Any, symbol_node: Callable[[sympy.Symbol], torch.fx.Node]
) -> Any:
    """Nodes of ``graph`` that compute ``value`` from the nodes of its symbols."""
    found = expression(value)
    if isinstance(found, tuple):
        return tuple(build(graph, v, symbol_node) for v in found)
    if not isinstance(found, sympy.Basic):
        return found
    if isinstance(found, sympy.Integer):
        return int(found)
    if isinstance(found, sympy.Symbol):
        return symbol_node(found)
    tracer = torch.fx.proxy.GraphAppendingTracer(graph)
    proxies: Any = {
        s: torch.fx.Proxy(symbol_node(s), tracer) for s in sorted(found.free_symbols, key=str)
    }
    result = sympy_interp(_Nodes, proxies, found)
    return result.node if isinstance(result, torch.fx.Proxy) else result


def _called(function: Callable[..., Any], value: Any, *rest: Any) -> Any:
    """``function(value, *rest)`` as a node; Python's own functions do not trace themselves."""
    if isinstance(value, torch.fx.Proxy):
        return value.tracer.create_proxy("call_function", function, (value, *rest), {})
    return function(value, *rest)


class _Nodes(PythonReferenceAnalysis):
    """Torch's table of what each kind of expression means, where it cannot be traced as it is."""

    int_truediv = staticmethod(operator.truediv)
    floor_to_int = staticmethod(lambda x, dtype: _called(math.floor, x))
    ceil_to_int = staticmethod(lambda x, dtype: _called(math.ceil, x))
    trunc_to_int = staticmethod(lambda x, dtype: _called(math.trunc, x))
    round_to_int = staticmethod(lambda x, dtype: _called(round, x))
    round_decimal = staticmethod(lambda x, digits: _called(round, x, digits))


for _name in ("acos", "asin", "atan", "cos", "cosh", "sin", "sinh", "tan", "tanh"):
    setattr(_Nodes, _name, staticmethod(partial(_called, getattr(math, _name))))  # not in the table
