"""The tensors a model holds: bound once, read anew at every call, checked for replacement.

A replaced parameter is another object under the same name; ``.to()`` keeps the object and swaps
what it holds. One generated function reads all of them and notices both, and replaced modules and
changes of mode with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import CellType
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils.hooks import RemovableHandle

from piecewise_core.errors import UnsupportedModule
from piecewise_core.runtime.holders import holders_of
from piecewise_core.runtime.hooks import HookWatch
from piecewise_core.runtime.places import Place, mode_readers, places_of, tree_of
from piecewise_core.runtime.reach import Anchor, roots_of
from piecewise_core.runtime.unchanged import SAME, Unchanged

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

    def add(self, tensor: torch.Tensor) -> int:
        """The place of ``tensor`` among the bound ones; new ones go last."""
        if id(tensor) not in self._place:
            if _has_own_dispatch(tensor):
                raise UnsupportedModule(
                    f"the model holds a {type(tensor).__name__}, a tensor subclass with its own "
                    "dispatch; convert it to plain tensors before compiling"
                )
            self._place[id(tensor)] = len(self._tensors)
            self._tensors.append(tensor)
            self._kinds.append(_kind(tensor))
        return self._place[id(tensor)]

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
        self.read = _reader(
            self._tensors, self._places, self._roots, self._hooks, self._holders, self._every
        )

    def _loose(self) -> list[Anchor]:
        """Where tensors lie that neither a module tree nor an anchor holds."""
        known = {id(a.value) for a in self._anchors}
        pairs = zip(self._tensors, self._places, strict=True)
        loose = [t for t, places in pairs if not places and id(t) not in known]
        modules = (vars(m) for root in self._roots for m in root.modules())
        return holders_of(loose, (*self._objects, *modules)) if loose else []

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
    off: Any = torch._C._disabled_torch_function_impl
    plain = kind is torch.Tensor or kind.__torch_function__ is off
    return not plain or is_traceable_wrapper_subclass(tensor)


def _kind(tensor: Any) -> Any:
    if not isinstance(tensor, torch.Tensor):
        return None
    return tensor.dtype, tensor.device, tuple(tensor.shape), tensor.stride(), type(tensor)


def _sharing(tensors: Sequence[Any]) -> list[int]:
    """For each tensor, the first one that lives in the same memory."""
    first: dict[int, int] = {}
    return [
        first.setdefault(t.untyped_storage()._cdata, i) if isinstance(t, torch.Tensor) else -1
        for i, t in enumerate(tensors)
    ]


def _reader(
    tensors: Sequence[torch.Tensor],
    places: Sequence[Sequence[Place]],
    roots: Sequence[torch.nn.Module],
    hooks: HookWatch,
    anchors: Sequence[Anchor],
    every: bool,
) -> Callable[[], tuple[torch.Tensor, ...] | None]:
    """``read()``: whether every tensor and module is where it was, in few steps of the interpreter.

    ``.to()`` works module by module, so one address per owning module shows it where asking for
    all takes long.
    """
    names: dict[str, Any] = {}
    tests, some = [], []
    owners: dict[int, torch.nn.Module] = {}
    for tensor, known in zip(tensors, places, strict=True):
        if known:
            owner = known[0].owner()
            if id(owner) not in owners:
                some.append(tensor)
            owners[id(owner)] = owner
        # Attributes of a module's own __dict__; and a single element that was replaced by an
        # equal one compares equal.
        apart = [place for place in known if place.holder == "" or tensor.numel() == 1]
        tests += [f"{_item(names, place)} is not {_name(names, tensor)}" for place in apart]
    tests += [_anchor_test(names, anchor) for anchor in anchors]
    tests += [f"len({_name(names, d)}) != {len(d)}" for d in hooks.hooked()]
    # torch.compile's modules have no mode of their own: they pass on that of what they hold.
    readers = [m for m in mode_readers(roots) if "training" in vars(m)]
    tests += [f"{'not ' if m.training else ''}{_name(names, vars(m))}['training']" for m in readers]
    kept = _Kept(tensors, places, roots, tensors if every else some)
    names.update(_pw_handles=RemovableHandle, _pw_hooks=hooks, _pw_bound=tuple(tensors))
    names.update(_pw_check=kept.unchanged.check, _pw_kept=kept)
    source = "\n".join(
        [
            f"def read({', '.join(f'{n}={n}' for n in names)}):",
            " if _pw_check() and not _pw_kept.look_again(): return None",
            " try:",
            f"  if {' or '.join(tests) or 'False'}: return None",
            " except (LookupError, ValueError):",  # gone from a dict or list, or from a closure
            "  return None",
            " if _pw_handles.next_id != _pw_hooks.seen and _pw_hooks.changed(): return None",
            " return _pw_bound",
        ]
    )
    exec(compile(source, "<piecewise parameters>", "exec"), names)
    read: Callable[[], tuple[torch.Tensor, ...] | None] = names["read"]
    return read


class _Kept:
    """The dicts that hold bound tensors and submodules.

    ``unchanged`` tells that nothing was written to them; ``look_again`` whether what was matters.
    """

    def __init__(
        self,
        tensors: Sequence[torch.Tensor],
        places: Sequence[Sequence[Place]],
        roots: Sequence[torch.nn.Module],
        some: Sequence[torch.Tensor],
    ) -> None:
        pairs = zip(tensors, places, strict=True)
        entries = [(p.dictionary(), p.key, t) for t, known in pairs for p in known if p.holder]
        parents = [m._modules for root in roots for m in root.modules() if m._modules]
        self._children = [(children, list(children.values())) for children in parents]
        self._entries = entries
        found = [d for d, _, _ in entries] + parents
        self.unchanged = Unchanged(list({id(d): d for d in found}.values()), tensors, some)

    def look_again(self) -> bool:
        """Whether all bound tensors and all modules are where they were."""
        if not self._is_as_it_was():
            return False
        self.unchanged.settle()
        # Once more, for a write by another thread in between.
        return self._is_as_it_was() and self.unchanged.check() == SAME

    def _is_as_it_was(self) -> bool:
        if any(d.get(key) is not tensor for d, key, tensor in self._entries):
            return False
        for children, was in self._children:
            now = list(children.values())
            if len(now) != len(was) or any(a is not b for a, b in zip(now, was, strict=True)):
                return False
        return True


def _anchor_test(names: dict[str, Any], anchor: Anchor) -> str:
    holder = _name(names, anchor.holder)
    if isinstance(anchor.holder, CellType):
        return f"{holder}.cell_contents is not {_name(names, anchor.value)}"
    plain = isinstance(anchor.key, (str, int))
    key = repr(anchor.key) if plain else _name(names, anchor.key)
    return f"{holder}[{key}] is not {_name(names, anchor.value)}"


def _name(names: dict[str, Any], value: Any) -> str:
    """The name that ``value`` has among ``names``, given now if it has none."""
    name = f"_pw_{id(value):x}"
    names[name] = value
    return name


def _item(names: dict[str, Any], place: Place) -> str:
    return f"{_name(names, place.dictionary())}[{place.key!r}]"
