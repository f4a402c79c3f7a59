"""Tensors and layers of torch.func; known in 2.11 to 2.13, no fallback."""

from __future__ import annotations

from piecewise_core.torch_compat.lookup import needed

with needed():
    from torch._C._functorch import (
        get_dynamic_layer_stack_depth,
        get_unwrapped,
        is_functorch_wrapped_tensor,
        peek_interpreter_stack,
        pop_dynamic_layer_stack_and_undo_to_depth,
    )
    from torch._functorch import config as functorch_config

__all__ = [
    "functorch_config",
    "get_dynamic_layer_stack_depth",
    "get_unwrapped",
    "is_functorch_wrapped_tensor",
    "peek_interpreter_stack",
    "pop_dynamic_layer_stack_and_undo_to_depth",
]
