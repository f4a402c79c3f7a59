"""What ranks must have alike of a traced program: its collectives, in order, and their groups."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from piecewise_core.graph.collectives import is_collective
from piecewise_core.graph.memory import values
from piecewise_core.graph.sums import sum_over
from piecewise_core.torch_compat.collectives import default_group, group_named, group_of
from piecewise_core.torch_compat.operators import OpOverload, overloads_of, schema_of

__all__ = ["described", "groups_in", "groups_of", "model_of"]

_UNEVEN = ("all_to_all", "alltoall")
"""In names of collectives that each rank may call with shapes of its own."""


def described(graph: torch.fx.GraphModule) -> tuple[str, ...]:
    """One line for each collective: operator, reduction, dtypes and shapes, sizes as ``*``."""
    return tuple(_line(node) for node in _collectives(graph))


def groups_of(graph: torch.fx.GraphModule) -> list[Any]:
    """The groups of more than one process that its collectives go to, each once."""
    found = [groups_in(node.target, node.args, node.kwargs) for node in _collectives(graph)]
    return list({id(group): group for groups in found for group in groups}.values())


def groups_in(fn: Any, args: Iterable[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """The groups of more than one process among the arguments of a collective."""
    if default_group() is None:
        return []
    op = fn if isinstance(fn, OpOverload) else overloads_of(fn)[0]
    named = dict(zip((a.name for a in schema_of(op).arguments), args)) | dict(kwargs)  # noqa: B905
    found = [
        group_named(value) if name.startswith("group") and isinstance(value, str) else value
        for name, value in named.items()
        if name.startswith("group") or isinstance(value, torch.ScriptObject)
    ]
    groups = [group for group in map(group_of, found) if group is not None]
    return [group for group in groups if group.size() > 1]


def model_of(fn: Any) -> list[str]:
    """What a callable is made of: names of classes, of functions; no weights, which may differ."""
    owner = getattr(fn, "__self__", None)
    if isinstance(owner, torch.nn.Module):
        return [type(module).__qualname__ for module in owner.modules()]
    return [str(getattr(fn, "__qualname__", type(fn).__qualname__))]


def _collectives(graph: torch.fx.GraphModule) -> Iterator[torch.fx.Node]:
    for module in graph.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                if node.op == "call_function" and is_collective(node.target):
                    yield node


def _line(node: torch.fx.Node) -> str:
    name, args = str(node.target).removesuffix(".default"), node.args
    if node.target is sum_over:  # who sums how is agreed on later
        name, args = "_c10d_functional.all_reduce", args[:-1]
    plain = [a for a in args if isinstance(a, (int, float, bool))]
    words = [a for a in args[:2] if isinstance(a, str)]  # the reduction, before the group
    tensors = []
    for used in node.all_input_nodes:
        for value in values(used.meta.get("example_value")):
            if isinstance(value, torch.Tensor):
                sizes = ["*" if isinstance(n, torch.SymInt) else str(n) for n in value.shape]
                shape = "" if any(x in name for x in _UNEVEN) else f"[{', '.join(sizes)}]"
                tensors.append(f"{str(value.dtype).removeprefix('torch.')}{shape}")
    return f"{name}({', '.join([*tensors, *words, *map(str, plain)])})"
