"""Graphs that take tensors that wrap others: they get the tensors inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from piecewise_core.compile.examples import copied
from piecewise_core.graph.memory import values
from piecewise_core.graph.unwrapping import unwrap
from piecewise_core.graph.wrappers import is_wrapper, leaves

__all__ = ["has_wrappers", "unwrapped", "with_leaves"]


def has_wrappers(graph: torch.fx.Graph) -> bool:
    """Whether a wrapper is among what ``graph`` takes or makes."""
    return any(is_wrapper(v) for n in graph.nodes for v in values(n.meta.get("example_value")))


def unwrapped(graph: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """A copy that takes the tensors inside. Raises TraceFailed and UnsupportedOutput."""
    made = copied(graph)
    unwrap(made)
    return made


def with_leaves(serve: Callable[..., Any], graph: torch.fx.Graph) -> Callable[..., Any]:
    """``serve``, called as ``graph`` is, with the tensors inside of what that is given."""
    given = [n.meta.get("example_value") for n in graph.nodes if n.op == "placeholder"]
    wrapped = [is_wrapper(example) for example in given]
    if not any(wrapped):
        return serve

    def call(*inputs: Any) -> Any:
        pairs = zip(inputs, wrapped, strict=True)
        return serve(*[t for v, inside in pairs for t in (leaves(v) if inside else (v,))])

    return call
