"""Torch's pickler of graphs; known in 2.11 to 2.13, no fallback."""

from __future__ import annotations

from piecewise_core.torch_compat.lookup import needed

with needed():
    from torch.fx._graph_pickler import GraphPickler, Options

__all__ = ["GraphPickler", "Options"]
