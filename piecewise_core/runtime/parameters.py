"""The tensors a model holds: bound once, read anew at every call, checked for replacement.

A replaced parameter is another object under the same name; ``.to()`` keeps the object and swaps
what it holds. One generated function reads all of them and notices both, and replaced modules and
changes of mode with them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch

from piecewise_core.graph.facts import firsts
from piecewise_core.graph.wrappers import descriptions_differ, is_wrapper, kind_of, unusual
from piecewise_core.runtime.attribute_paths import globals_holding, holders_of
from piecewise_core.runtime.closure_walk import Anchor, roots_of
from piecewise_core.runtime.guard_source import guard_function
from piecewise_core.runtime.hooks import HookWatch
from piecewise_core.runtime.kinds import kind_of_tensor
from piecewise_core.runtime.module_paths import Place, outer_places, places_of, rewrapped, tree_of
from piecewise_core.runtime.object_paths import paths_of
from piecewise_core.runtime.refusals import refuse, refuse_whole
from piecewise_core.torch_compat.storages import sharing

__all__ = ["Parameters", "roots_of"]


class Parameters:
    """The bound tensors of one model, in the order in which tracing met them.

    ``in_trees``: the ids of all tensors in module trees, at ``settle``.

    ``read()`` returns them as a tuple, the same one until ``settle``, or None when one was
    replaced or moved since, or a module was replaced, changed between training and evaluation, or
    got or lost a hook. ``called``: the modules whose hooks tracing runs. ``anchors``: where
    the traced callable finds its modules and tensors. ``objects``: what else it looks into.
    ``given``: of these, what calls bring. ``checked``: False returns the tensors that tracing met,
    without looking. ``every``: look at every tensor's address however long that takes, since static
    graphs read them.
    """

    def __init__(
        self,
        roots: Sequence[torch.nn.Module],
        called: Sequence[torch.nn.Module] = (),
        anchors: Sequence[Anchor] = (),
        objects: Sequence[Any] = (),
        given: Sequence[Any] = (),
        *,
        checked: bool = True,
        every: bool = False,
    ) -> None:
        self._roots = tuple(roots)
        self._called = tuple(called)
        self._anchors = tuple(a for a in anchors if a.holder is not None)
        self._objects = tuple(objects)
        self._given = tuple(given)
        self._holders: tuple[Anchor, ...] = ()
        self._checked = checked
        self._every = every
        self._tensors: list[torch.Tensor] = []
        self._kinds: list[Any] = []
        self._wrappers: list[torch.Tensor] = []
        self._outer: list[tuple[Place, Any]] = []
        self._kept: list[tuple[torch.Tensor, dict[str, Any], Any]] = []
        self._place: dict[int, int] = {}
        self._places: list[list[Place]] = []
        self._searched = False
        self.in_trees: Collection[int] = ()
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
        made._place, made._wrappers = dict(self._place), list(self._wrappers)
        return made

    def add(self, tensor: torch.Tensor, of: torch.Tensor | None = None) -> int:
        """The place of ``tensor`` among the bound ones; new ones go last.

        ``of``: the tensor that wraps it. Raises UnsupportedModule.
        """
        if of is not None and is_wrapper(of) and not any(of is known for known in self._wrappers):
            self._take_apart(of)
        if id(tensor) not in self._place:
            refuse(tensor, self._roots)
            self._place[id(tensor)] = len(self._tensors)
            self._tensors.append(tensor)
            self._kinds.append(kind_of_tensor(tensor))
        return self._place[id(tensor)]

    def _take_apart(self, wrapper: torch.Tensor) -> None:
        """Know one wrapper more. Raises UnsupportedModule for one that cannot be looked after."""
        why = unusual(wrapper)
        if not why and id(wrapper) not in places_of(self._roots) and not self._held([wrapper]):
            why = "nothing that the model reaches by name holds it"
        if why:
            refuse_whole(wrapper, self._roots, why)
        self._wrappers.append(wrapper)

    def settle(self, *, followed: bool = False) -> None:
        """Generate ``read`` for what was added; call after each trace.

        ``followed``: ``given`` is known to hold all tensors that neither a module tree nor an
        anchor does, so that nobody looks for these in the whole model.
        """
        if not (followed and self._searched):
            index, self._searched = places_of(self._roots), True
            self.in_trees = index.keys()
            self._places = [index.get(id(t), []) for t in self._tensors]
            self._tree = tree_of(self._roots)
        self._shared = sharing(self._tensors)
        if not self._checked:
            bound = tuple(self._tensors)
            self.read = lambda: bound
            return
        if not (followed and self._hooks.is_of(self._called)):
            self._hooks = HookWatch(self._called)
        self._holders = (*self._anchors, *self._loose(followed))
        outer = [(p, p.dictionary()[p.key]) for p in outer_places(self._places)]
        kept = [a.value for a in self._holders if is_wrapper(a.value)]
        self._outer = [(place, kind_of(tensor)) for place, tensor in outer]
        self._kept = [(tensor, vars(tensor), kind_of(tensor)) for tensor in kept]
        self._wrappers = list({id(t): t for t in (*kept, *(t for _, t in outer))}.values())
        around = (*outer, *((None, tensor) for tensor in kept))
        self.read = guard_function(
            self._tensors,
            self._places,
            around,
            self._roots,
            self._hooks,
            self._holders,
            self._every,
        )

    def _loose(self, followed: bool) -> list[Anchor]:
        """Where tensors lie that no module tree and no anchor holds, or calls bring as well."""
        known = {*self.in_trees, *(id(a.value) for a in self._anchors)}
        inside = paths_of(self._tensors, self._given)
        loose = [t for i, t in enumerate(self._tensors) if i in inside or id(t) not in known]
        return holders_of(loose, self._given) if followed else self._held(loose)

    def _held(self, tensors: Sequence[torch.Tensor]) -> list[Anchor]:
        """The entries that lead to ``tensors`` from what the model reaches."""
        if not tensors:
            return []
        modules = [m for root in self._roots for m in root.modules()]
        starts = (*(a.value for a in self._anchors if is_wrapper(a.value)), *self._objects)
        found = holders_of(tensors, (*starts, *map(vars, modules), *{type(m) for m in modules}))
        known = {id(anchor.value) for anchor in found}
        left = [tensor for tensor in tensors if id(tensor) not in known]
        return found + globals_holding(left, modules) if left else found

    @property
    def loose(self) -> set[int]:
        """The places of tensors that neither a module tree nor an anchor held when it settled."""
        known = {id(a.value) for a in self._anchors}
        pairs = enumerate(zip(self._tensors, self._places, strict=True))
        return {i for i, (tensor, places) in pairs if not places and id(tensor) not in known}

    def stand(self, lent: Collection[int], roots: Sequence[torch.nn.Module]) -> bool:
        """Whether all is as ``settle`` found it in ``roots``, but for those at places ``lent``."""
        own = [place for place in range(len(self)) if place not in lent]
        tensors = [self._tensors[place] for place in own]
        return (
            self.loose <= set(lent)
            and self._surroundings_stand(self._anchors, roots)
            and all(at.has(self._tensors[place]) for place in own for at in self._places[place])
            and [*map(kind_of_tensor, tensors)] == [self._kinds[place] for place in own]
            and sharing(tensors) == firsts(self._shared[place] for place in own)
        )

    def succeed(
        self, other: Parameters, tensors: Sequence[torch.Tensor], lent: Collection[int]
    ) -> None:
        """Bind ``tensors`` and go by what ``other`` found of the model.

        Only those at places ``lent`` are others than it has, of the same kinds. Raises
        UnsupportedModule.
        """
        for place in lent:
            refuse(tensors[place], self._roots)
        self._tensors, self._place = list(tensors), {id(t): i for i, t in enumerate(tensors)}
        self._kinds, self._shared = list(other._kinds), list(other._shared)
        self._tree, self._hooks, self._outer = other._tree, other._hooks, list(other._outer)
        self._places = [[] if i in lent else known for i, known in enumerate(other._places)]
        self._searched = other._searched and not any(other._places[place] for place in lent)
        self.in_trees = other.in_trees
        own = {id(anchor.value) for anchor in self._anchors}
        self._kept = [each for each in other._kept if id(each[0]) in own]

    def _surroundings_stand(
        self, anchors: Sequence[Anchor], roots: Sequence[torch.nn.Module]
    ) -> bool:
        return not (
            any(anchor.moved() for anchor in anchors)
            or any(
                vars(t) is not at or descriptions_differ(kind_of(t), k) for t, at, k in self._kept
            )
            or rewrapped(self._outer)
            or self._tree != tree_of(roots)
            or self._hooks.changed()
        )

    def rebind(self) -> bool:
        """Take the tensors now in place, if they are of the kinds traced; whether they are.

        A kind is dtype, device, shape, strides and signs. False means that the model must be traced
        again, as it must when a module was replaced or its mode changed, or other tensors share
        memory than did; nothing is changed then.
        """
        if not self._surroundings_stand(self._holders, self._roots):
            return False
        try:
            now = [
                places[0].dictionary()[places[0].key] if places else tensor
                for tensor, places in zip(self._tensors, self._places, strict=True)
            ]
        except (KeyError, AttributeError):
            return False
        pairs = zip(now, self._places, strict=True)
        if not all(at.has(tensor) for tensor, places in pairs for at in places):
            return False
        if [kind_of_tensor(t) for t in now] != self._kinds:
            return False
        if sharing(now) != self._shared:
            return False
        self._tensors = now
        self._place = {id(t): i for i, t in enumerate(self._tensors)}
        self.settle()
        return True

    def need_grad(self) -> bool:
        """Whether a bound tensor requires gradients."""
        return any(t.requires_grad for t in (*self._tensors, *self._wrappers))
