"""Stops at every collective of a run, before it is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from piecewise_core.graph.collectives import is_collective
from piecewise_core.torch_compat.dispatcher import TorchDispatchMode

__all__ = ["Gate"]


class Gate(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """``arrive(fn, args, kwargs)`` is called where a collective is about to be made."""

    def __init__(self, arrive: Callable[[Any, Any, Mapping[str, Any]], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._arrive = arrive

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if is_collective(func):
            self._arrive(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))
