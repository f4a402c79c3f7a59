"""Forward hooks of submodules: traced in with the model, so a change must be noticed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.utils.hooks import RemovableHandle

__all__ = ["HookWatch"]


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
