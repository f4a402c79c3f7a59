"""The tensors a model holds: bound once, read anew at every call, checked for replacement.

A replaced parameter is another object under the same name; ``.to()`` keeps the object and swaps
what it holds. One generated function reads all of them and notices both, and replaced modules and
changes of mode with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils.hooks import RemovableHandle

from piecewise_core.errors import UnsupportedModule
from piecewise_core.runtime.hooks import HookWatch
from piecewise_core.runtime.places import Place, mode_readers, places_of, tree_of
from piecewise_core.runtime.reach import Anchor, roots_of

_pointers_equal: Any = getattr(torch._C, "_tensors_data_ptrs_at_indices_equal", None)
"""Compares all data pointers in one call; builds of torch for CUDA have it (2.11 and 2.13)."""

__all__ = ["Parameters", "roots_of"]


class Parameters:
    """The bound tensors of one model, in the order in which tracing met them.

    ``read()`` returns them as a tuple, the same one until ``settle``, or None when one was
    replaced or moved since, or a module was replaced, changed between training and evaluation, or
    got or lost a hook. ``called``: the modules whose hooks tracing runs. ``anchors``: where
    the traced callable finds its modules and tensors.
    ``checked``: False returns the tensors that tracing met, without looking. ``every``: look at
    every tensor's address, since static graphs read them; else at one per module.
    """

    def __init__(
        self,
        roots: Sequence[torch.nn.Module],
        called: Sequence[torch.nn.Module] = (),
        anchors: Sequence[Anchor] = (),
        *,
        checked: bool = True,
        every: bool = False,
    ) -> None:
        self._roots = tuple(roots)
        self._called = tuple(called)
        self._anchors = tuple(a for a in anchors if a.holder is not None)
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
        self.read = _reader(
            self._tensors, self._places, self._roots, self._hooks, self._anchors, self._every
        )

    def rebind(self) -> bool:
        """Take the tensors now in place, if they are of the kinds traced; whether they are.

        A kind is dtype, device, shape and strides. False means that the model must be traced
        again, as it must when a module was replaced or its mode changed, or other tensors share
        memory than did; nothing is changed then.
        """
        moved = any(anchor.moved() for anchor in self._anchors)
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
    """``read()``: gathers every tensor from where it is kept, then compares.

    Tuples compare by identity first, so an unchanged tensor costs one pointer; a replaced one
    makes the comparison fail or raise. ``.to()`` works module by module, so one data pointer per
    owning module shows it.
    """
    names: dict[str, Any] = {}
    items, tests, watched = [], [], []
    owners: dict[int, torch.nn.Module] = {}
    for i, (tensor, known) in enumerate(zip(tensors, places, strict=True)):
        if not known:
            items.append(_name(names, tensor))
            continue
        items.append(_item(names, known[0]))
        tests += [f"{_item(names, twin)} is not p[{i}]" for twin in known[1:]]
        owner = known[0].owner()
        if id(owner) not in owners:
            watched.append(i)
        if tensor.numel() == 1:
            # A single element that was replaced by an equal one compares equal.
            tests.append(f"p[{i}] is not {_name(names, tensor)}")
        owners[id(owner)] = owner
    tests += [_anchor_test(names, anchor) for anchor in anchors]
    tests += [f"len({_name(names, d)}) != {len(d)}" for d in hooks.hooked()]
    names.update(_pw_handles=RemovableHandle, _pw_hooks=hooks)
    readers = mode_readers(roots)
    modes = [f"{'not ' if m.training else ''}{_name(names, vars(m))}['training']" for m in readers]
    parents = [m for root in roots for m in root.modules() if m._modules]
    modules = "".join(f"*{_name(names, m._modules)}.values(), " for m in parents)
    names["_pw_modules"] = tuple(child for m in parents for child in m._modules.values())
    names["_pw_was"] = tuple(tensors)
    names["_pw_ptrs"] = [t.data_ptr() for t in tensors]
    if _pointers_equal is not None:
        names["_pw_same"], names["_pw_all"] = _pointers_equal, list(range(len(tensors)))
        moved = "not _pw_same([*p], _pw_ptrs, _pw_all)"
    else:
        looked_at = range(len(tensors)) if every else watched
        names["_pw_ptr"] = torch.Tensor.data_ptr
        names["_pw_ptrs"] = [tensors[i].data_ptr() for i in looked_at]
        # They are the tensors compared by identity just before.
        names["_pw_looked_at"] = tuple(tensors[i] for i in looked_at)
        moved = "[*map(_pw_ptr, _pw_looked_at)] != _pw_ptrs"
    source = "\n".join(
        [
            f"def read({', '.join(f'{n}={n}' for n in names)}):",
            " try:",
            f"  p = ({''.join(f'{i}, ' for i in items)})",
            "  if p != _pw_was: return None",
            f"  if {' or '.join(tests) or 'False'}: return None",
            "  if _pw_handles.next_id != _pw_hooks.seen and _pw_hooks.changed(): return None",
            f"  if {' or '.join(modes) or 'False'} or ({modules}) != _pw_modules: return None",
            " except (KeyError, RuntimeError, ValueError):",
            "  return None",
            f" if {moved}:",
            "  return None",
            " return _pw_was",
        ]
    )
    exec(compile(source, "<piecewise parameters>", "exec"), names)
    read: Callable[[], tuple[torch.Tensor, ...] | None] = names["read"]
    return read


def _anchor_test(names: dict[str, Any], anchor: Anchor) -> str:
    entry = f"[{anchor.key!r}]" if isinstance(anchor.holder, dict) else ".cell_contents"
    return f"{_name(names, anchor.holder)}{entry} is not {_name(names, anchor.value)}"


def _name(names: dict[str, Any], value: Any) -> str:
    """The name that ``value`` has among ``names``, given now if it has none."""
    name = f"_pw_{id(value):x}"
    names[name] = value
    return name


def _item(names: dict[str, Any], place: Place) -> str:
    return f"{_name(names, place.dictionary())}[{place.key!r}]"
