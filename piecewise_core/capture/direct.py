"""The kernel behind a splitting op, called without the dispatcher where that means the same.

An operator made with ``torch.library.custom_op`` is a Python function behind several layers of
dispatch. Private names, read in torch 2.11 and 2.13: ``torch._library.custom_ops.OPDEFS`` and
``CustomOpDef._backend_fns`` and ``_disabled_kernel``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["kernel_of", "modes_active"]


def kernel_of(fn: Callable[..., Any], device_type: str) -> Callable[..., Any] | None:
    """The one function that ``fn`` ends in on ``device_type``, or None when it cannot be told.

    Calling it is right in inference, with no modes active: autograd, tracing and modes are what
    the dispatcher would add.
    """
    overload = _overload(fn)
    if overload is None:
        return None
    definition: Any = _definition(overload._schema.name)
    if definition is None or getattr(definition, "_disabled_kernel", None):
        return None
    registered: dict[Any, Callable[..., Any]] = getattr(definition, "_backend_fns", {})
    found = registered.get(device_type, registered.get(None))
    return None if found is None else _users_own(found)


def _users_own(registered: Callable[..., Any]) -> Callable[..., Any]:
    """The function that the user wrote, inside the wrapper that can be told to disable it."""
    inner = inspect.unwrap(registered)
    names = getattr(getattr(inner, "__code__", None), "co_freevars", ())
    cells = dict(zip(names, getattr(inner, "__closure__", None) or (), strict=True))
    return cells["fn"].cell_contents if "fn" in cells else registered


def _overload(fn: Any) -> Any:
    if isinstance(fn, torch._ops.OpOverload):
        return fn
    if isinstance(fn, torch._ops.OpOverloadPacket) and len(fn.overloads()) == 1:  # type: ignore[no-untyped-call]
        return getattr(fn, fn.overloads()[0])  # type: ignore[no-untyped-call]
    return None


def _definition(name: str) -> Any:
    try:
        from torch._library.custom_ops import OPDEFS
    except ImportError:
        return None
    return OPDEFS.get(name)


def modes_active() -> bool:
    """Whether a dispatch or function mode wants to see operators."""
    return bool(torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack())
