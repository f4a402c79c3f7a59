"""Forward hooks of submodules: traced in with the model, so a change must be noticed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from piecewise_core.torch_compat.modules import (
    COMPILED_CALL,
    backward_hooks,
    backward_pre_hooks,
    forward_hooks,
    forward_hooks_of,
    forward_pre_hooks,
    forward_pre_hooks_of,
    is_jit_tracing,
)

__all__ = ["HookWatch", "call_is_forward", "has_hooks", "of_every_module"]

of_every_module = (forward_pre_hooks, forward_hooks, backward_pre_hooks, backward_hooks)
"""The dicts of hooks that run for every module of the process."""


def call_is_forward(state: dict[str, Any]) -> bool:
    """Whether calling the module whose ``__dict__`` is ``state`` does nothing but its forward."""
    return not (
        state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
        or any(of_every_module)
        or "forward" in state
        or COMPILED_CALL in state
        or is_jit_tracing()
    )


def has_hooks(state: dict[str, Any]) -> bool:
    """Whether a module has forward hooks, its own or everyone's. ``state``: its ``__dict__``."""
    return bool(
        state["_forward_hooks"] or state["_forward_pre_hooks"] or forward_hooks or forward_pre_hooks
    )


class HookWatch:
    """Knows which forward hooks ``modules`` had when it was made.

    ``seen``: torch's count of hooks ever registered, up to which nothing has changed; while
    ``RemovableHandle.next_id`` is still that, no hook was added anywhere.
    """

    def __init__(self, modules: Iterable[torch.nn.Module]) -> None:
        self._modules = tuple(modules)
        self._keys = self._read()
        self.seen = RemovableHandle.next_id

    def is_of(self, modules: Sequence[torch.nn.Module]) -> bool:
        """Whether it watches these."""
        return [*map(id, self._modules)] == [*map(id, modules)]

    def changed(self) -> bool:
        """Whether a module has other hooks than it had; if not, ``seen`` moves up."""
        if self._read() != self._keys:
            return True
        self.seen = RemovableHandle.next_id
        return False

    def hooked(self) -> list[dict[int, object]]:
        """The hook dicts that are not empty: removing from them counts nothing up."""
        return [d for m in self._modules for d in _dicts(m) if d]

    def _read(self) -> list[tuple[int, ...]]:
        return [tuple(d) for m in self._modules for d in _dicts(m)]


def _dicts(module: torch.nn.Module) -> tuple[dict[int, object], dict[int, object]]:
    return forward_pre_hooks_of(module), forward_hooks_of(module)
