"""What holds around a thread's calls and is no switch; known in 2.11 to 2.13, no fallback."""

from __future__ import annotations

import torch

from piecewise_core.torch_compat.dispatcher import count_dispatch_modes, count_function_modes
from piecewise_core.torch_compat.functorch import peek_interpreter_stack
from piecewise_core.torch_compat.lookup import needed
from piecewise_core.torch_compat.modules import default_device

with needed():
    from torch.autograd import forward_ad
    from torch.overrides import _get_current_function_mode_stack
    from torch.utils._device import DeviceContext

__all__ = ["in_force"]


def in_force() -> str | None:
    """What is in force around this thread that has no value to compare; None: nothing."""
    dual = forward_ad._current_level >= 0  # here, not by a function: at every call
    if not (count_function_modes() or count_dispatch_modes() or peek_interpreter_stack() or dual):
        return None
    for mode in _get_current_function_mode_stack():  # type: ignore[no-untyped-call]
        if type(mode) is not DeviceContext:
            return f"the torch function mode {type(mode).__qualname__}"
        default = default_device.get("CURRENT_DEVICE") or torch.device("cpu")
        if mode.device != default:  # what torch.set_default_device() sets is a fact of traces
            return f'torch.device("{mode.device}") as a context'
    if peek_interpreter_stack() is not None:
        return "a transform of torch.func"
    if count_dispatch_modes():
        return "a torch dispatch mode"
    return "forward-mode differentiation" if dual else None
