"""What a module's call does around its forward: hooks, and a ``__call__`` of its class's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from piecewise_core.runtime.hooks import has_hooks
from piecewise_core.torch_compat.dynamo import OptimizedModule
from piecewise_core.torch_compat.modules import COMPILED_CALL

__all__ = ["around_forward"]


def around_forward(
    model: torch.nn.Module, serve: Callable[..., Any]
) -> Callable[[], Callable[..., Any] | None]:
    """``find()``: calls ``model`` with ``serve`` for its forward; None where that is ``serve``.

    Hooks run in Python at every call, as those of a compiled module do.
    """
    kind, state = type(model), model.__dict__
    if _is_opaque(model):
        return lambda: None
    # Properties go before what an instance holds: a replaced forward, a compiled call.
    members = {
        "forward": property(lambda self: serve),
        COMPILED_CALL: property(lambda self: None),
        "__module__": kind.__module__,
        "__doc__": kind.__doc__,
    }
    made: Any = type(f"Recorded{kind.__name__}", (kind,), members)
    face: Callable[..., Any] = made.__new__(made)
    # One state, two faces: hooks may come and go on the model.
    object.__setattr__(face, "__dict__", state)
    if kind.__call__ is not torch.nn.Module.__call__:
        return lambda: face
    return lambda: face if has_hooks(state) else None


def _is_opaque(model: torch.nn.Module) -> bool:
    """Whether its call does not go to a forward that another could stand in for."""
    kinds = (torch.jit.ScriptModule, OptimizedModule)
    return isinstance(model, kinds) or hasattr(model, "_pw_session")
