"""Torch's dispatcher: its modes and kernels; known in 2.11 to 2.13, no fallback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from piecewise_core.torch_compat.lookup import needed

with needed():
    from torch._C import DisableTorchFunction, DispatchKey
    from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
    from torch.utils._python_dispatch import _disable_current_modes as without_modes
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack as mode_stack
    from torch.utils._python_dispatch import _pop_mode as pop_mode
    from torch.utils._python_dispatch import _push_mode as push_mode

    count_dispatch_modes = torch._C._len_torch_dispatch_stack
    count_function_modes = torch._C._len_torch_function_stack
    _pop_function_mode = torch._C._pop_torch_function_stack
    _push_function_mode = torch._C._push_on_torch_function_stack
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    no_torch_function = torch._C._disabled_torch_function_impl
    key_of_device = torch._C._dispatch_key_for_device

__all__ = [
    "DisableTorchFunction",
    "DispatchKey",
    "TorchDispatchMode",
    "count_dispatch_modes",
    "count_function_modes",
    "has_kernel",
    "is_traceable_wrapper_subclass",
    "key_of_device",
    "mode_stack",
    "no_torch_function",
    "pop_mode",
    "push_mode",
    "without_function_modes",
    "without_modes",
]


@contextmanager
def without_function_modes() -> Iterator[None]:
    """No torch function mode sees what runs inside."""
    modes = [_pop_function_mode() for _ in range(count_function_modes())]
    try:
        yield
    finally:
        for mode in reversed(modes):
            _push_function_mode(mode)
