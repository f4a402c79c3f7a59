"""Torch's part of sympy: what sizes are written in; known in 2.11 to 2.13, no fallback."""

from __future__ import annotations

from typing import Any

from piecewise_core.torch_compat.lookup import needed

with needed():
    from torch.utils._sympy.functions import FloorDiv, Max, Mod, PythonMod
    from torch.utils._sympy.interp import sympy_interp
    from torch.utils._sympy.printers import PythonPrinter
    from torch.utils._sympy.reference import PythonReferenceAnalysis
    from torch.utils._sympy.symbol import SymT, symbol_is_type
    from torch.utils._sympy.value_ranges import ValueRanges, bound_sympy

__all__ = [
    "FloorDiv",
    "Max",
    "Mod",
    "PythonMod",
    "PythonPrinter",
    "PythonReferenceAnalysis",
    "SymT",
    "ValueRanges",
    "bound_sympy",
    "symbol_is_type",
    "sympy_interp",
    "traced_with",
    "unreplaced",
]


def unreplaced(size: Any) -> Any:
    """The expression of a SymInt as it was made, without what was put in its symbols' place."""
    try:
        return size.node._expr
    except AttributeError:
        with needed():
            raise


def traced_with(env: Any, symbol: Any) -> int:
    """The number that a symbol stood for at the trace; the table of these has two names."""
    known = getattr(env, "backed_var_to_val", None)
    with needed():
        return int((env.var_to_val if known is None else known)[symbol])
