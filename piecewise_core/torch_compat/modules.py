"""Modules, their hooks and what compiled them; known in 2.11 to 2.13, no fallback."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from piecewise_core.torch_compat.lookup import needed, reader

with needed():
    from torch.fx import _symbolic_trace
    from torch.fx._lazy_graph_module import _LazyGraphModule
    from torch.nn.modules.module import (
        _global_backward_hooks,
        _global_backward_pre_hooks,
        _global_forward_hooks,
        _global_forward_pre_hooks,
    )
    from torch.utils import _device

    is_jit_tracing = torch._C._get_tracing_state

__all__ = [
    "COMPILED_CALL",
    "backward_hooks",
    "backward_pre_hooks",
    "default_device",
    "forward_hooks",
    "forward_hooks_of",
    "forward_of",
    "forward_pre_hooks",
    "forward_pre_hooks_of",
    "graph_module",
    "is_jit_tracing",
    "is_tagging",
    "unpatched",
]

# Of every module in the process.
forward_hooks: dict[int, Any] = _global_forward_hooks
forward_pre_hooks: dict[int, Any] = _global_forward_pre_hooks
backward_hooks: dict[int, Any] = _global_backward_hooks
backward_pre_hooks: dict[int, Any] = _global_backward_pre_hooks

forward_hooks_of = reader(torch.nn.Module(), "_forward_hooks")
forward_pre_hooks_of = reader(torch.nn.Module(), "_forward_pre_hooks")

default_device: dict[str, Any] = vars(_device)
"""Where torch keeps ``CURRENT_DEVICE``."""

STATIC_MARK = "_dynamo_static_input_type"
"""The attribute by which Dynamo notes, at a trace, that a tensor is a model's."""

COMPILED_CALL = "_compiled_call_impl"
"""The attribute of a module whose ``compile()`` was called."""


def is_tagging(method: Any) -> bool:
    """Whether Dynamo put ``method`` around one of torch.nn.Module's, to note when modules are made.

    Its first call in a process does; a torch that does it elsewhere costs one trace more.
    """
    return getattr(method, "__module__", None) == "torch._dynamo.mutation_guard"


def unpatched(method: Any) -> Any:
    """What torch.fx put ``method`` around for as long as a thread traces; ``method`` by default.

    Compilers trace with it, and it patches ``torch.nn.Module`` for all threads meanwhile.
    """
    if getattr(method, "__globals__", None) is vars(_symbolic_trace):
        return getattr(method, "__wrapped__", method)
    return method


def graph_module(
    root: torch.nn.Module | dict[str, Any], graph: torch.fx.Graph
) -> torch.fx.GraphModule:
    """A module of ``graph`` whose Python is generated when it first runs: few ever do."""
    return _LazyGraphModule(root, graph)


def forward_of(module: torch.fx.GraphModule) -> Callable[..., Any]:
    """What runs ``module``, its Python generated."""
    _LazyGraphModule.force_recompile(module)
    return module.forward
