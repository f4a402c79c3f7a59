"""Products of matrices and attention: the dim that is summed over must be fixed."""

from __future__ import annotations

from piecewise_core.graph.padding.calls import Call
from piecewise_core.graph.padding.extents import Axes, Value
from piecewise_core.graph.padding.rule import Rule, broadcast, fixed, known

__all__ = ["RULES"]

_SUMMED = "sums over it"


def _product(a: Axes, b: Axes) -> Axes:
    """As ``matmul``."""
    fixed(a[-1:], _SUMMED)
    fixed(b[-2:-1] if len(b) > 1 else b[-1:], _SUMMED)
    rows = a[-2:-1] if len(a) > 1 else ()
    columns = b[-1:] if len(b) > 1 else ()
    return (*broadcast((a[:-2], b[:-2])), *rows, *columns)


def _matmul(call: Call) -> list[Axes]:
    a, b = (known(v) for v in call.tensors[:2])
    return [_product(a, b)]


def _added(call: Call) -> list[Axes]:
    """``addmm`` and its like: a term, and a product."""
    term, a, b = (known(v) for v in call.tensors[:3])
    return [broadcast((term, _product(a, b)))]


def _linear(call: Call) -> list[Axes]:
    given, weight, *bias = (known(v) for v in call.tensors)
    fixed(given[-1:], _SUMMED)
    fixed(weight, "has weights that vary")
    for each in bias:
        fixed(each, "has weights that vary")
    return [(*given[:-1], *weight[:-1])]


def _outer(call: Call) -> list[Axes]:
    a, b = (known(v) for v in call.tensors[:2])
    return [(*a, *b)]


def _attention(call: Call) -> list[Axes | None]:
    """Each query sees all keys, of its own batch and head alone."""
    query, key, value = (known(call[name]) for name in ("query", "key", "value"))
    attends = "attends over it"
    fixed((*key[-2:], *value[-2:], *query[-1:]), attends)
    lead = [query[:-2], key[:-2], value[:-2]]
    if call.get("enable_gqa"):  # one key head for several query heads
        fixed(query[-3:-2], attends)
        lead = [axes[:-1] for axes in lead]
    out = (*broadcast(lead), *(query[-3:-2] if call.get("enable_gqa") else ()))
    out = (*out, query[-2], value[-1])
    for name in ("attn_mask", "attn_bias"):
        mask = call.get(name)
        if isinstance(mask, Value):
            fixed(known(mask)[-1:], attends)
            broadcast((out[:-1], known(mask)[:-1]))
    return [out, *[None] * (len(call.results) - 1)]


def _distances(call: Call) -> list[Axes]:
    """Each row of one to each row of the other."""
    a, b = (known(v) for v in call.tensors[:2])
    fixed((*a[-1:], *b[-1:]), _SUMMED)
    return [(*broadcast((a[:-2], b[:-2])), a[-2], b[-2])]


RULES = {
    **dict.fromkeys(("cdist", "_cdist_forward", "_euclidean_dist"), Rule(_distances)),
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot", "vdot"), Rule(_matmul)),
    **dict.fromkeys(("addmm", "baddbmm", "addmv", "addmm_", "baddbmm_"), Rule(_added)),
    "linear": Rule(_linear),
    "outer": Rule(_outer),
    "ger": Rule(_outer),
    **dict.fromkeys(
        (
            "scaled_dot_product_attention",
            "_scaled_dot_product_flash_attention",
            "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_efficient_attention",
            "_scaled_dot_product_cudnn_attention",
            "_scaled_dot_product_fused_attention_overrideable",
            "_scaled_dot_product_attention_math",
        ),
        Rule(_attention),
    ),
}
