"""Forward hooks of submodules: traced in with the model, so a change must be noticed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.nn.modules import module as of_all_modules
from torch.utils.hooks import RemovableHandle

__all__ = ["HookWatch", "call_is_forward", "has_hooks", "of_every_module"]

# Of every module in the process; torch's names, the same in 2.11.0 and 2.13.0.
_before: dict[int, Any] = of_all_modules._global_forward_pre_hooks
_after: dict[int, Any] = of_all_modules._global_forward_hooks
_before_backward: dict[int, Any] = of_all_modules._global_backward_pre_hooks
_after_backward: dict[int, Any] = of_all_modules._global_backward_hooks
of_every_module = (_before, _after, _before_backward, _after_backward)
"""The dicts of hooks that run for every module of the process."""


def call_is_forward(state: dict[str, Any]) -> bool:
    """Whether calling the module whose ``__dict__`` is ``state`` does nothing but its forward."""
    return not (
        state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
        or _after
        or _before
        or _after_backward
        or _before_backward
        or "forward" in state
        or "_compiled_call_impl" in state
        or torch._C._get_tracing_state()
    )


def has_hooks(state: dict[str, Any]) -> bool:
    """Whether a module has forward hooks, its own or everyone's. ``state``: its ``__dict__``."""
    return bool(state["_forward_hooks"] or state["_forward_pre_hooks"] or _after or _before)


class HookWatch:
    """Knows which forward hooks ``modules`` had when it was made.

    ``seen``: torch's count of hooks ever registered, up to which nothing has changed; while
    ``RemovableHandle.next_id`` is still that, no hook was added anywhere.
    """

    def __init__(self, modules: Iterable[torch.nn.Module]) -> None:
        self._modules = tuple(modules)
        self._keys = self._read()
        self.seen = RemovableHandle.next_id

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
    return module._forward_pre_hooks, module._forward_hooks  # type: ignore[return-value]
