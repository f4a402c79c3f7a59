"""Operators that make one element of many: the dims that they run over must be fixed."""

from __future__ import annotations

from piecewise_core.graph.padding.calls import Call
from piecewise_core.graph.padding.extents import Axes, axes_of
from piecewise_core.graph.padding.rule import Rule, along, fixed, known, places

__all__ = ["RULES"]


def _reduced(call: Call) -> list[Axes]:
    value = call.tensors[0]
    axes = known(value)
    gone = places(call.get("dim"), value)
    fixed((axes[i] for i in gone), "reduces it")
    kept = call.get("keepdim", False)
    made = tuple(() if i in gone else a for i, a in enumerate(axes) if kept or i not in gone)
    return [made] * len(call.results)


def _largest(call: Call) -> list[Axes]:
    """``topk`` and ``kthvalue``."""
    axes, at = along(call, -1)
    fixed(axes[at : at + 1], "picks from it by value")
    if "k" in call.arguments and "sorted" in call.arguments:
        return [(*axes[:at], axes_of((r[at],))[0], *axes[at + 1 :]) for r in call.results]
    return _reduced(call)


RULES = {
    **dict.fromkeys(
        (
            *("sum", "mean", "prod", "amax", "amin", "any", "all", "max", "min", "argmax"),
            *("argmin", "aminmax", "logsumexp", "var", "std", "var_mean", "std_mean", "nansum"),
            *("nanmean", "median", "nanmedian", "mode", "count_nonzero", "linalg_vector_norm"),
            *("norm", "linalg_norm", "nanquantile", "quantile"),
        ),
        Rule(_reduced),
    ),
    "topk": Rule(_largest),
    "kthvalue": Rule(_largest),
}
