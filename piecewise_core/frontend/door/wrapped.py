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


def with_leaves(serve: Callable[..., Any]) -> Callable[..., Any]:
    """``serve``, called with the tensors inside of what it is given."""

    def call(*inputs: Any) -> Any:
        return serve(
            *[t for v in inputs for t in (leaves(v) if isinstance(v, torch.Tensor) else (v,))]
        )

    return call
