"""The tensors a model holds: bound once, read anew at every call, checked for replacement.

A replaced parameter is another object under the same name; ``.to()`` keeps the object and swaps
what it holds. One generated function reads all of them and notices both, and replaced modules and
changes of mode with them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch

from piecewise_core.errors import UnsupportedModule
from piecewise_core.runtime.attribute_paths import holders_of
from piecewise_core.runtime.closure_walk import Anchor, roots_of
from piecewise_core.runtime.guard_source import guard_function
from piecewise_core.runtime.hooks import HookWatch
from piecewise_core.runtime.module_paths import Place, places_of, tree_of
from piecewise_core.torch_compat.dispatcher import is_traceable_wrapper_subclass, no_torch_function
from piecewise_core.torch_compat.storages import memory_key

__all__ = ["Parameters", "roots_of"]


class Parameters:
    """The bound tensors of one model, in the order in which tracing met them.

    ``read()`` returns them as a tuple, the same one until ``settle``, or None when one was
    replaced or moved since, or a module was replaced, changed between training and evaluation, or
    got or lost a hook. ``called``: the modules whose hooks tracing runs. ``anchors``: where
    the traced callable finds its modules and tensors. ``objects``: what else it looks into.
    ``checked``: False returns the tensors that tracing met, without looking. ``every``: look at
    every tensor's address however long that takes, since static graphs read them.
    """

    def __init__(
        self,
        roots: Sequence[torch.nn.Module],
        called: Sequence[torch.nn.Module] = (),
        anchors: Sequence[Anchor] = (),
        objects: Sequence[Any] = (),
        *,
        checked: bool = True,
        every: bool = False,
    ) -> None:
        self._roots = tuple(roots)
        self._called = tuple(called)
        self._anchors = tuple(a for a in anchors if a.holder is not None)
        self._objects = tuple(objects)
        self._holders: tuple[Anchor, ...] = ()
        self._checked = checked
        self._every = every
        self._tensors: list[torch.Tensor] = []
        self._kinds: list[Any] = []
        self._place: dict[int, int] = {}
        self._places: list[list[Place]] = []
        self._tree = tree_of(self._roots)
        self._hooks = HookWatch(())
        self._shared: list[int] = []
        self.read: Callable[[], tuple[torch.Tensor, ...] | None] = tuple

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """The bound tensors, in order."""
        return tuple(self._tensors)

    def copy(self) -> Parameters:
        """The same tensors, for a trace to add to while calls go by these."""
        made = copy.copy(self)
        made._tensors, made._kinds = list(self._tensors), list(self._kinds)
        made._place = dict(self._place)
        return made

    def add(self, tensor: torch.Tensor) -> int:
        """The place of ``tensor`` among the bound ones; new ones go last."""
        if id(tensor) not in self._place:
            if _has_own_dispatch(tensor):
                raise UnsupportedModule(self._own_dispatch(tensor))
            self._place[id(tensor)] = len(self._tensors)
            self._tensors.append(tensor)
            self._kinds.append(_kind(tensor))
        return self._place[id(tensor)]

    def _own_dispatch(self, tensor: torch.Tensor) -> str:
        places = places_of(self._roots).get(id(tensor), [])
        where = (
            f'"{".".join((*places[0].path, places[0].key))}" is' if places else "the model holds"
        )
        return (
            f"{where} a {type(tensor).__name__}, a tensor subclass with its own dispatch; "
            "convert it to plain tensors before compiling, or call torch.compile(model, "
            'backend="piecewise"), which serves it without static graphs'
        )

    def settle(self) -> None:
        """Generate ``read`` for what was added; call after each trace."""
        if not self._checked:
            bound = tuple(self._tensors)
            self.read = lambda: bound
            return
        index = places_of(self._roots)
        self._places = [index.get(id(t), []) for t in self._tensors]
        self._tree = tree_of(self._roots)
        self._hooks = HookWatch(self._called)
        self._shared = _sharing(self._tensors)
        self._holders = (*self._anchors, *self._loose())
        self.read = guard_function(
            self._tensors, self._places, self._roots, self._hooks, self._holders, self._every
        )

    def _loose(self) -> list[Anchor]:
        """Where tensors lie that neither a module tree nor an anchor holds."""
        known = {id(a.value) for a in self._anchors}
        pairs = zip(self._tensors, self._places, strict=True)
        loose = [t for t, places in pairs if not places and id(t) not in known]
        modules = (vars(m) for root in self._roots for m in root.modules())
        return holders_of(loose, (*self._objects, *modules)) if loose else []

    @property
    def loose(self) -> set[int]:
        """The places of tensors that neither a module tree nor an anchor holds."""
        known = {*places_of(self._roots), *(id(a.value) for a in self._anchors)}
        return {place for place, t in enumerate(self._tensors) if id(t) not in known}

    def rebind(self) -> bool:
        """Take the tensors now in place, if they are of the kinds traced; whether they are.

        A kind is dtype, device, shape and strides. False means that the model must be traced
        again, as it must when a module was replaced or its mode changed, or other tensors share
        memory than did; nothing is changed then.
        """
        moved = any(anchor.moved() for anchor in self._holders)
        if moved or self._tree != tree_of(self._roots) or self._hooks.changed():
            return False
        try:
            now = [
                places[0].dictionary()[places[0].key] if places else tensor
                for tensor, places in zip(self._tensors, self._places, strict=True)
            ]
            twins = [
                p.dictionary()[p.key] is t
                for t, ps in zip(now, self._places, strict=True)
                for p in ps
            ]
        except (KeyError, AttributeError):
            return False
        if not all(twins) or [_kind(t) for t in now] != self._kinds:
            return False
        if _sharing(now) != self._shared:
            return False
        self._tensors = now
        self._place = {id(t): i for i, t in enumerate(self._tensors)}
        self.settle()
        return True

    def need_grad(self) -> bool:
        """Whether a bound tensor requires gradients."""
        return any(t.requires_grad for t in self._tensors)


def _has_own_dispatch(tensor: torch.Tensor) -> bool:
    """Whether operators on the tensor do, or return, something of its class's own."""
    kind = type(tensor)
    plain = kind is torch.Tensor or kind.__torch_function__ is no_torch_function
    return not plain or is_traceable_wrapper_subclass(tensor)


def _kind(tensor: Any) -> Any:
    if not isinstance(tensor, torch.Tensor):
        return None
    return tensor.dtype, tensor.device, tuple(tensor.shape), tensor.stride(), type(tensor)


def _sharing(tensors: Sequence[Any]) -> list[int]:
    """For each tensor, the first one that lives in the same memory."""
    first: dict[int, int] = {}
    return [
        first.setdefault(memory_key(t), i) if isinstance(t, torch.Tensor) else -1
        for i, t in enumerate(tensors)
    ]
