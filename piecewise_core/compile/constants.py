"""Tensors that a piece's graph holds once it is lowered: nobody hands them to compiled code.

Literals of the program are inputs of pieces already. Operators make others of numbers that they
are given: ``x[:, 0] = 3.0``.
"""

from __future__ import annotations

from typing import Any

import torch

from piecewise_core.graph.hostdata import number_of

__all__ = ["take_out"]


def take_out(module: torch.fx.GraphModule) -> list[torch.Tensor]:
    """Leave no tensor in ``module``, a graph of ATen operators, which is changed in place.

    Where one is a single number memory is filled with it. The rest is returned, in the order of
    the inputs that the graph has got behind its own.
    """
    held: list[torch.Tensor] = []
    for node in module.graph.find_nodes(op="get_attr"):
        value: Any = getattr(module, str(node.target), None)
        if not isinstance(value, torch.Tensor):
            continue
        number = number_of(value)
        new = _input(node, len(held)) if number is None else _filled(node, value, number)
        if number is None:
            held.append(value)
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        module.graph.erase_node(node)
    for name in [n for n, v in (*module.named_buffers(), *module.named_parameters())]:
        if "." not in name:
            delattr(module, name)
    module.recompile()
    return held


def _filled(node: torch.fx.Node, value: torch.Tensor, number: Any) -> torch.fx.Node:
    with node.graph.inserting_before(node):
        return node.graph.call_function(
            torch.ops.aten.full.default,
            (list(value.shape), number),
            {"dtype": value.dtype, "device": value.device, "pin_memory": False},
        )


def _input(node: torch.fx.Node, place: int) -> torch.fx.Node:
    last = node.graph.find_nodes(op="placeholder")[-1:]
    at = node.graph.inserting_after(last[0]) if last else node.graph.inserting_before()
    with at:
        return node.graph.placeholder(f"_pw_held{place}")
