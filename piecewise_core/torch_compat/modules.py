"""Modules, their hooks and what compiled them; known in 2.11 to 2.13, no fallback."""

from __future__ import annotations

from typing import Any

import torch

from piecewise_core.torch_compat.lookup import needed, reader

with needed():
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
    "forward_pre_hooks",
    "forward_pre_hooks_of",
    "is_jit_tracing",
    "is_tagging",
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

COMPILED_CALL = "_compiled_call_impl"
"""The attribute of a module whose ``compile()`` was called."""


def is_tagging(method: Any) -> bool:
    """Whether Dynamo put ``method`` around one of torch.nn.Module's, to note when modules are made.

    Its first call in a process does; a torch that does it elsewhere costs one trace more.
    """
    return getattr(method, "__module__", None) == "torch._dynamo.mutation_guard"
