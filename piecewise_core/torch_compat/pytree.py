"""Nested containers as flat lists; known in 2.11 to 2.13, no fallback."""

from __future__ import annotations

from piecewise_core.torch_compat.lookup import needed

with needed():
    from torch.utils._pytree import (
        tree_flatten,
        tree_leaves,
        tree_map,
        tree_map_only,
        tree_unflatten,
    )

__all__ = ["tree_flatten", "tree_leaves", "tree_map", "tree_map_only", "tree_unflatten"]
