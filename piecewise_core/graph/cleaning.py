"""Take out of a traced graph what inference does not need and splitting would stumble over."""

from __future__ import annotations

import operator
from contextlib import nullcontext
from typing import Any

import torch
from torch.fx.node import map_aggregate, map_arg

from piecewise_core.graph.contexts import functorch_units
from piecewise_core.graph.memory import storages, values
from piecewise_core.graph.varying import varies
from piecewise_core.torch_compat.fakes import FakeTensor
from piecewise_core.torch_compat.targets import (
    check_size,
    enter_inference,
    exit_inference,
    lowers_version,
    set_grad,
)

__all__ = ["clean", "fake_of"]

_GRAD_MODE = (set_grad, enter_inference, exit_inference)
_DROPOUTS = (torch.nn.functional.dropout, torch.dropout)
_ASSERTS = (torch.ops.aten._assert_scalar.default, check_size)
_SIZES = (torch.ops.aten.sym_size.int, torch.ops.aten.sym_storage_offset.default)
_COMPARISONS = (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge)


def clean(module: torch.fx.GraphModule) -> None:
    """Remove grad-mode switches (everything runs under inference mode) and settled size checks.


    A size check that tracing settled is a guard already; the regions account for it. Those of
    sizes that depend on data stay. Inside ``torch.func.grad`` the switches stay: it needs them.
    """
    _take_out_dropouts(module.graph)
    for node in module.graph.nodes:
        node.args = map_aggregate(node.args, _spelt)
        node.kwargs = map_aggregate(node.kwargs, _spelt)
    alone = [unit[0] for unit in functorch_units(module.graph.nodes) if len(unit) == 1]
    for node in reversed(alone):
        if node.op != "call_function" or node.users:
            continue
        # Tensors of inference mode have no version to lower.
        if node.target in _GRAD_MODE or lowers_version(node.target) or _is_size_check(node):
            module.graph.erase_node(node)
    module.recompile()


class _Spelt(complex):
    """A constant as torch.fx has to write it: Python reads ``-0-0j`` as 0-0j, and knows no infj."""

    def __repr__(self) -> str:
        return f"complex(float('{self.real}'), float('{self.imag}'))"


def _spelt(value: Any) -> Any:
    return _Spelt(value) if type(value) is complex else value


def _take_out_dropouts(graph: torch.fx.Graph) -> None:
    """Put its input in place of each dropout that drops nothing, which eager returns itself.

    Its fake is a copy, so a write to the one, or to a view of it, would not be seen as one to the
    other: what lives in the copy's memory gets a fake of the input's.
    """
    copies: frozenset[int] = frozenset()
    for node in list(graph.nodes):
        if _drops_nothing(node):
            copies |= storages(node) - storages(node.args[0])
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif copies & storages(node) and node.op in ("call_function", "call_method"):
            node.meta["example_value"] = fake_of(node)


def fake_of(node: torch.fx.Node) -> Any:
    """What a node gives for the fakes of its arguments, with no guard for it."""
    args, kwargs = map_arg((node.args, node.kwargs), lambda n: n.meta["example_value"])
    given = [v for n in node.all_input_nodes for v in values(n.meta["example_value"])]
    mode = next(v.fake_mode for v in given if isinstance(v, FakeTensor))
    unguarded = nullcontext() if mode.shape_env is None else mode.shape_env.suppress_guards()
    with torch.inference_mode(), mode, unguarded:
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        target: Any = node.target
        return target(*args, **kwargs)


def _drops_nothing(node: torch.fx.Node) -> bool:
    """Whether a node is ``dropout(x, p, training)`` with p 0, or not in training."""
    if node.op != "call_function" or node.target not in _DROPOUTS or not node.args:
        return False
    p = node.args[1] if len(node.args) > 1 else node.kwargs.get("p", 0.5)
    name = "train" if node.target is torch.dropout else "training"
    training = node.args[2] if len(node.args) > 2 else node.kwargs.get(name, True)
    return training is False or (isinstance(p, (int, float)) and p == 0)


def _is_size_check(node: torch.fx.Node) -> bool:
    if node.target in _SIZES:
        return varies(node)
    if node.target in _ASSERTS:
        if varies(node):
            return _is_sure(node.args[0])
        return not _is_tensor(node.args[0])
    return node.target in _COMPARISONS and not any(_is_tensor(a) for a in node.args)


def _is_sure(arg: Any) -> bool:
    """Whether a check says no more than that a size of a tensor is not negative."""
    node: Any = arg
    if isinstance(node, torch.fx.Node) and node.target is operator.ge and node.args[1] == 0:
        node = node.args[0]
    return isinstance(node, torch.fx.Node) and node.target in _SIZES


def _is_tensor(arg: Any) -> bool:
    value = arg.meta.get("example_value") if isinstance(arg, torch.fx.Node) else arg
    return isinstance(value, torch.Tensor)
