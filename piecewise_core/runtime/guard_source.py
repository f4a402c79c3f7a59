"""One generated function that reads all bound tensors and notices what was replaced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import CellType
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from piecewise_core.graph.generated import define
from piecewise_core.graph.wrappers import descriptions_differ, in_slots, kind_of
from piecewise_core.runtime.closure_walk import Anchor
from piecewise_core.runtime.dict_guard import SAME, DictGuard
from piecewise_core.runtime.hooks import HookWatch
from piecewise_core.runtime.module_paths import Place, mode_readers

__all__ = ["guard_function"]


def guard_function(
    tensors: Sequence[torch.Tensor],
    places: Sequence[Sequence[Place]],
    wrappers: Sequence[tuple[Place | None, torch.Tensor]],
    roots: Sequence[torch.nn.Module],
    hooks: HookWatch,
    anchors: Sequence[Anchor],
    every: bool,
) -> Callable[[], tuple[torch.Tensor, ...] | None]:
    """``read()``: whether every tensor and module is where it was, in few steps of the interpreter.

    ``wrappers``: the tensors around some of ``tensors``, and where module trees keep them.
    ``.to()`` works module by module, so one address per owning module shows it where asking for
    all takes long.
    """
    names = _Names()
    tests, some = [], []
    owners: dict[int, torch.nn.Module] = {}
    for tensor, known in zip(tensors, places, strict=True):
        if known:
            owner = known[0].owner()
            if id(owner) not in owners:
                some.append(tensor)
            owners[id(owner)] = owner
        # Attributes of a module's own __dict__; and a single element that was replaced by an
        # equal one compares equal. A scripted module's are in no dict that could be watched.
        apart = [p for p in known if p.holder == "" or tensor.numel() == 1 or not _is_dict(p)]
        tests += [f"{_item(names, place)} is not {names.of(tensor)}" for place in apart]
    tests += _wrapper_tests(names, wrappers) + _sign_tests(names, tensors)
    tests += [_anchor_test(names, anchor) for anchor in anchors]
    tests += [f"len({names.of(d)}) != {len(d)}" for d in hooks.hooked()]
    tests += _mode_tests(names, roots)
    kept = _Kept(tensors, places, wrappers, roots, tensors if every else some)
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
    define(source, "<piecewise parameters>", names)
    read: Callable[[], tuple[torch.Tensor, ...] | None] = names.pop("read")
    return read


class _Names(dict[str, Any]):
    """Objects by the names that the source has for them, in the order in which it names them."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[int, str] = {}

    def of(self, value: Any) -> str:
        """The name of ``value``, given now if it has none."""
        name = self._known.setdefault(id(value), f"_pw_{len(self._known)}")
        self[name] = value
        return name


class _Kept:
    """The dicts that hold bound tensors and submodules.

    ``unchanged`` tells that nothing was written to them; ``look_again`` whether what was matters.
    """

    def __init__(
        self,
        tensors: Sequence[torch.Tensor],
        places: Sequence[Sequence[Place]],
        wrappers: Sequence[tuple[Place | None, torch.Tensor]],
        roots: Sequence[torch.nn.Module],
        some: Sequence[torch.Tensor],
    ) -> None:
        pairs = zip(tensors, places, strict=True)
        held = [(p, t) for t, known in pairs for p in known] + [*wrappers]
        entries = [
            (p.dictionary(), p.key, t)
            for p, t in held
            if p is not None and p.holder and _is_dict(p)
        ]
        self._kinds = [(tensor, kind_of(tensor)) for _, tensor in wrappers]
        parents = [m._modules for root in roots for m in root.modules() if m._modules]
        parents = [p for p in parents if isinstance(p, dict)]
        self._children = [(children, list(children.values())) for children in parents]
        self._entries = entries
        found = [d for d, _, _ in entries] + parents + [vars(t) for t, _ in self._kinds]
        self.unchanged = DictGuard(list({id(d): d for d in found}.values()), tensors, some)

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
        if any(descriptions_differ(kind_of(tensor), kind) for tensor, kind in self._kinds):
            return False
        for children, was in self._children:
            now = list(children.values())
            if len(now) != len(was) or any(a is not b for a, b in zip(now, was, strict=True)):
                return False
        return True


def _mode_tests(names: _Names, roots: Sequence[torch.nn.Module]) -> list[str]:
    # torch.compile's modules have no mode of their own: they pass on that of what they hold.
    readers = [m for m in mode_readers(roots) if "training" in vars(m)]
    return [f"{'not ' if m.training else ''}{names.of(vars(m))}['training']" for m in readers]


def _wrapper_tests(
    names: _Names, wrappers: Sequence[tuple[Place | None, torch.Tensor]]
) -> list[str]:
    tests = []
    for place, tensor in wrappers:
        if place is not None and (place.holder == "" or tensor.numel() == 1):
            tests.append(f"{_item(names, place)} is not {names.of(tensor)}")
        # torch swaps what two tensors are, attributes and all, where it moves or loads them.
        own = names.of(vars(tensor))
        tests.append(f"{names.of(tensor)}.__dict__ is not {own}")
        for name, held in in_slots(tensor).items():  # which no dict's version tells of
            tests.append(f"{names.of(tensor)}.{name} is not {names.of(held)}")
    return tests


def _sign_tests(names: _Names, tensors: Sequence[torch.Tensor]) -> list[str]:
    """Whether numbers are read with the same signs: two views of one memory may differ in it.

    Only what lies in the memory of complex numbers, as a part does, can come to be read otherwise.
    """
    tests = []
    for tensor in tensors:
        whole = tensor.is_contiguous() and tensor.numel() > 1
        if tensor.is_complex() or (tensor.is_floating_point() and not whole):
            name = names.of(tensor)
            tests += [f"{name}.is_conj() is not {tensor.is_conj()}"]
            tests += [f"{name}.is_neg() is not {tensor.is_neg()}"]
    return tests


def _anchor_test(names: _Names, anchor: Anchor) -> str:
    holder = names.of(anchor.holder)
    if isinstance(anchor.holder, CellType):
        return f"{holder}.cell_contents is not {names.of(anchor.value)}"
    return f"{holder}[{_key(names, anchor.key)}] is not {names.of(anchor.value)}"


def _is_dict(place: Place) -> bool:
    return isinstance(place.dictionary(), dict)


def _item(names: _Names, place: Place) -> str:
    return f"{names.of(place.dictionary())}[{_key(names, place.key)}]"


def _key(names: _Names, key: Any) -> str:
    """A key's source; an enum's member counts as an int or str and does not print as one."""
    return repr(key) if type(key) in (str, int) else names.of(key)
