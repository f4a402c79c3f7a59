"""Operators that are made of others, which modes are shown whole in inference mode."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from piecewise_core.torch_compat.dispatcher import DispatchKey, has_kernel
from piecewise_core.torch_compat.operators import runs_by_key, schema_name

__all__ = ["composite_kernel", "parts_of_conversion"]

_CONVERSIONS = ("aten::to", "aten::type_as")


def composite_kernel(fn: Any) -> Callable[..., Any] | None:
    """The kernel of an operator that is made of others, which a device runs; None of any other.

    Not ``decompose``: that prefers torch's Python twin, which may do otherwise (a dropout that
    drops nothing is a copy there).
    """
    key = DispatchKey.CompositeImplicitAutograd
    run = runs_by_key(fn)
    if run is None or not has_kernel(fn.name(), key):
        return None
    return partial(run, key)


def parts_of_conversion(fn: Any) -> Callable[..., Any] | None:
    """What runs in place of an operator that gives a tensor another dtype or device, else None.

    The copy that it makes, if it makes one, is then an operator of its own for every mode.
    """
    name = schema_name(fn)
    return composite_kernel(fn) if name in _CONVERSIONS else None
