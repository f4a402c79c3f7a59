"""Nodes that make or need sizes or numbers which depend on data: ``nonzero``, ``item()``.

Torch has symbols of a kind of its own for them, and no number: it learns them while it runs.
"""

from __future__ import annotations

from typing import Any

import sympy
import torch

from piecewise_core.graph.memory import values
from piecewise_core.graph.names import op_name, source_of
from piecewise_core.torch_compat.symbols import SymT, symbol_is_type, unreplaced

__all__ = ["is_varying", "line_of", "varies", "varies_itself", "why_varying"]

_KINDS = (SymT.UNBACKED_INT, SymT.UNBACKED_FLOAT)
_NUMBERS = (torch.SymInt, torch.SymFloat, torch.SymBool)


def is_varying(symbol: sympy.Symbol) -> bool:
    """Whether a symbol stands for a number that depends on data."""
    return bool(symbol_is_type(symbol, _KINDS))


def varies(node: torch.fx.Node) -> bool:
    """Whether a node makes such a number or size, or is given one.

    So do numbers that torch was told to be equal to others: they are before that is asked.
    """
    if node.op in ("placeholder", "get_attr", "output"):
        return False
    return any(map(varies_itself, (node, *node.all_input_nodes))) or _is_silent(node)


def _is_silent(node: torch.fx.Node) -> bool:
    """Whether nothing is known of a node's value, and such a node takes it: ``tolist`` does so."""
    if not node.op.startswith("call_") or "example_value" in node.meta or not node.users:
        return False
    return all(varies_itself(user) or _is_silent(user) for user in node.users)


def varies_itself(node: torch.fx.Node) -> bool:
    """Whether a node's value is such a number, is computed from one, or has such a size."""
    seen: set[torch.fx.Node] = set()
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if one in seen:
            continue
        seen.add(one)
        if any(map(_depends, values(one.meta.get("example_value")))):
            return True
        # Torch may know what a number is, from what it asserts. Here it is not asserted yet.
        if (
            one.op == "call_function"
            and _is_number(one)
            and all(map(_is_number, one.all_input_nodes))
        ):
            waiting += one.all_input_nodes
    return False


def _is_number(node: torch.fx.Node) -> bool:
    return isinstance(node.meta.get("example_value"), (int, float, *_NUMBERS))


def _depends(value: Any) -> bool:
    numbers = (*value.shape, *_lay(value)) if isinstance(value, torch.Tensor) else (value,)
    found = (unreplaced(n) for n in numbers if isinstance(n, _NUMBERS))
    return any(any(map(is_varying, n.free_symbols)) for n in found if isinstance(n, sympy.Basic))


def _lay(value: torch.Tensor) -> tuple[Any, ...]:
    if value.layout is not torch.strided:
        return ()
    return *value.stride(), value.storage_offset()


def line_of(node: torch.fx.Node) -> str:
    """``file:line`` of ``node``, or of the first it was made of that has one; or ""."""
    seen: set[torch.fx.Node] = set()
    waiting = [node]
    while waiting:
        one = waiting.pop(0)
        if (found := source_of(one)) or one in seen:
            if found:
                return found
            continue
        seen.add(one)
        waiting += one.all_input_nodes
    return ""


def why_varying(node: torch.fx.Node) -> str:
    """A sentence on ``node``, the first of several that vary."""
    where = line_of(node)
    return f"{op_name(node)}{f' at {where}' if where else ''} makes sizes that depend on data"
