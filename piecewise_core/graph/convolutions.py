"""Programs of convolutions over varying sizes, which Inductor compiles for a GPU as they lie.

For fixed sizes it lays a piece out for its convolutions, channels last, and for symbols it does
not: ``GraphLowering.decide_layout_opt``, read in torch 2.11.0, 2.13.0 and 2.14.1. A UNet takes 1.3
times as long for it.
"""

from __future__ import annotations

from typing import Any

import torch

from piecewise_core.graph.names import called_name

__all__ = ["CONVOLUTIONS", "is_convolution", "weights_turned", "why_fixed"]

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
    found = _laid_out(graph, compiler, device_type)
    read = (_shape(_argument(node, 0, "input")) for node in found)
    varies = any(isinstance(size, torch.SymInt) for shape in read for size in shape)
    return "Inductor lays out convolutions for fixed sizes only" if varies else ""


def weights_turned(graph: torch.fx.Graph, compiler: str, device_type: str) -> str:
    """Advice where code for fixed sizes lays weights out anew, channels last, at every call.

    It reads them as the model holds them, so that one that changes is never missed. "" where it
    turns none.
    """
    found = _laid_out(graph, compiler, device_type)
    given = (_argument(node, 1, "weight") for node in found)
    weights = dict.fromkeys(arg for arg in given if isinstance(arg, torch.fx.Node))
    turned = [value for value in map(_value, weights) if value is not None and _is_turned(value)]
    if not turned:
        return ""
    held = sum(weight.nbytes for weight in turned) / 1e6
    return (
        "weights of convolutions are turned to channels last at every call of a size that has "
        f"its own code ({len(turned)} of them, {held:.2f} MB); "
        "model.to(memory_format=torch.channels_last) in front of compiling saves that"
    )


def _laid_out(graph: torch.fx.Graph, compiler: str, device_type: str) -> list[torch.fx.Node]:
    """The convolutions that Inductor lays out for fixed sizes and not for others, if it does."""
    if compiler != "inductor" or device_type == "cpu":
        return []  # on a CPU it lays out convolutions of any size
    calls = [node for node in graph.nodes if node.op in ("call_function", "call_method")]
    found = list(filter(is_convolution, calls))
    if len(found) * _OPERATORS < len(calls):
        return []
    weights = (_shape(_argument(node, 1, "weight")) for node in found)
    return found if any(max(shape[:2], default=0) > _CHANNELS for shape in weights) else []


def _is_turned(weight: torch.Tensor) -> bool:
    """Whether ``weight`` lies otherwise than with channels last: one of a single place is both."""
    if weight.ndim not in (4, 5):
        return False
    last = torch.channels_last if weight.ndim == 4 else torch.channels_last_3d
    return not weight.is_contiguous(memory_format=last)


def is_convolution(node: torch.fx.Node) -> bool:
    """Whether a node calls one of ``CONVOLUTIONS``."""
    return called_name(node).partition(".")[0] in CONVOLUTIONS


def _argument(node: torch.fx.Node, place: int, name: str) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name)


def _value(arg: Any) -> torch.Tensor | None:
    value = arg.meta.get("example_value") if isinstance(arg, torch.fx.Node) else arg
    return value if isinstance(value, torch.Tensor) else None


def _shape(arg: Any) -> tuple[Any, ...]:
    value = _value(arg)
    return () if value is None else tuple(value.shape)
