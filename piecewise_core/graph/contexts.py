"""Nodes that open and close something around others: autocast, vmap, a choice of SDPA kernel.

Autocast is opened again wherever a cut falls into it. What functorch opens (vmap, grad) cannot
be: all of it is one unit. Other switches of torch's global state are never compiled apart from
what they switch.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from piecewise_core.torch_compat.targets import enter_autocast, exit_autocast

__all__ = ["functorch_units", "is_autocast_enter", "is_autocast_exit", "is_switch"]

_SWITCHES = ("_sdpa_kernel", "_backend_from_string", "_set_deterministic_algorithms")


def is_autocast_enter(node: torch.fx.Node) -> bool:
    """Whether the node begins an autocast region."""
    return node.target is enter_autocast


def is_autocast_exit(node: torch.fx.Node) -> bool:
    """Whether the node ends an autocast region."""
    return node.target is exit_autocast


def is_switch(node: torch.fx.Node) -> bool:
    """Whether the node changes torch's global state for those after it."""
    return node.op == "call_function" and getattr(node.target, "__name__", "") in _SWITCHES


def functorch_units(nodes: Iterable[torch.fx.Node]) -> list[list[torch.fx.Node]]:
    """``nodes`` in runs: each outermost vmap or grad whole, every other node alone."""
    units: list[list[torch.fx.Node]] = []
    depth = 0
    for node in nodes:
        name = getattr(node.target, "__name__", "") if node.op == "call_function" else ""
        if depth:
            units[-1].append(node)
        else:
            units.append([node])
        if name.endswith("_increment_nesting"):
            depth += 1
        elif name.endswith("_decrement_nesting"):
            depth -= 1
    return units
