"""Which nodes draw random numbers: where graphs repeat themselves, these must stay outside."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch

from piecewise_core.graph.names import called_name
from piecewise_core.torch_compat.operators import overloads_of, schema_of

__all__ = ["draws", "or_draws"]

_PYTHON = frozenset({
    "dropout", "alpha_dropout", "dropout1d", "dropout2d", "dropout3d", "feature_alpha_dropout",
    "feature_dropout", "rrelu", "gumbel_softmax", "fractional_max_pool2d", "fractional_max_pool3d",
})  # fmt: skip
"""Functions of torch.nn.functional, written in Python, that draw."""

_SWITCHES = ("training", "train")


def draws(node: Any) -> bool:
    """Whether ``node`` draws random numbers; dropout that is switched off does not."""
    name = called_name(node)
    if inspect.isfunction(node.target):
        known = node.target.__module__ == "torch.nn.functional" and name.rstrip("_") in _PYTHON
        return known and not _switched_off(node, inspect.signature(node.target).parameters)
    overloads = overloads_of(node.target) or overloads_of(getattr(torch.ops.aten, name, None))
    if not any(torch.Tag.nondeterministic_seeded in o.tags for o in overloads):
        return False
    return not all(_switched_off(node, [a.name for a in schema_of(o).arguments]) for o in overloads)


def or_draws(matches: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """``matches``, and every node that draws random numbers."""
    return lambda node: matches(node) or draws(node)


def _switched_off(node: Any, parameters: Iterable[str]) -> bool:
    """Whether the argument that turns the drawing off does: ``training=False``, ``dropout_p=0``."""
    given = {**dict(zip(parameters, node.args, strict=False)), **node.kwargs}
    if "dropout_p" in parameters:
        return bool(given.get("dropout_p", 0.0) == 0)
    return any(given.get(switch) is False for switch in _SWITCHES)
