"""Programs of convolutions over varying sizes, which Inductor compiles for a GPU as they lie.

For fixed sizes it lays a piece out for its convolutions, channels last, and for symbols it does
not: ``GraphLowering.decide_layout_opt``, read in torch 2.11.0, 2.13.0 and 2.14.1. A UNet takes 1.3
times as long for it.
"""

from __future__ import annotations

from typing import Any

import torch

from piecewise_core.graph.names import called_name

__all__ = ["CONVOLUTIONS", "is_convolution", "why_fixed"]

CONVOLUTIONS = frozenset(
    {f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3)} | {"convolution"}
)
"""Bare names of the functions and operators."""

_OPERATORS = 50
"""To each convolution, at most: it is not what a transformer does that begins with one."""

_CHANNELS = 64
"""Where no convolution has more, Inductor leaves them as they lie for fixed sizes too."""


def why_fixed(graph: torch.fx.Graph, compiler: str, device_type: str) -> str:
    """Why ``graph`` is faster by code for fixed sizes, whatever a measurement says; "" if not.

    So it is where convolutions are much of what it does, on inputs whose sizes are symbols.
    """
    if compiler != "inductor" or device_type == "cpu":
        return ""  # on a CPU it lays out convolutions of any size
    calls = [node for node in graph.nodes if node.op in ("call_function", "call_method")]
    found = list(filter(is_convolution, calls))
    if len(found) * _OPERATORS < len(calls):
        return ""
    shapes = [[_shape(arg) for arg in node.args[:2]] for node in found]
    varies = any(isinstance(size, torch.SymInt) for given in shapes for size in given[0])
    wide = any(max(weight[:2], default=0) > _CHANNELS for *_, weight in shapes)
    return "Inductor lays out convolutions for fixed sizes only" if varies and wide else ""


def is_convolution(node: torch.fx.Node) -> bool:
    """Whether a node calls one of ``CONVOLUTIONS``."""
    return called_name(node).partition(".")[0] in CONVOLUTIONS


def _shape(arg: Any) -> tuple[Any, ...]:
    value = arg.meta.get("example_value") if isinstance(arg, torch.fx.Node) else arg
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()
