"""Boolean masks of attention, made into what kernels add to the scores before the graph is cut.

``scaled_dot_product_attention`` does so itself, with three kernels, at every call. A model that is
cut there would pay them once a layer; in the piece that makes the mask a compiler does it once, in
passing. The numbers are torch's own: 0 where the mask holds, minus infinity elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from piecewise_core.graph import effects
from piecewise_core.graph.attention import Attention, attentions
from piecewise_core.graph.memory import storages
from piecewise_core.graph.segments import segments
from piecewise_core.torch_compat import functorch
from piecewise_core.torch_compat.fakes import FakeTensor

__all__ = ["lift_masks"]


def lift_masks(graph: torch.fx.Graph, is_splitting: Callable[[torch.fx.Node], bool]) -> None:
    """Turn every boolean mask that splitting attention is given into a sum's term, once for all.

    A mask stays as it is where that would need a piece of its own, or where anything writes to it.
    """
    asking = [c for c in attentions(graph) if _is_boolean(c.mask) and is_splitting(c.node)]
    if not asking:
        return
    written = frozenset().union(*map(effects.writes, graph.nodes))
    runs = segments(graph, is_splitting)
    home = {n: run for run in runs for n in run.nodes}
    made: dict[tuple[torch.fx.Node, Any], torch.fx.Node] = {}
    for call in asking:
        mask, dtype = call.mask, _dtype(call)
        if dtype is None or storages(mask) & written:
            continue
        behind = mask
        if mask.op in ("placeholder", "get_attr"):
            behind = runs[0].nodes[0].prev
        elif mask not in home or home[mask].splitting:
            continue
        if behind is not mask and runs[0].splitting:
            continue
        if (mask, dtype) not in made:
            made[mask, dtype] = _term(graph, behind, mask, dtype)
        call.give(attn_mask=made[mask, dtype])


def _is_boolean(mask: Any) -> bool:
    value = mask.meta.get("example_value") if isinstance(mask, torch.fx.Node) else None
    if not isinstance(value, FakeTensor) or functorch.is_functorch_wrapped_tensor(value):
        return False
    return value.dtype is torch.bool


def _dtype(call: Attention) -> torch.dtype | None:
    """What the scores are computed in, outside of autocast: the query's dtype."""
    query = call.query
    value = query.meta.get("example_value") if isinstance(query, torch.fx.Node) else None
    return value.dtype if isinstance(value, FakeTensor) else None


def _term(
    graph: torch.fx.Graph, behind: torch.fx.Node, mask: torch.fx.Node, dtype: Any
) -> torch.fx.Node:
    """Insert what makes the term."""
    near = behind.next if behind.op in ("placeholder", "get_attr") else behind
    value = mask.meta["example_value"]
    hidden = float("-inf")
    with torch.inference_mode(), value.fake_mode:
        chosen = torch.where(value, 0.0, hidden)
        cast = chosen.to(dtype)
    with graph.inserting_after(behind):
        term = graph.call_function(torch.where, (mask, 0.0, hidden))
    term.meta = {**near.meta, "example_value": chosen}
    if cast is not chosen:
        with graph.inserting_after(term):
            term = graph.call_method("to", (term, dtype))
        term.meta = {**near.meta, "example_value": cast}
    return term
