"""Tensors and layers of torch.func; known in 2.11 to 2.13, no fallback."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import torch

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
    from torch.autograd import forward_ad

__all__ = [
    "functorch_config",
    "get_unwrapped",
    "has_tangent",
    "in_dual_level",
    "is_functorch_wrapped_tensor",
    "levels_as_now",
    "peek_interpreter_stack",
]


def levels_as_now() -> Callable[[], None]:
    """What closes every level of vmap, grad and jvp that is opened from now on."""
    depth, level = get_dynamic_layer_stack_depth(), forward_ad._current_level
    forward, leave = torch._C._is_fwd_grad_enabled(), cast(Any, forward_ad.exit_dual_level)

    def close() -> None:
        torch._C._set_fwd_grad_enabled(forward)
        while forward_ad._current_level > level:
            leave()
        if level < 0:
            with suppress(RuntimeError):  # traced code opens one that Python does not count
                torch._C._exit_dual_level(level=0)
        pop_dynamic_layer_stack_and_undo_to_depth(depth)

    return close


def in_dual_level() -> bool:
    """Whether forward-mode differentiation is going on."""
    return forward_ad._current_level >= 0


def has_tangent(value: object) -> bool:
    """Whether ``value`` is a tensor whose derivative goes forward with it."""
    unpack: Callable[..., Any] = forward_ad.unpack_dual
    return isinstance(value, torch.Tensor) and unpack(value).tangent is not None
