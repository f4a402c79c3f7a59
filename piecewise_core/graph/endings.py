"""What an attribute that traced code sets holds in the end, by what stands for it in Dynamo.

Read in torch 2.11.0 and 2.13.0: ``TensorVariable.proxy``; ``SymNodeVariable.sym_num``.
"""

from __future__ import annotations

from typing import Any

import sympy
import torch

from piecewise_core.graph.sizes import expression
from piecewise_core.torch_compat.dynamo import (
    LazyVariableTracker,
    SymNodeVariable,
    TensorVariable,
)

__all__ = ["is_made", "whole"]


def is_made(held: Any, name: str, var: Any) -> bool:
    """Whether a plain attribute of a module ends as a tensor that the graph computes."""
    if not isinstance(held, torch.nn.Module) or hasattr(type(held), name):
        return False
    if name in held._parameters or name in held._buffers or name in held._modules:
        return False
    if isinstance(var, LazyVariableTracker):
        var = var.realize() if var.is_realized() else None
    return isinstance(var, TensorVariable) and bool(var.proxy.node.op != "placeholder")


def whole(var: Any, before: Any) -> sympy.Basic | None:
    """What an attribute that held a whole number holds in the end, if that is one."""
    if isinstance(var, LazyVariableTracker):
        var = var.realize() if var.is_realized() else None
    found: Any = None
    if isinstance(var, SymNodeVariable):
        found = expression(var.sym_num)
    elif var is not None and type(before) is int:
        try:
            found = var.as_python_constant()
        except Exception:
            return None
    known = type(before) is int and (type(found) is int or isinstance(found, sympy.Expr))
    return sympy.sympify(found) if known else None
