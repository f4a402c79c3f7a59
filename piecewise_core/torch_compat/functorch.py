"""Tensors and layers of torch.func; known in 2.11 to 2.13, no fallback."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import torch

from piecewise_core.torch_compat.lookup import needed

with needed():
    from torch._C._functorch import (
        TransformType,
        _func_decrement_nesting,
        _grad_decrement_nesting,
        _jvp_decrement_nesting,
        _vmap_decrement_nesting,
        get_dynamic_layer_stack_depth,
        get_unwrapped,
        is_functorch_wrapped_tensor,
        peek_interpreter_stack,
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


# In 2.11 torch's own way back to a depth closes two levels for each that is too many.
_LEAVE: dict[TransformType, Callable[[], int]] = {
    TransformType.Vmap: _vmap_decrement_nesting,
    TransformType.Grad: _grad_decrement_nesting,
    TransformType.Jvp: _jvp_decrement_nesting,
    TransformType.Functionalize: _func_decrement_nesting,
}


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
        while get_dynamic_layer_stack_depth() > depth:
            _LEAVE[peek_interpreter_stack().key()]()

    return close


def in_dual_level() -> bool:
    """Whether forward-mode differentiation is going on."""
    return forward_ad._current_level >= 0


def has_tangent(value: object) -> bool:
    """Whether ``value`` is a tensor whose derivative goes forward with it."""
    unpack: Callable[..., Any] = forward_ad.unpack_dual
    return isinstance(value, torch.Tensor) and unpack(value).tangent is not None
