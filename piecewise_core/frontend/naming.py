"""What to call a model where people read of several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["model_name"]


def model_name(fn: Callable[..., Any]) -> str:
    """The class of the object that ``fn`` is a method of, or the function's own name."""
    owner = getattr(fn, "__self__", None)
    named = fn if owner is None else type(owner)
    return str(getattr(named, "__qualname__", type(named).__qualname__))
