"""The kernel behind a splitting op, called without the dispatcher where that means the same.

An operator made with ``torch.library.custom_op`` is a Python function behind several layers of
dispatch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from piecewise_core.capture.calls import tensors
from piecewise_core.torch_compat.custom_ops import kernels
from piecewise_core.torch_compat.dispatcher import (
    count_dispatch_modes,
    count_function_modes,
    has_kernel,
    key_of_device,
)
from piecewise_core.torch_compat.operators import OpOverload, OpOverloadPacket, schema_of

__all__ = ["Kernels", "kernel_of", "modes_active"]


def kernel_of(
    fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Callable[..., Any] | None:
    """The one function that ``fn`` ends in for these arguments, or None when it cannot be told.

    Calling it is right in inference, with no modes or autocast active: autograd, tracing and modes
    are what the dispatcher would add.
    """
    overload = _overload(fn)
    if overload is None:
        return None
    name = schema_of(overload).name
    registered = kernels(name)
    if not registered:
        return None
    device_type = _device_type(args, kwargs)
    if device_type not in registered and _has_another(name, device_type):
        return None
    found = registered.get(device_type, registered.get(None))
    if found is None or not _as_given(schema_of(overload).arguments, args, kwargs):
        return None
    return _users_own(found)


class Kernels:
    """``kernel_of``, asked once for calls alike: what it finds depends on kinds of arguments."""

    def __init__(self) -> None:
        self._known: dict[Any, Callable[..., Any] | None] = {}

    def __call__(
        self, fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Callable[..., Any] | None:
        """The same of the same."""
        kinds = [v.device if isinstance(v, torch.Tensor) else type(v) for v in args]
        if kwargs or list in kinds or tuple in kinds:
            return kernel_of(fn, args, kwargs)
        key = id(fn), *kinds  # whoever asks holds ``fn``
        if key not in self._known:
            self._known[key] = kernel_of(fn, args, kwargs)
        return self._known[key]


def _device_type(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """The device that the dispatcher would choose: not the CPU where there is another."""
    found = {t.device.type for t in tensors((args, kwargs))}
    return next(iter(found - {"cpu"}), "cpu")


def _has_another(name: str, device_type: str) -> bool:
    """Whether somebody registered a kernel for the device with ``torch.library.impl``."""
    key = key_of_device(device_type)
    return bool(has_kernel(name, key))


def _as_given(declared: Sequence[Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether the dispatcher would hand every argument on as it is: it makes floats of ints."""
    given = {a.name: value for a, value in zip(declared, args, strict=False)} | dict(kwargs)
    return all(_is_exactly(str(a.type), given[a.name]) for a in declared if a.name in given)


def _is_exactly(kind: str, value: Any) -> bool:
    if kind.startswith("Optional[") and value is not None:
        kind = kind[len("Optional[") : -1]
    if kind == "float":
        return isinstance(value, float)
    if kind == "Tensor":
        return isinstance(value, torch.Tensor)
    if kind.startswith("List["):
        return isinstance(value, list) and all(_is_exactly(kind[5:-1], v) for v in value)
    return True


def _users_own(registered: Callable[..., Any]) -> Callable[..., Any]:
    """The function that the user wrote, inside the wrapper that can be told to disable it."""
    inner = inspect.unwrap(registered)
    names = getattr(getattr(inner, "__code__", None), "co_freevars", ())
    cells = dict(zip(names, getattr(inner, "__closure__", None) or (), strict=True))
    return cells["fn"].cell_contents if "fn" in cells else registered


def _overload(fn: Any) -> Any:
    if isinstance(fn, OpOverload):
        return fn
    if isinstance(fn, OpOverloadPacket) and len(fn.overloads()) == 1:  # type: ignore[no-untyped-call]
        return getattr(fn, fn.overloads()[0])  # type: ignore[no-untyped-call]
    return None


def modes_active() -> bool:
    """Whether a dispatch or function mode wants to see operators."""
    return bool(count_dispatch_modes() or count_function_modes())
